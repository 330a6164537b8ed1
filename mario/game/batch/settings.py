"""From the game's section of an experiment to the settings of a batch."""

from __future__ import annotations

from mario.config.game import GameConfig
from mario.game.batch.contract import BatchSettings
from mario.game.smb.actions import action_set


def batch_settings(game: GameConfig, threads: int = 0) -> BatchSettings:
    """The batch settings that a game configuration asks for.

    Args:
        game: the configuration.
        threads: threads that step the games; 0 = all cores.
    """
    return BatchSettings(
        buttons=tuple(action.buttons for action in action_set(game.actions)),
        frame_skip=game.frame_skip,
        max_pool=game.max_pool,
        no_op_max_frames=game.no_op_max_frames,
        sticky_probability=game.sticky_probability,
        max_steps=game.max_steps,
        stuck_limit_steps=game.stuck_limit_steps,
        threads=threads,
    )
