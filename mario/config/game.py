"""The settings of the game that a policy plays."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from mario.config.action_sets import ActionSetName
from mario.config.evaluation import (
    FRAME_SKIP,
    MAX_STEPS,
    NO_OP_MAX_FRAMES,
    STICKY_PROBABILITY,
)
from mario.config.rewards import ProgressReward, Reward
from mario.config.section import NonNegativeInt, PositiveInt, Section

ConsoleName = Literal["native", "nes-py"]


class GameConfig(Section):
    """The game as a policy plays it; the defaults are those of the evaluation protocol.

    Attributes:
        console: the emulator; `nes-py` needs no native build and is slower.
        actions: name of the action set.
        frame_skip: controllable frames that an action is held for.
        max_pool: whether the observation is the pixelwise maximum of a step's last two frames.
        no_op_max_frames: an episode starts with 0 … this many frames of no input, drawn by the
            episode's generator.
        sticky_probability: chance per frame that the console sees the buttons of the frame before
            (Machado et al. 2018, section 5).
        max_steps: an episode is truncated after this many steps.
        stuck_limit_steps: … or when the furthest x has not grown for this many steps; 0 = never.
            In the whole game the furthest x is that of all levels so far, so leave it 0 there.
        reward: how a step is rewarded.
    """

    console: ConsoleName = "native"
    actions: ActionSetName = "simple"
    frame_skip: PositiveInt = FRAME_SKIP
    max_pool: bool = False
    no_op_max_frames: NonNegativeInt = NO_OP_MAX_FRAMES
    sticky_probability: Annotated[float, Field(ge=0, lt=1)] = STICKY_PROBABILITY
    max_steps: PositiveInt = MAX_STEPS
    stuck_limit_steps: NonNegativeInt = 0
    reward: Reward = ProgressReward()
