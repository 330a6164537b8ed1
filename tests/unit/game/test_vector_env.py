"""MarioVectorEnv plays what N single environments play."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from mario.config.game import GameConfig
from mario.errors import ConfigError, ConsoleError
from mario.game.env import MarioEnv
from mario.game.vector_env import MarioVectorEnv

GAME = GameConfig(max_steps=12, no_op_max_frames=5)
LEVELS = ("1-1", "5-1", "8-2")


@pytest.fixture
def env() -> Iterator[MarioVectorEnv]:
    opened = MarioVectorEnv(3, LEVELS, GAME, threads=2)
    yield opened
    opened.close()


def single(level: str) -> Callable[[], MarioEnv]:
    return lambda: MarioEnv(level, GAME)


def same_info(mine: dict[str, Any], theirs: dict[str, Any]) -> None:
    assert set(mine) == set(theirs)
    for name, value in theirs.items():
        if name == "final_info":
            same_info(mine[name], value)
        elif name == "final_obs":
            for a, b in zip(mine[name], value, strict=True):
                assert (a is None) == (b is None)
                assert a is None or np.array_equal(a, b)
        else:
            assert np.array_equal(mine[name], value), name


def test_it_plays_what_single_environments_play(env: MarioVectorEnv) -> None:
    """Compare with Gymnasium's SyncVectorEnv over MarioEnv, with the same autoreset."""
    reference = SyncVectorEnv(
        [single(level) for level in LEVELS], autoreset_mode=AutoresetMode.SAME_STEP
    )
    generator = np.random.default_rng(0)
    try:
        mine, theirs = env.reset(seed=11), reference.reset(seed=11)
        assert np.array_equal(mine[0], theirs[0])
        same_info(mine[1], theirs[1])
        ends = 0
        for step in range(60):
            actions = generator.integers(0, env.single_action_space.n, 3)  # type: ignore[attr-defined]
            if step == 30:  # in the middle of episodes, two of three, on their own generators
                mask = np.array([True, False, True])
                options = {"reset_mask": mask}
                assert np.array_equal(
                    env.reset(options=dict(options))[0], reference.reset(options=dict(options))[0]
                )
            a, b = env.step(actions), reference.step(actions)
            for index in range(4):
                assert np.array_equal(a[index], b[index]), (step, index)
            same_info(a[4], b[4])
            ends += int(np.sum(a[2] | a[3]))
        assert ends >= 9
    finally:
        reference.close()


def test_spaces_and_shapes(env: MarioVectorEnv) -> None:
    observations, info = env.reset(seed=[1, 2, 3])
    assert observations in env.observation_space
    assert env.action_space.sample().shape == (3,)
    assert info["world"].tolist() == [1, 5, 8]
    assert np.array_equal(env.reset(seed=np.int64(1))[0], observations)  # type: ignore[arg-type]
    kept = observations.copy()
    env.step(np.full(3, 1))
    assert np.array_equal(observations, kept)


def test_a_save_state_is_where_all_start(env: MarioVectorEnv) -> None:
    env.reset(seed=0)
    for _ in range(8):
        env.step(np.full(3, 3))
    state = env.save_state(0)
    _, info = env.reset(options={"state": state})
    assert len(set(info["world"].tolist())) == 1
    assert (info["x_px"] > 60).all()


def test_pictures() -> None:
    opened = MarioVectorEnv(2, "1-1", GAME, render_mode="rgb_array")
    try:
        opened.reset(seed=0)
        pictures = opened.render()
        assert pictures is not None
        assert [picture.shape for picture in pictures] == [(240, 256, 3)] * 2
    finally:
        opened.close()


def test_what_cannot_be_is_refused(env: MarioVectorEnv) -> None:
    with pytest.raises(ConsoleError, match="reset"):
        env.step(np.zeros(3, np.int64))
    with pytest.raises(ConsoleError, match="2 seeds for 3 games"):
        env.reset(seed=[1, 2])
    for mask in (np.zeros(3, np.bool_), np.ones(2, np.bool_), np.ones(3)):
        with pytest.raises(ConsoleError, match="reset_mask"):
            env.reset(options={"reset_mask": mask})
    with pytest.raises(ConfigError, match="2 levels for 3 games"):
        MarioVectorEnv(3, ["1-1", "1-2"], GAME)
    with pytest.raises(ConfigError, match="9-9"):
        MarioVectorEnv(1, "9-9", GAME)
    with pytest.raises(ConsoleError, match="human"):
        MarioVectorEnv(1, render_mode="human")
