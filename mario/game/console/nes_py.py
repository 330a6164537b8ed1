"""The console of nes-py: slow, and the reference for the native console."""

from __future__ import annotations

import contextlib
import io
import struct
import zlib
from typing import Any

import numpy as np

from mario.errors import ConsoleError, SaveStateError
from mario.game.console.cartridge import rom_path
from mario.game.console.contract import RAM_BYTES, UInt8Array
from mario.game.smb.observations.pixels import grey

_MAGIC = b"NPY1"
_STEP, _POKE = 0, 1
_ENTRY = struct.Struct("<BHI")  # kind, buttons or address, frames or value


def _nes_env_class() -> type[Any]:
    """Return nes-py's environment class, patched for NumPy 2.

    nes-py multiplies uint8 header bytes by 16 and by 8, which overflows under NumPy 2's promotion
    rules (NEP 50); the patch gives its ROM reader a header of int64. `gym`, which nes-py imports,
    prints a deprecation notice on import, which is suppressed.
    """
    with contextlib.redirect_stderr(io.StringIO()):
        from nes_py import NESEnv
        from nes_py._rom import ROM

    header = ROM.__dict__.get("header")
    if not isinstance(header, property) or header.fget is None:
        raise ConsoleError(
            "nes-py's ROM reader has an unknown shape: expected nes-py 8.2.1; install that version"
        )
    if not getattr(ROM, "_mario_wide_header", False):
        original = header.fget
        ROM.header = property(lambda rom: original(rom).astype(np.int64))
        ROM._mario_wide_header = True
    return NESEnv  # type: ignore[no-any-return]


class NesPyConsole:
    """A console of nes-py.

    nes-py holds one saved state and cannot export it. So a save-state is the list of all calls
    since power-on. Loading replays it, from nes-py's own saved state where that is a prefix of the
    list. This is exact, portable, and slow for long games.
    """

    def __init__(self) -> None:
        """Power the console on with Super Mario Bros."""
        self._ram = np.zeros(RAM_BYTES, dtype=np.uint8)
        self._view = self._ram.view()
        self._view.flags.writeable = False
        self._log: list[tuple[int, int, int]] = []
        self._kept: list[tuple[int, int, int]] | None = None
        self._env: Any = None
        self.reset()

    @property
    def ram(self) -> UInt8Array:
        """The work RAM: uint8 (2048,), read-only, a view that each step changes."""
        return self._view

    def reset(self) -> None:
        """Power the console off and on."""
        # nes-py's own reset keeps the memory of the game before, so open another machine.
        old, self._env = self._env, _nes_env_class()(str(rom_path()))
        if old is not None:
            old.close()
        self._env.reset()
        self._log, self._kept = [], None
        self._ram[:] = self._env.ram

    def step(self, buttons: int, frames: int = 1) -> None:
        """Hold `buttons` for `frames` frames."""
        if not 0 <= buttons <= 0xFF or frames < 0:
            raise ConsoleError(
                f"step(buttons={buttons}, frames={frames}): expected buttons 0-255 and frames >= 0"
            )
        if frames == 0:
            return
        for _ in range(frames):
            self._env._frame_advance(buttons)
        self._ram[:] = self._env.ram
        if self._log and self._log[-1][:2] == (_STEP, buttons):
            self._log[-1] = (_STEP, buttons, self._log[-1][2] + frames)
        else:
            self._log.append((_STEP, buttons, frames))

    def poke(self, address: int, value: int) -> None:
        """Write one byte of work RAM."""
        if not 0 <= address < self._ram.size or not 0 <= value <= 0xFF:
            raise ConsoleError(
                f"poke(address={address}, value={value}): expected address 0-2047, value 0-255"
            )
        self._env.ram[address] = value
        self._ram[address] = value
        self._log.append((_POKE, address, value))

    def screen_rgb(self) -> UInt8Array:
        """Copy the picture: uint8 (240, 256, 3)."""
        screen = self._env.screen
        copy = np.empty(screen.shape, np.uint8)
        # The view's channels are reversed; by channel, NumPy copies rows and not single pixels.
        for channel in range(screen.shape[-1]):
            copy[..., channel] = screen[..., channel]
        return copy

    def screen_grey(self) -> UInt8Array:
        """Copy the picture in grey: uint8 (240, 256)."""
        return grey(self._env.screen)

    def save_state(self) -> bytes:
        """Save the whole state, as the list of all calls since power-on."""
        self._env._backup()
        self._kept = list(self._log)
        body = b"".join(_ENTRY.pack(*entry) for entry in self._log)
        return _MAGIC + struct.pack("<I", zlib.crc32(body)) + body

    def load_state(self, state: bytes) -> None:
        """Load a state of :meth:`save_state`.

        Raises:
            SaveStateError: the bytes are not such a state.
        """
        log = _parse(state)
        kept = self._kept
        done = len(kept) if kept is not None and log[: len(kept)] == kept else -1
        if done >= 0:
            self._env._restore()
            self._ram[:] = self._env.ram
            self._log = list(log[:done])
        else:
            self.reset()
            done = 0
        for kind, what, amount in log[done:]:
            if kind == _STEP:
                self.step(what, amount)
            else:
                self.poke(what, amount)


def _parse(state: bytes) -> list[tuple[int, int, int]]:
    body = state[8:]
    if (
        len(state) < 8
        or state[:4] != _MAGIC
        or len(body) % _ENTRY.size
        or struct.unpack("<I", state[4:8])[0] != zlib.crc32(body)
    ):
        raise SaveStateError(
            f"{len(state)} bytes that are not a save-state of the nes-py console: expected what "
            "its save_state() returned; take the state again with `console: nes-py`"
        )
    log = [_ENTRY.unpack_from(body, i) for i in range(0, len(body), _ENTRY.size)]
    for kind, what, amount in log:
        possible = what <= 0xFF if kind == _STEP else what < RAM_BYTES and amount <= 0xFF
        if kind not in (_STEP, _POKE) or not possible:
            raise SaveStateError(
                f"a save-state of the nes-py console with the entry {(kind, what, amount)}: "
                "expected frames with a button byte, or a byte of memory; take the state again"
            )
    return log
