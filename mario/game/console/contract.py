"""The contract of a console: an NES emulator.

Two implementations pass the same contract tests: `nes_py.NesPyConsole`, the reference, and
`native.NativeConsole`, which is bit-exact with it and fast.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
import numpy.typing as npt

RAM_BYTES = 0x800
SCREEN_HEIGHT_PX = 240
SCREEN_WIDTH_PX = 256
#: Console frames in a second (NTSC).
FRAMES_PER_SECOND = 60.0988

UInt8Array = npt.NDArray[np.uint8]


class Console(Protocol):
    """One NES with a cartridge, and a controller in port 1."""

    @property
    def ram(self) -> UInt8Array:
        """The 2 KiB of work RAM: uint8 (2048,), read-only, a view that each step changes."""
        ...

    def reset(self) -> None:
        """Power the console off and on."""
        ...

    def step(self, buttons: int, frames: int = 1) -> None:
        """Hold `buttons` (button byte, 0…255) for `frames` console frames (≥ 0)."""
        ...

    def poke(self, address: int, value: int) -> None:
        """Write one byte (0…255) of work RAM at `address` (0…2047)."""
        ...

    def screen_rgb(self) -> UInt8Array:
        """Copy the picture of the last frame: uint8 (240, 256, 3), red first."""
        ...

    def screen_grey(self) -> UInt8Array:
        """Copy the picture of the last frame in grey: uint8 (240, 256), see `pixels.grey`."""
        ...

    def save_state(self) -> bytes:
        """Save the whole state; any console of the same implementation can load it."""
        ...

    def load_state(self, state: bytes) -> None:
        """Load a state.

        Raises:
            SaveStateError: the bytes are not a state of this implementation and cartridge; the
                console is unchanged.
        """
        ...
