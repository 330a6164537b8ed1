"""The reward of a step: a pure function of the game's values before and after, for N games.

`mario.config.rewards` declares the rewards and their terms; this module sums the terms.

A change of x by more than 5 px per frame is a change of area and counts as no movement
(gym-super-mario-bros 7.4.0, `SuperMarioBrosEnv._x_reward`).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from mario.config.rewards import RewardConfig
from mario.game.smb.end_reason import EndReason
from mario.game.smb.memory import StateArray

Float64Array = npt.NDArray[np.float64]

#: Largest movement of Mario in one frame; more is a change of area.
MAX_MOVE_PX_PER_FRAME = 5


def step_rewards(
    reward: RewardConfig,
    before: StateArray,
    after: StateArray,
    *,
    furthest_before_px: npt.NDArray[np.int32],
    furthest_after_px: npt.NDArray[np.int32],
    end: npt.NDArray[np.int8],
    game_reward: npt.NDArray[np.int32],
    frame_skip: int,
) -> Float64Array:
    """Reward one step of N games.

    Args:
        reward: the reward.
        before: STATE_DTYPE (N,), when the step began.
        after: STATE_DTYPE (N,), when it ended.
        furthest_before_px: int32 (N,), furthest x of the episode when the step began.
        furthest_after_px: int32 (N,), … when it ended.
        end: int8 (N,), an :class:`~mario.game.smb.end_reason.EndReason`.
        game_reward: int32 (N,), gym-super-mario-bros' own reward of the step.
        frame_skip: frames of a step, ≥ 1; bounds how far Mario can move in it.

    Returns:
        float64 (N,), rewards after scaling.
    """
    limit = MAX_MOVE_PX_PER_FRAME * frame_skip
    moved = after["x_px"].astype(np.int64) - before["x_px"]
    moved = np.where(np.abs(moved) <= limit, moved, 0)
    gained = furthest_after_px.astype(np.int64) - furthest_before_px
    gained = np.where(gained <= limit, np.maximum(gained, 0), 0)
    forward = gained if reward.new_x_only else np.maximum(moved, 0)
    # The clock counts down; it jumps up only when another level or life begins.
    passed = np.maximum(before["time_left"].astype(np.int64) - after["time_left"], 0)
    died = (end == EndReason.DEATH) | (end == EndReason.TIME_OUT)
    total = (
        reward.game_weight * game_reward
        + reward.forward_per_px * forward
        + reward.backward_per_px * np.maximum(-moved, 0)
        + reward.idle_per_step * (moved == 0)
        + reward.time_per_unit * passed
        + reward.flag * (end == EndReason.FLAG)
        + reward.death * died
    )
    for x_px, bonus in reward.milestones.items():
        total = total + bonus * ((furthest_before_px < x_px) & (furthest_after_px >= x_px))
    return np.asarray(reward.scale * total, dtype=np.float64)
