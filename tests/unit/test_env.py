"""MarioEnv as Gymnasium wants it, and as a person uses it."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from mario.config import GameConfig, RewardConfig
from mario.errors import ConfigError, ConsoleError
from mario.game.env import MarioEnv
from mario.game.recorder import moving_share, write_mp4
from mario.game.state import STATE_FIELDS

QUIET = {"no_op_max_frames": 0, "sticky_probability": 0.0}
WALK = 1


@pytest.mark.parametrize("console", ["nes-py", "native"])
def test_gymnasium_finds_nothing_to_complain_about(console: str) -> None:
    env = MarioEnv("1-1", GameConfig(console=console, max_steps=50), render_mode="rgb_array")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        # The checker makes environments through a spec; this one is made directly.
        warnings.filterwarnings("ignore", message=".*spec.*")
        check_env(env, skip_render_check=True)
    env.close()


def test_info_holds_the_thirteen_values_and_the_end() -> None:
    env = MarioEnv("1-1", GameConfig(**QUIET))
    _, info = env.reset(seed=3)
    assert set(STATE_FIELDS) <= set(info)
    assert (info["world"], info["stage"], info["end"]) == (1, 1, "running")
    terminated = False
    while not terminated:
        observation, reward, terminated, truncated, info = env.step(np.int64(WALK))
        assert not truncated
    assert info["end"] == "death"
    assert info["dying"] == 1
    assert info["furthest_x_px"] > 250
    assert reward < 0
    assert observation.shape == (4, 84, 84)
    with pytest.raises(ConsoleError, match="reset"):
        env.step(np.int64(WALK))


def test_same_seed_same_episode_and_other_seeds_differ() -> None:
    def trace(seed: int) -> list[bytes]:
        env = MarioEnv("1-1")
        seen = [env.reset(seed=seed)[0].tobytes()]
        seen += [env.step(np.int64(3))[0].tobytes() for _ in range(20)]
        return seen

    assert trace(1) == trace(1)
    assert trace(1) != trace(2)


def test_the_terminal_observation_is_the_one_of_the_end() -> None:
    """Auto-reset must not put the next episode's first picture in its place."""
    env = MarioEnv("1-1", GameConfig(**QUIET, max_steps=4))
    first, _ = env.reset(seed=0)
    truncated = False
    while not truncated:
        observation, _, _, truncated, _ = env.step(np.int64(3))
    assert not np.array_equal(observation[-1], first[-1])


def test_game_reward_is_what_gym_super_mario_bros_pays() -> None:
    from gym_super_mario_bros.smb_env import SuperMarioBrosEnv

    from mario.game.nes_py_console import _nes_env_class

    _nes_env_class()  # mends nes-py for NumPy 2

    class Stock(SuperMarioBrosEnv):  # type: ignore[misc]
        """The stock environment; RAM reads become wide integers as NumPy 2 needs."""

        def _ram_buffer(self) -> np.ndarray:
            return super()._ram_buffer().view(_WideReads)

    env = MarioEnv("1-1", GameConfig(**QUIET, frame_skip=1, reward=RewardConfig(name="game")))
    env.reset(seed=0)
    stock = Stock(rom_mode="vanilla", target=(1, 1))
    stock.reset()
    generator = np.random.default_rng(5)
    done = False
    frames = 0
    while not done and frames < 600:
        action = int(generator.choice([1, 2, 3, 4], p=[0.1, 0.1, 0.3, 0.5]))
        for _ in range(8):
            _, ours, terminated, _, _ = env.step(np.int64(action))
            _, theirs, done, _ = stock.step(env.actions[action].buttons)
            frames += 1
            assert ours == theirs
            assert terminated == done
            if done:
                break
    assert frames > 50
    stock.close()


class _WideReads(np.ndarray):
    """Gives Python integers where a single byte is read."""

    def __getitem__(self, key: object) -> object:
        value = super().__getitem__(key)  # type: ignore[index]
        return int(value) if isinstance(key, int) else value


def test_videos_move_and_a_frozen_one_is_found_out(tmp_path: Path) -> None:
    env = MarioEnv("1-1", GameConfig(**QUIET), render_mode="rgb_array")
    env.reset(seed=0)
    frames = []
    for _ in range(25):
        env.step(np.int64(3))
        picture = env.render()
        assert picture is not None
        frames.append(picture)
    assert write_mp4(tmp_path / "moving.mp4", frames) == 25
    write_mp4(tmp_path / "frozen.mp4", [frames[-1]] * 25)
    assert moving_share(tmp_path / "moving.mp4") > 0.9
    assert moving_share(tmp_path / "frozen.mp4") == 0


def test_no_pictures_leave_no_file(tmp_path: Path) -> None:
    with pytest.raises(ConsoleError, match="got no pictures"):
        write_mp4(tmp_path / "empty.mp4", [])
    assert list(tmp_path.iterdir()) == []


def test_unknown_level_and_render_mode_are_refused() -> None:
    with pytest.raises(ConfigError, match="expected"):
        MarioEnv("9-9")
    with pytest.raises(ConsoleError, match="rgb_array"):
        MarioEnv("1-1", render_mode="human")
