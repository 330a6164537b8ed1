"""The console Protocol: what every NES emulator behind this system can do.

Two implementations pass the same contract tests: `nes_py_console.NesPyConsole` (the reference) and
`native_console.NativeConsole` (this project's own, bit-exact and fast).
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt

from mario.errors import ConsoleError, RomError

ConsoleName = Literal["native", "nes-py"]

RAM_BYTES = 0x800
SCREEN_HEIGHT_PX = 240
SCREEN_WIDTH_PX = 256
#: Console frames in a second (NTSC).
FRAMES_PER_SECOND = 60.0988

UInt8Array = npt.NDArray[np.uint8]


class Console(Protocol):
    """One NES with a cartridge in it and a controller in port 1."""

    @property
    def ram(self) -> UInt8Array:
        """The 2 KiB of work RAM: uint8 (2048,), read-only, a live view that each step changes."""
        ...

    def reset(self) -> None:
        """Switch the console off and on."""
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
        """Copy the picture of the last frame in grey: uint8 (240, 256), see `observation.grey`."""
        ...

    def save_state(self) -> bytes:
        """Take the whole state; it stays valid for any console of the same implementation."""
        ...

    def load_state(self, state: bytes) -> None:
        """Go on from a state.

        Raises:
            SaveStateError: the bytes are not a state of this implementation and cartridge; the
                console is as it was.
        """
        ...


@cache
def rom_path() -> Path:
    """Find the cartridge image of Super Mario Bros that gym-super-mario-bros installs.

    Raises:
        RomError: the package or its file is not there.
    """
    from importlib.util import find_spec

    spec = find_spec("gym_super_mario_bros")
    if spec is None or spec.origin is None:
        raise RomError(
            "package gym-super-mario-bros not found: expected it installed, since its cartridge "
            "image is what the console plays; run `make setup`"
        )
    path = Path(spec.origin).parent / "_roms" / "super-mario-bros.nes"
    if not path.is_file():
        raise RomError(
            f"cartridge image {path} not found: expected the file of gym-super-mario-bros 7.4.0; "
            "reinstall that package"
        )
    return path


def open_console(name: ConsoleName = "native") -> Console:
    """Switch a console on.

    Args:
        name: `native`, or `nes-py`, the slower reference that needs no native build.

    Raises:
        ConsoleError: there is no such console, or its native build is missing.
    """
    if name == "nes-py":
        from mario.game.console.nes_py import NesPyConsole

        return NesPyConsole()
    if name == "native":
        from mario.game.console.native import NativeConsole

        return NativeConsole()
    raise ConsoleError(f"unknown console {name!r}: expected native or nes-py; set `game.console`")
