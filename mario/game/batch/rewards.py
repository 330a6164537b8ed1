"""The reward of each game of a batch."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from mario.config.game import GameConfig
from mario.game.batch.contract import BatchStep
from mario.game.smb.rewards import Float64Array, step_rewards


def batch_rewards(
    game: GameConfig, step: BatchStep, furthest_before_px: npt.NDArray[np.int32]
) -> Float64Array:
    """Reward a step of a batch.

    Args:
        game: the settings of the batch; its reward is paid.
        step: what the step did.
        furthest_before_px: int32 (N,), furthest x of each episode when the step began.

    Returns:
        float64 (N,), rewards after scaling.
    """
    return step_rewards(
        game.reward,
        step.before,
        step.after,
        furthest_before_px=furthest_before_px,
        furthest_after_px=step.furthest_x_px,
        end=step.end,
        game_reward=step.game_reward,
        frame_skip=game.frame_skip,
    )
