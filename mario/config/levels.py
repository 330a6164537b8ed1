"""The names of levels, tasks and registered models."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from mario.config.observations import OBSERVATIONS, split_task
from mario.errors import ConfigError

LEVEL_PATTERN = r"^[1-8]-[1-4]$"
LevelName = Annotated[str, Field(pattern=LEVEL_PATTERN)]
#: "1-1" … "8-4", in the order of the game.
LEVEL_NAMES = tuple(f"{world}-{stage}" for world in range(1, 9) for stage in range(1, 5))
#: What a message expects where a level is.
LEVELS_EXPECTED = 'expected "1-1" to "8-4" (world 1-8, stage 1-4)'
_KIND = "".join(f"(-({'|'.join(OBSERVATIONS[1:])}))?" for _ in OBSERVATIONS[1:2])
#: A level or "all", with the kind of observation unless it is pixels; or the name of a list.
TASK_PATTERN = rf"^({LEVEL_PATTERN[1:-1]}{_KIND}|all|[a-z][a-z0-9-]{{0,31}})$"
_MODEL_PREFIX = "mario-"
TaskName = Annotated[str, Field(pattern=TASK_PATTERN)]


def task_levels(task: str) -> tuple[str, ...]:
    """List the levels of a task that is named after one level, or after ``"all"``.

    Raises:
        ConfigError: the task is neither.
    """
    played, _ = split_task(task)
    if played == "all":
        return LEVEL_NAMES
    if played not in LEVEL_NAMES:
        raise ConfigError(f"unknown level {played!r}: {LEVELS_EXPECTED}")
    return (played,)


def model_name(task: str) -> str:
    """Name the registered model of a task: ``mario-<task>``."""
    return f"{_MODEL_PREFIX}{task}"


def task_of_model(model: str) -> str:
    """Name the task that a registered model is for; the inverse of `model_name`."""
    return model.removeprefix(_MODEL_PREFIX)
