"""The native console: this project's own emulator in C++."""

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
        ConsoleError: the extension is not built: there was no C++ compiler at installation.
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

    The picture is drawn in the last frame of a step, or when it is read. A save-state holds what
    the picture is drawn from, not the picture.
    """

    def __init__(self, rom: bytes | None = None, *, draw: bool = True) -> None:
        """Power the console on.

        Args:
            rom: an iNES image; None: Super Mario Bros as gym-super-mario-bros installs it.
            draw: whether each step draws its last frame. If not, `screen_rgb` and `screen_grey`
                run that frame again when called, which is faster where few pictures are read.

        Raises:
            RomError: this console cannot run the image.
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
        """Power the console off and on."""
        self._core.reset()

    def step(self, buttons: int, frames: int = 1) -> None:
        """Hold `buttons` (0…255) for `frames` frames (≥ 0) without the interpreter lock.

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
        """Save the state, about 9 KB; any native console with the same cartridge can load it."""
        state: bytes = self._core.save_state()
        return state

    def load_state(self, state: bytes) -> None:
        """Load a state.

        Raises:
            SaveStateError: the bytes are not such a state; the console is unchanged.
        """
        self._core.load_state(state)
