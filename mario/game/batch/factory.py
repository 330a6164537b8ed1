"""Open a batch of games."""

from __future__ import annotations

from collections.abc import Sequence

from mario.config.game import GameConfig
from mario.errors import ConfigError
from mario.game.batch.contract import GameBatch


def open_batch(
    slots: int, game: GameConfig, *, buttons: Sequence[int] | None = None, threads: int = 0
) -> GameBatch:
    """Open a batch of games.

    Args:
        slots: number of games, ≥ 1.
        game: what they have in common, the console included.
        buttons: button byte of each action, 0…255; None: those of the game's action set.
        threads: threads that step the games; 0 = all cores. It changes nothing but speed.

    Raises:
        ConfigError: a number is out of range.
        ConsoleError: the console's native build is missing.
    """
    for name, value, least in (("slots", slots, 1), ("threads", threads, 0)):
        if value < least:
            raise ConfigError(f"{name} = {value}: expected at least {least}; correct the number")
    if game.console == "native":
        from mario.game.batch.native import NativeBatch

        return NativeBatch(slots, game, buttons, threads)
    from mario.game.batch.oracle import ConsoleBatch

    return ConsoleBatch(slots, game, buttons)
