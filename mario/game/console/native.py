"""This project's own console: the native extension behind the console Protocol."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mario.errors import ConsoleError
from mario.game.console.cartridge import rom_bytes
from mario.game.console.contract import UInt8Array

if TYPE_CHECKING:
    from types import ModuleType


def native_module() -> ModuleType:
    """Import the native extension.

    Raises:
        ConsoleError: the extension was not built, because there was no C++ compiler at install.
    """
    try:
        from mario.game import _native
    except ImportError as error:
        raise ConsoleError(
            f"the native console is not built ({error}): expected the extension module "
            "mario.game._native; install a C++17 compiler (g++ or clang) and run `pip install .` "
            "again, or set `console: nes-py` in the configuration, which is slower"
        ) from error
    return _native


class NativeConsole:
    """A native console, bit-exact with nes-py.

    The picture is drawn with the last frame of a step, or later if it was not asked for then: a
    save-state keeps what the picture is drawn from, not the picture.
    """

    def __init__(self, rom: bytes | None = None, *, draw: bool = True) -> None:
        """Switch the console on.

        Args:
            rom: an iNES image; None: Super Mario Bros as gym-super-mario-bros installs it.
            draw: whether each step draws its last frame at once. Without, `screen_rgb` and
                `screen_grey` run that frame again when called: better where few pictures are
                looked at (search).

        Raises:
            RomError: the image is not one that this console can run.
            ConsoleError: the native extension is not built.
        """
        self._core = native_module().Console(rom_bytes() if rom is None else rom)
        self._ram: UInt8Array = self._core.ram
        self._draw = draw

    @property
    def ram(self) -> UInt8Array:
        """The work RAM: uint8 (2048,), read-only, the console's own memory."""
        return self._ram

    def reset(self) -> None:
        """Switch the console off and on."""
        self._core.reset()

    def step(self, buttons: int, frames: int = 1) -> None:
        """Hold `buttons` (0…255) for `frames` frames (≥ 0); other threads run meanwhile.

        Raises:
            ConsoleError: an argument is out of range.
        """
        self._core.step(buttons, frames, self._draw)

    def poke(self, address: int, value: int) -> None:
        """Write one byte of work RAM.

        Raises:
            ConsoleError: the address or the value is out of range.
        """
        self._core.poke(address, value)

    def screen_rgb(self) -> UInt8Array:
        """Copy the picture of the last frame: uint8 (240, 256, 3); black at power-on."""
        screen: UInt8Array = self._core.screen_rgb()
        return screen

    def screen_grey(self) -> UInt8Array:
        """Copy the picture of the last frame in grey: uint8 (240, 256)."""
        screen: UInt8Array = self._core.screen_grey()
        return screen

    def save_state(self) -> bytes:
        """Take the whole state, about 9 KB; any native console with the same cartridge loads it."""
        state: bytes = self._core.save_state()
        return state

    def load_state(self, state: bytes) -> None:
        """Go on from a state.

        Raises:
            SaveStateError: the bytes are not such a state; the console is as it was.
        """
        self._core.load_state(state)
