"""The constants of the evaluation protocol are declared once, and every game uses them."""

from __future__ import annotations

import inspect

from mario.client.client import MarioClient
from mario.config import evaluation
from mario.config.game import GameConfig
from mario.evaluation.protocol import protocol_game
from mario.game.smb.actions import action_set
from mario.policy.policy import RandomPolicy

CONSTANTS = {
    "frame_skip": evaluation.FRAME_SKIP,
    "no_op_max_frames": evaluation.NO_OP_MAX_FRAMES,
    "sticky_probability": evaluation.STICKY_PROBABILITY,
    "max_steps": evaluation.MAX_STEPS,
}


def test_the_constants_are_those_of_version_1() -> None:
    assert evaluation.PROTOCOL == "mario-eval-v1"
    assert [*CONSTANTS.values()] == [4, 30, 0.25, 3_000]


def test_training_plays_the_protocols_game_by_default() -> None:
    assert {name: getattr(GameConfig(), name) for name in CONSTANTS} == CONSTANTS


def test_evaluation_plays_the_protocols_game_with_the_policys_frame_skip() -> None:
    game = protocol_game(RandomPolicy(action_set("simple"), frame_skip=2))
    assert {name: getattr(game, name) for name in CONSTANTS} == {**CONSTANTS, "frame_skip": 2}


def test_the_client_which_installs_alone_plays_the_protocols_game() -> None:
    signature = inspect.signature(MarioClient.play).parameters
    for name in ("frame_skip", "max_steps"):
        assert signature[name].default == CONSTANTS[name]
