"""The names of the 32 levels, and which of them a task has."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

LEVEL_PATTERN = r"^[1-8]-[1-4]$"
LevelName = Annotated[str, Field(pattern=LEVEL_PATTERN)]
#: "1-1" … "8-4", in the order of the game.
LEVEL_NAMES = tuple(f"{world}-{stage}" for world in range(1, 9) for stage in range(1, 5))
