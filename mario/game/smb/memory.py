"""What the game's memory says: the 13 values of a step, read as gym-super-mario-bros does.

Addresses from the Super Mario Bros RAM map (datacrystal.tcrf.net), the same that
gym-super-mario-bros 7.4.0 reads in `smb_env.py`; its arithmetic on uint8 is done on integers here.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from mario.game.console.contract import UInt8Array

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
        ("flag", np.int32),  # 1 when the level is done: flag pole or axe
        ("dying", np.int32),  # 1 when Mario dies or is dead
        ("player_state", np.int32),  # 0x08 is normal play
    ]
)
STATE_FIELDS: tuple[str, ...] = STATE_DTYPE.names or ()
StateArray = npt.NDArray[np.void]

STATUS_NAMES = ("small", "tall", "fireball")

#: No level is longer. Above, x is that of a Mario who stands left of an area's start (page 255),
#: where the loop of 4-4 puts him for some frames; such an x is nowhere that he got to.
MAX_X_PX = 0x8000

_BUSY_STATES = frozenset({0x00, 0x01, 0x02, 0x03, 0x04, 0x05, 0x07})
_ENEMY_TYPES = slice(0x16, 0x1B)
_BOWSER, _FLAG = 0x2D, 0x31
_DYING, _DEAD = 0x0B, 0x06


def furthest_at_start(x_px: npt.NDArray[np.int32]) -> npt.NDArray[np.int32]:
    """Furthest x of episodes that begin at these x, int32 (N,): 0 left of an area's start."""
    return np.where(x_px < MAX_X_PX, x_px, 0).astype(np.int32)


def _digits(ram: UInt8Array, address: int, count: int) -> int:
    """Read a figure kept as one decimal digit a byte, as the concatenation of the bytes' values."""
    return int("".join(str(int(byte)) for byte in ram[address : address + count]))


def read_time(ram: UInt8Array) -> int:
    """Read the game clock, 0 … 999."""
    return _digits(ram, 0x07F8, 3)


def is_dying(ram: UInt8Array) -> bool:
    """Tell whether Mario is in his dying animation or falls below the screen."""
    return int(ram[0x0E]) == _DYING or int(ram[0xB5]) > 1


def is_dead(ram: UInt8Array) -> bool:
    """Tell whether Mario is dead."""
    return int(ram[0x0E]) == _DEAD


def is_game_over(ram: UInt8Array) -> bool:
    """Tell whether the last life is gone."""
    return int(ram[0x075A]) == 0xFF


def is_won(ram: UInt8Array) -> bool:
    """Tell whether the last axe of the game was reached."""
    return is_world_over(ram) and int(ram[0x075F]) == 7


def is_busy(ram: UInt8Array) -> bool:
    """Tell whether the controller does nothing now (pipes, entering an area, …)."""
    return int(ram[0x0E]) in _BUSY_STATES


def is_world_over(ram: UInt8Array) -> bool:
    """Tell whether the axe was reached."""
    return int(ram[0x0770]) == 2


def is_flag(ram: UInt8Array) -> bool:
    """Tell whether the level is done: the axe, or sliding down the pole."""
    if is_world_over(ram):
        return True
    enemies = ram[_ENEMY_TYPES]
    # A vine also sets the float state to 3, so a flag or Bowser must be there.
    return bool(((enemies == _BOWSER) | (enemies == _FLAG)).any()) and int(ram[0x1D]) == 3


def read_state(ram: UInt8Array) -> StateArray:
    """Read the 13 values.

    Args:
        ram: uint8 (2048,).

    Returns:
        A structured scalar array, shape (), of :data:`STATE_DTYPE`.
    """
    y_px = int(ram[0x03B8])
    above = int(ram[0xB5]) < 1
    return np.array(
        (
            int(ram[0x6D]) * 0x100 + int(ram[0x86]),
            255 + (255 - y_px) if above else 255 - y_px,
            _digits(ram, 0x07DE, 6),
            _digits(ram, 0x07ED, 2),
            read_time(ram),
            int(ram[0x075A]),
            min(int(ram[0x0756]), 2),
            int(ram[0x075F]) + 1,
            int(ram[0x075C]) + 1,
            int(ram[0x0760]) + 1,
            is_flag(ram),
            is_dying(ram) or is_dead(ram),
            int(ram[0x0E]),
        ),
        dtype=STATE_DTYPE,
    )
