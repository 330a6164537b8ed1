"""Rewards: pure functions of the game's values before and after a step, for all games at once.

Four rewards, by name: `game` is gym-super-mario-bros' own; `standard` adds shaping to it;
`speedrun` and `progress` stand for themselves. Every number is in the configuration; what it leaves
out is taken from :data:`DEFAULTS`.

A change of x by more than 5 px a frame is a change of area, not a movement (gym-super-mario-bros
7.4.0, `SuperMarioBrosEnv._x_reward`), so it neither pays nor costs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType

import numpy as np
import numpy.typing as npt

from mario.config.rewards import RewardConfig
from mario.game.batch.contract import EndReason
from mario.game.smb.memory import StateArray

Float64Array = npt.NDArray[np.float64]

#: Largest movement of Mario in one frame; more is a change of area.
MAX_MOVE_PX_PER_FRAME = 5

_STANDARD_MILESTONES = {650: 150.0, 900: 100.0, 1200: 150.0, 1600: 200.0, 2000: 250.0}
_SPEEDRUN_MILESTONES = {
    400: 50.0, 800: 100.0, 1200: 150.0, 1600: 200.0, 2000: 250.0, 2400: 300.0, 2800: 350.0,
    3200: 400.0,
}  # fmt: skip


@dataclass(frozen=True)
class RewardTerms:
    """All parameters of a reward, in reward units.

    Attributes:
        game: weight of gym-super-mario-bros' own reward.
        forward_per_px: for each px to the right, or for each px of new furthest x.
        backward_per_px: for each px to the left.
        idle_per_step: for a step that does not change x.
        time_per_unit: for each unit of the game's clock that passes (about 0.4 s).
        flag: for the flag pole or the axe.
        death: for a death, the game's time-out included.
        milestones: bonus by furthest x in px, paid once an episode when it is reached.
        new_x_only: whether forward pays only for furthest x that is new in the episode.
        scale: what the sum is multiplied with.
    """

    game: float = 0.0
    forward_per_px: float = 0.0
    backward_per_px: float = 0.0
    idle_per_step: float = 0.0
    time_per_unit: float = 0.0
    flag: float = 0.0
    death: float = 0.0
    milestones: Mapping[int, float] = field(default_factory=dict)
    new_x_only: bool = False
    scale: float = 1.0


#: The named rewards with their own parameters.
DEFAULTS: MappingProxyType[str, RewardTerms] = MappingProxyType(
    {
        "game": RewardTerms(game=1.0),
        "standard": RewardTerms(
            game=1.0, forward_per_px=0.1, backward_per_px=-0.1, idle_per_step=-0.2, death=-50.0,
            milestones=_STANDARD_MILESTONES,
        ),
        "speedrun": RewardTerms(
            forward_per_px=1.0, backward_per_px=-0.4, idle_per_step=-1.0, flag=1000.0,
            death=-200.0, milestones=_SPEEDRUN_MILESTONES,
        ),
        "progress": RewardTerms(
            forward_per_px=0.1, time_per_unit=-0.1, flag=10.0, death=-2.5, new_x_only=True,
        ),
    }
)  # fmt: skip


def reward_terms(config: RewardConfig) -> RewardTerms:
    """Take a named reward's parameters and put in what the configuration says otherwise."""
    given = {
        name: value
        for name, value in config.model_dump(exclude={"name"}).items()
        if value is not None
    }
    return replace(DEFAULTS[config.name], **given)


def step_rewards(
    terms: RewardTerms,
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
        terms: the parameters.
        before: STATE_DTYPE (N,), when the step began.
        after: STATE_DTYPE (N,), when it ended.
        furthest_before_px: int32 (N,), furthest x of the episode when the step began.
        furthest_after_px: int32 (N,), … when it ended.
        end: int8 (N,), an :class:`~mario.game.batch.contract.EndReason`.
        game_reward: int32 (N,), gym-super-mario-bros' own reward of the step.
        frame_skip: frames a step lasts, ≥ 1; bounds how far Mario can have moved.

    Returns:
        float64 (N,), rewards after scaling.
    """
    limit = MAX_MOVE_PX_PER_FRAME * frame_skip
    moved = after["x_px"].astype(np.int64) - before["x_px"]
    moved = np.where(np.abs(moved) <= limit, moved, 0)
    gained = furthest_after_px.astype(np.int64) - furthest_before_px
    gained = np.where(gained <= limit, np.maximum(gained, 0), 0)
    forward = gained if terms.new_x_only else np.maximum(moved, 0)
    # The clock runs down; it only jumps up when another level or life begins.
    passed = np.maximum(before["time_left"].astype(np.int64) - after["time_left"], 0)
    died = (end == EndReason.DEATH) | (end == EndReason.TIME_OUT)
    total = (
        terms.game * game_reward
        + terms.forward_per_px * forward
        + terms.backward_per_px * np.maximum(-moved, 0)
        + terms.idle_per_step * (moved == 0)
        + terms.time_per_unit * passed
        + terms.flag * (end == EndReason.FLAG)
        + terms.death * died
    )
    for x_px, bonus in terms.milestones.items():
        total = total + bonus * ((furthest_before_px < x_px) & (furthest_after_px >= x_px))
    return np.asarray(terms.scale * total, dtype=np.float64)
