"""The 32 levels: their numbers in the game's memory, lengths, clocks and kinds."""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType

from mario.config.levels import LEVEL_NAMES, LEVELS_EXPECTED
from mario.errors import ConfigError

#: In these levels a wrong path sends Mario back, so that x is no measure of progress.
LOOPING_LEVELS = frozenset({"4-4", "7-4", "8-4"})

# In these worlds a cut scene precedes the second to fourth stage and has an area number of its own,
# so the number of their areas (`Ram.AREA`) is one more (gym-super-mario-bros, `decode_target`).
_WORLDS_WITH_INTRO = frozenset({1, 2, 4, 7})

# Mario's x when he holds the pole, and when he first touches the axe, less the object's own x.
_POLE_CONTACT_PX = -7
_AXE_CONTACT_PX = -12

#: x in px of the flag pole or the axe, from the level's object list in the cartridge; where a pipe
#: leads to another area, of the pole there. `test_levels_measured` reads the cartridge and plays
#: each level to its end.
_GOAL_X_PX: MappingProxyType[str, int] = MappingProxyType(
    {
        "1-1": 3168, "1-2": 3168, "1-3": 2432, "1-4": 2256,
        "2-1": 3200, "2-2": 3168, "2-3": 3600, "2-4": 2256,
        "3-1": 3200, "3-2": 3344, "3-3": 2416, "3-4": 2256,
        "4-1": 3600, "4-2": 3168, "4-3": 2352, "4-4": 2768,
        "5-1": 3184, "5-2": 3200, "5-3": 2432, "5-4": 2256,
        "6-1": 2976, "6-2": 3456, "6-3": 2672, "6-4": 2256,
        "7-1": 2864, "7-2": 3168, "7-3": 3600, "7-4": 3280,
        "8-1": 6016, "8-2": 3456, "8-3": 3424, "8-4": 4816,
    }
)  # fmt: skip

#: Mario's x on the first controllable frame of every level.
START_X_PX = 40

# The game clock on the first controllable frame is 300 in these levels and 400 in the others.
_SHORT_CLOCK = frozenset(
    {"1-3", "1-4", "2-3", "2-4", "3-2", "3-3", "3-4", "4-3", "5-1", "5-3", "5-4", "6-3", "6-4",
     "7-3", "8-1", "8-3"}
)  # fmt: skip

# The area type at the start (`Ram.AREA_TYPE`); fourth stages are castles, the rest overworld.
_WATER = frozenset({"2-2", "7-2"})
_UNDERGROUND = frozenset({"1-2", "4-2"})


@dataclass(frozen=True)
class Level:
    """One level.

    Attributes:
        name: ``"1-1"`` … ``"8-4"``.
        world: 1…8.
        stage: 1…4.
        area: number of the first area in the game's memory, 1…5.
        length_px: Mario's x when the level ends (flag pole or axe), in px.
        goal: the goal, ``"pole"`` or ``"axe"``.
        goal_x_px: x of the goal, in px.
        clock: the game clock at the start, 300 or 400 (a unit is about 0.4 s).
        kind: type of its first area: ``"overworld"``, ``"underground"``,
            ``"water"`` or ``"castle"``.
        loops: whether a wrong path sends Mario back.
    """

    name: str
    world: int
    stage: int
    area: int
    length_px: int
    goal: str
    goal_x_px: int
    clock: int
    kind: str
    loops: bool


def _level(name: str) -> Level:
    world, stage = (int(part) for part in name.split("-"))
    area = stage + 1 if world in _WORLDS_WITH_INTRO and stage >= 2 else stage
    goal, contact_px = ("axe", _AXE_CONTACT_PX) if stage == 4 else ("pole", _POLE_CONTACT_PX)
    if stage == 4:
        kind = "castle"
    elif name in _WATER:
        kind = "water"
    else:
        kind = "underground" if name in _UNDERGROUND else "overworld"
    return Level(
        name=name,
        world=world,
        stage=stage,
        area=area,
        length_px=_GOAL_X_PX[name] + contact_px,
        goal=goal,
        goal_x_px=_GOAL_X_PX[name],
        clock=300 if name in _SHORT_CLOCK else 400,
        kind=kind,
        loops=name in LOOPING_LEVELS,
    )


LEVELS: MappingProxyType[str, Level] = MappingProxyType({n: _level(n) for n in LEVEL_NAMES})


def level(name: str) -> Level:
    """Look up a level by its name.

    Raises:
        ConfigError: there is no such level.
    """
    if name not in LEVEL_NAMES:
        raise ConfigError(f"unknown level {name!r}: {LEVELS_EXPECTED}")
    return LEVELS[name]
