"""The settings of the game that a policy is trained on."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from mario.config.rewards import RewardConfig
from mario.config.section import NonNegativeInt, PositiveInt, Section


class GameConfig(Section):
    """The game as the policy meets it while training."""

    console: Literal["native", "nes-py"] = "native"
    actions: Literal["right_only", "simple", "simple_left_jump", "complex"] = "simple"
    frame_skip: PositiveInt = 4
    max_pool: bool = False
    no_op_max_frames: NonNegativeInt = 30
    sticky_probability: Annotated[float, Field(ge=0, lt=1)] = 0.25
    max_steps: PositiveInt = 3000
    stuck_limit_steps: NonNegativeInt = 0
    reward: RewardConfig = RewardConfig()
