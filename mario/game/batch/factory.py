"""Open a batch of games."""

from __future__ import annotations

from collections.abc import Sequence

from mario.config.game import GameConfig
from mario.errors import ConfigError
from mario.game.batch.contract import GameBatch
from mario.game.batch.observed import ObservedBatch
from mario.game.smb.observations.factory import observation_kind


def open_batch(
    slots: int,
    game: GameConfig,
    *,
    observation: str = "pixels",
    buttons: Sequence[int] | None = None,
    threads: int = 0,
) -> GameBatch:
    """Open a batch of games.

    Args:
        slots: number of games, ≥ 1.
        game: settings of the game, the console included.
        observation: the kind of observation.
        buttons: button byte of each action, 0…255; None: those of the game's action set.
        threads: threads that step the games; 0 = all cores. The number affects speed only.

    Raises:
        ConfigError: a number is out of range, or there is no such kind of observation.
        ConsoleError: the native build is missing.
    """
    for name, value, least in (("slots", slots, 1), ("threads", threads, 0)):
        if value < least:
            raise ConfigError(f"{name} = {value}: expected at least {least}; correct the number")
    kind = observation_kind(observation)
    games: GameBatch
    if game.console == "native":
        from mario.game.batch.native import NativeBatch

        games = NativeBatch(slots, game, buttons, threads)
    else:
        from mario.game.batch.oracle import ConsoleBatch

        games = ConsoleBatch(slots, game, buttons)
    return games if kind.observe is None else ObservedBatch(games, kind)
