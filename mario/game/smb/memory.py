"""The game's memory: its addresses by name, and the 13 values of a step.

Addresses from the Super Mario Bros RAM map (datacrystal.tcrf.net) and the game's disassembly
(doppelganger). The values are those that gym-super-mario-bros 7.4.0 reads in `smb_env.py`, whose
uint8 arithmetic is done on integers here.
"""

from __future__ import annotations

from enum import IntEnum

import numpy as np
import numpy.typing as npt

from mario.game.console.contract import UInt8Array


class Ram(IntEnum):
    """Addresses in the console's 2 KiB of work RAM; a number of several digits has one a byte."""

    PLAYER_STATE = 0x0E  # what Mario does; 0x08 is normal play
    ENEMY_TYPES = 0x16  # of five objects, and of a power-up
    FLOAT_STATE = 0x1D  # 0 on the ground, 3 on a pole or a vine
    PLAYER_PAGE = 0x6D  # x in pages of 256 px …
    PLAYER_X = 0x86  # … and in px on the page
    PLAYER_Y_PAGE = 0xB5  # 0 above the screen, 1 on it, more below
    PLAYER_Y = 0xCE
    AREA_DATA = 0xE7  # address of the area's object list, two bytes, low byte first
    PLAYER_SCREEN_Y = 0x03B8
    AREA_CHANGE_TIMER = 0x06DE
    CLOUD_AREA = 0x0743  # not 0 in the areas in the clouds, where vines lead
    AREA_TYPE = 0x074E  # 0 water, 1 overworld, 2 underground, 3 castle
    AREA_POINTER = 0x0750  # changes when the screen scrolls past a vine, before Mario is there
    ENTRANCE_PAGE = 0x0751
    STATUS = 0x0756
    LIVES = 0x075A
    STAGE = 0x075C  # from 0, as are WORLD and AREA
    WORLD = 0x075F
    AREA = 0x0760
    MODE = 0x0770  # 0 title with its demonstration, 1 game, 2 victory
    PAUSE = 0x0776
    BLACK_SCREEN_TIMER = 0x07A0  # of the black screen before a level
    SCORE = 0x07DE  # six digits
    COINS = 0x07ED  # two digits
    TIME = 0x07F8  # three digits


#: One row of state, in this order everywhere (batch arrays, `info`, the store).
STATE_DTYPE = np.dtype(
    [
        ("x_px", np.int32),  # Mario's position from the start of the area
        ("y_px", np.int32),  # height above the bottom of the screen
        ("score", np.int32),
        ("coins", np.int32),  # 0 … 99
        ("time_left", np.int32),  # game clock, about 0.4 s a unit
        ("life", np.int32),  # lives left, 255 after the last
        ("status", np.int32),  # 0 small, 1 tall, 2 fireball
        ("world", np.int32),  # 1 … 8
        ("stage", np.int32),  # 1 … 4
        ("area", np.int32),  # 1 … 5
        ("flag", np.int32),  # 1 when the level is cleared: flag pole or axe
        ("dying", np.int32),  # 1 when Mario dies or is dead
        ("player_state", np.int32),  # 0x08 is normal play
    ]
)
STATE_FIELDS: tuple[str, ...] = STATE_DTYPE.names or ()
StateArray = npt.NDArray[np.void]

STATUS_NAMES = ("small", "tall", "fireball")

#: No level is longer. A larger x means that Mario is left of the area's start (page 255), where the
#: loop of 4-4 puts him for some frames; it counts as no progress.
MAX_X_PX = 0x8000

_BUSY_STATES = frozenset({0x00, 0x01, 0x02, 0x03, 0x04, 0x05, 0x07})
_ENEMIES = slice(Ram.ENEMY_TYPES, Ram.ENEMY_TYPES + 5)
_BOWSER, _FLAG = 0x2D, 0x31
_DYING = 0x0B
#: PLAYER_STATE of a dead Mario.
DEAD = 0x06
_VICTORY = 2
_ON_POLE = 3
_LAST_WORLD = 7


def furthest_at_start(x_px: npt.NDArray[np.int32]) -> npt.NDArray[np.int32]:
    """Compute the furthest x of episodes that start at `x_px`, int32 (N,): 0 left of the area."""
    return np.where(x_px < MAX_X_PX, x_px, 0).astype(np.int32)


def _digits(ram: UInt8Array, address: int, count: int) -> int:
    """Read a number that has one decimal digit a byte, by concatenating the bytes' values."""
    return int("".join(str(int(byte)) for byte in ram[address : address + count]))


def read_time(ram: UInt8Array) -> int:
    """Read the game clock, 0 … 999."""
    return _digits(ram, Ram.TIME, 3)


def is_dying(ram: UInt8Array) -> bool:
    """Tell whether Mario is in his dying animation or below the screen."""
    return int(ram[Ram.PLAYER_STATE]) == _DYING or int(ram[Ram.PLAYER_Y_PAGE]) > 1


def is_dead(ram: UInt8Array) -> bool:
    """Tell whether Mario is dead."""
    return int(ram[Ram.PLAYER_STATE]) == DEAD


def is_game_over(ram: UInt8Array) -> bool:
    """Tell whether the last life is lost."""
    return int(ram[Ram.LIVES]) == 0xFF


def is_won(ram: UInt8Array) -> bool:
    """Tell whether the last axe of the game was reached."""
    return is_world_over(ram) and int(ram[Ram.WORLD]) == _LAST_WORLD


def is_busy(ram: UInt8Array) -> bool:
    """Tell whether the game ignores the controller (pipes, entering an area, …)."""
    return int(ram[Ram.PLAYER_STATE]) in _BUSY_STATES


def is_world_over(ram: UInt8Array) -> bool:
    """Tell whether the axe was reached."""
    return int(ram[Ram.MODE]) == _VICTORY


def is_flag(ram: UInt8Array) -> bool:
    """Tell whether the level is cleared: the axe, or sliding down the pole."""
    if is_world_over(ram):
        return True
    enemies = ram[_ENEMIES]
    # A vine also sets the float state to 3, so a flag or Bowser must be there.
    there = bool(((enemies == _BOWSER) | (enemies == _FLAG)).any())
    return there and int(ram[Ram.FLOAT_STATE]) == _ON_POLE


def read_state(ram: UInt8Array) -> StateArray:
    """Read the 13 values.

    Args:
        ram: uint8 (2048,).

    Returns:
        A structured scalar array, shape (), of :data:`STATE_DTYPE`.
    """
    y_px = int(ram[Ram.PLAYER_SCREEN_Y])
    above = int(ram[Ram.PLAYER_Y_PAGE]) < 1
    return np.array(
        (
            int(ram[Ram.PLAYER_PAGE]) * 0x100 + int(ram[Ram.PLAYER_X]),
            255 + (255 - y_px) if above else 255 - y_px,
            _digits(ram, Ram.SCORE, 6),
            _digits(ram, Ram.COINS, 2),
            read_time(ram),
            int(ram[Ram.LIVES]),
            min(int(ram[Ram.STATUS]), 2),
            int(ram[Ram.WORLD]) + 1,
            int(ram[Ram.STAGE]) + 1,
            int(ram[Ram.AREA]) + 1,
            is_flag(ram),
            is_dying(ram) or is_dead(ram),
            int(ram[Ram.PLAYER_STATE]),
        ),
        dtype=STATE_DTYPE,
    )
