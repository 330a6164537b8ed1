"""MarioEnv follows Gymnasium's interface."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from mario.config.game import GameConfig
from mario.config.rewards import GameReward
from mario.errors import ConfigError, ConsoleError
from mario.game.console.factory import open_console
from mario.game.env import MarioEnv
from mario.game.smb.memory import MAX_X_PX, STATE_FIELDS, Ram
from mario.game.smb.stage import start_level
from mario.game.vector_env import MarioVectorEnv
from mario.game.video import write_mp4
from tests.support.videos import moving_share

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
    """The last observation of a truncated episode is that of an episode that continues."""
    env, longer = (MarioEnv("1-1", GameConfig(**QUIET, max_steps=n)) for n in (4, 5))
    env.reset(seed=0)
    longer.reset(seed=0)
    for step in range(4):
        observation, _, _, truncated, _ = env.step(np.int64(3))
        expected, _, _, still_running, _ = longer.step(np.int64(3))
        assert np.array_equal(observation, expected)
        assert (truncated, still_running) == (step == 3, False)


def test_an_episode_goes_on_from_a_save_state() -> None:
    env, other = MarioEnv("1-1", GameConfig(**QUIET)), MarioEnv("1-1", GameConfig(**QUIET))
    env.reset(seed=0)
    for _ in range(12):
        env.step(np.int64(3))
    observation, info = other.reset(seed=9, options={"state": env.save_state()})
    assert info["x_px"] > 100
    assert (info["steps"], info["furthest_x_px"]) == (0, info["x_px"])
    for action in (3, 4, 4, 1, 6):
        expected, reward, *_, ours = env.step(np.int64(action))
        observation, theirs, *_, info = other.step(np.int64(action))
        assert theirs == reward
        assert np.array_equal(observation[-1], expected[-1])
        assert [info[name] for name in STATE_FIELDS] == [ours[name] for name in STATE_FIELDS]


def test_the_seed_of_an_episode_can_be_given() -> None:
    env = MarioEnv("1-1")
    first = env.reset(seed=1, options={"episode_seed": 77})[0]
    assert np.array_equal(env.reset(seed=2, options={"episode_seed": 77})[0], first)
    starts = [env.reset(options={"episode_seed": seed})[0].tobytes() for seed in range(5)]
    assert len(set(starts)) > 1


def test_an_x_left_of_the_area_is_no_furthest_x() -> None:
    """A save-state of the loop in 4-4, where the game's x is 65,535 for some frames."""
    console = open_console("native")
    start_level(console, "4-4")
    console.poke(Ram.PLAYER_PAGE, 0xFF)
    state = console.save_state()
    env = MarioEnv("4-4", GameConfig(**QUIET))
    _, info = env.reset(options={"state": state})
    assert info["x_px"] >= MAX_X_PX
    assert info["furthest_x_px"] == 0
    games = MarioVectorEnv(2, "4-4", GameConfig(**QUIET), threads=1)
    _, infos = games.reset(options={"state": state})
    assert infos["furthest_x_px"].tolist() == [0, 0]
    games.close()


@pytest.mark.parametrize(("frame_skip", "fps"), [(4, 15), (1, 60), (100, 1)])
def test_a_video_of_its_pictures_runs_at_the_consoles_speed(frame_skip: int, fps: int) -> None:
    game = GameConfig(frame_skip=frame_skip)
    assert MarioEnv("1-1", game).metadata["render_fps"] == fps
    assert MarioVectorEnv(1, "1-1", game).metadata["render_fps"] == fps


def test_game_reward_is_what_gym_super_mario_bros_pays() -> None:
    from gym_super_mario_bros.smb_env import SuperMarioBrosEnv

    from mario.game.console.nes_py import _nes_env_class

    _nes_env_class()  # patches nes-py for NumPy 2

    class Stock(SuperMarioBrosEnv):  # type: ignore[misc]
        """The stock environment, with RAM bytes as Python integers for NumPy 2."""

        def _ram_buffer(self) -> np.ndarray:
            return super()._ram_buffer().view(_WideReads)

    env = MarioEnv("1-1", GameConfig(**QUIET, frame_skip=1, reward=GameReward()))
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
    """RAM whose single bytes are Python integers."""

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

    def live_view() -> Iterator[np.ndarray]:
        """Yield one buffer that changes: the recorder must copy each picture."""
        buffer = np.empty_like(frames[0])
        for picture in frames:
            buffer[:] = picture
            yield buffer

    assert write_mp4(tmp_path / "live.mp4", live_view(), frame_skip=2) == 25
    assert moving_share(tmp_path / "live.mp4") == moving_share(tmp_path / "moving.mp4")
    for name, skip in (("moving", 4), ("live", 2)):
        with av.open(str(tmp_path / f"{name}.mp4")) as video:
            assert float(video.streams.video[0].average_rate) == pytest.approx(
                60.0988 / skip, abs=0.05
            )


def test_no_pictures_leave_no_file(tmp_path: Path) -> None:
    with pytest.raises(ConsoleError, match="got no pictures"):
        write_mp4(tmp_path / "empty.mp4", [])
    assert list(tmp_path.iterdir()) == []


def test_unknown_level_and_render_mode_are_refused() -> None:
    with pytest.raises(ConfigError, match="expected"):
        MarioEnv("9-9")
    with pytest.raises(ConsoleError, match="rgb_array"):
        MarioEnv("1-1", render_mode="human")
