"""Open a console by its name."""

from __future__ import annotations

from mario.config.game import ConsoleName
from mario.errors import ConsoleError
from mario.game.console.contract import Console


def open_console(name: ConsoleName = "native") -> Console:
    """Open a console and power it on.

    Args:
        name: `native`; or `nes-py`, the reference, which needs no native build and is slower.

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
