"""The 32 levels: their names, their numbers in the game's memory, and what was measured of them."""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType

from mario.errors import ConfigError

#: A level loops when a wrong path sends Mario back: its furthest x can fall short for that reason.
LOOPING_LEVELS = frozenset({"4-4", "7-4", "8-4"})

# The second to fourth stage of these worlds come after a cut-scene area of its own, so the area
# number in memory (0x0760) is one more than the stage (gym-super-mario-bros, `decode_target`).
_WORLDS_WITH_INTRO = frozenset({1, 2, 4, 7})

#: Furthest x in px at which each level ends (flag pole or axe), see `docs/guides/levels.md`.
_END_X_PX: MappingProxyType[str, int] = MappingProxyType(
    {
        "1-1": 3161, "1-2": 3113, "1-3": 2425, "1-4": 2279,
        "2-1": 3273, "2-2": 3133, "2-3": 3641, "2-4": 2279,
        "3-1": 3273, "3-2": 3401, "3-3": 2425, "3-4": 2279,
        "4-1": 3673, "4-2": 3401, "4-3": 2393, "4-4": 2535,
        "5-1": 3225, "5-2": 3273, "5-3": 2425, "5-4": 2279,
        "6-1": 3017, "6-2": 3529, "6-3": 2617, "6-4": 2279,
        "7-1": 2937, "7-2": 3133, "7-3": 3641, "7-4": 3047,
        "8-1": 6073, "8-2": 3401, "8-3": 3433, "8-4": 4327,
    }
)  # fmt: skip


@dataclass(frozen=True)
class Level:
    """One level.

    Attributes:
        name: ``"1-1"`` … ``"8-4"``.
        world: 1…8.
        stage: 1…4.
        area: the area number that the game wants in memory to start here, 1…5.
        length_px: furthest x at which the level ends (flag pole or axe), in px.
        loops: whether a wrong path sends Mario back.
    """

    name: str
    world: int
    stage: int
    area: int
    length_px: int
    loops: bool


def _level(name: str) -> Level:
    world, stage = (int(part) for part in name.split("-"))
    area = stage + 1 if world in _WORLDS_WITH_INTRO and stage >= 2 else stage
    return Level(name, world, stage, area, _END_X_PX[name], name in LOOPING_LEVELS)


LEVEL_NAMES: tuple[str, ...] = tuple(f"{w}-{s}" for w in range(1, 9) for s in range(1, 5))
LEVELS: MappingProxyType[str, Level] = MappingProxyType({n: _level(n) for n in LEVEL_NAMES})


def level(name: str) -> Level:
    """Look a level up by name.

    Raises:
        ConfigError: there is no such level.
    """
    try:
        return LEVELS[name]
    except (KeyError, TypeError):
        raise ConfigError(
            f'unknown level {name!r}: expected "1-1" to "8-4" (world 1-8, stage 1-4)'
        ) from None


def task_levels(task: str) -> tuple[str, ...]:
    """Name the levels that a task stands for: one level's name, or ``"all"``.

    Raises:
        ConfigError: the task is neither.
    """
    return LEVEL_NAMES if task == "all" else (level(task).name,)
