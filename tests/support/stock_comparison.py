"""Play the same episodes on the native batch and on gym-super-mario-bros, frame by frame."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field

import cv2
import numpy as np

from mario.config.game import GameConfig
from mario.game.batch.contract import EpisodeSpec, GameBatch
from mario.game.batch.native import NativeBatch
from mario.game.smb.end_reason import EndReason
from mario.game.smb.observations.pixels import OBSERVATION_SHAPE, grey
from tests.support.lockstep import START, playthroughs, random_buttons
from tests.support.stock_env import stock_env

# As in the stock environment: every button byte is an action, a step is a frame, no noise.
GAME = GameConfig(frame_skip=1, no_op_max_frames=0, sticky_probability=0.0, max_steps=10**6)
BUTTONS = tuple(range(256))


@dataclass
class Comparison:
    """How much was compared."""

    frames: int = 0
    ends: dict[str, int] = field(default_factory=dict)
    largest_grey_difference: int = 0

    @property
    def episodes(self) -> int:
        return sum(self.ends.values())


def compare(level: str | None, episodes: int, seed: int, *, film: bool = False) -> Comparison:
    """Play `episodes` episodes at random (the first along the playthrough if `film`) and compare.

    Rewards, ends, all values of `info`, memory and pictures must be equal after every frame; the
    observation must be within one grey level of OpenCV's `INTER_AREA`.
    """
    env = stock_env(level)
    batch: GameBatch = NativeBatch(1, GAME, BUTTONS, threads=1)
    assert isinstance(batch, NativeBatch)
    out = np.zeros((1, *OBSERVATION_SHAPE), np.uint8)
    batch.begin(0, EpisodeSpec(level, 0), out)
    env.reset()
    comparison = Comparison()
    play = playthroughs().get(level or "", []) if film else []
    for episode in range(episodes):
        # Every second end starts the next episode in the same call; after the others the slot is
        # idle, so that memory and picture at the end can be compared, too.
        stays = episode % 2 == 1
        batch.queue(0, None if stays else EpisodeSpec(level, 0))
        _same_picture(batch, env, out[0, -1], comparison)
        for buttons in itertools.chain(play, random_buttons(seed * 1000 + episode)):
            if buttons & START:
                continue  # Start only pauses the game
            screen, reward, done, info = env.step(buttons)
            result = batch.step(np.array([buttons], np.int64), out)
            after = result.after[0]
            assert int(result.game_reward[0]) == reward
            assert (result.end[0] != EndReason.RUNNING) == done
            _same_info(after, info)
            comparison.frames += 1
            if done:
                seen = result.terminal_observations[0, -1]
                comparison.largest_grey_difference = max(
                    comparison.largest_grey_difference, _grey_difference(seen, screen)
                )
                reason = EndReason(int(result.end[0])).name
                comparison.ends[reason] = comparison.ends.get(reason, 0) + 1
                if stays:
                    _same_picture(batch, env, seen, comparison)
                    batch.begin(0, EpisodeSpec(level, 0), out)
                env.reset()
                break
            assert batch.ram(0) == env.ram.tobytes()
            if comparison.frames % 10 == 0:
                _same_picture(batch, env, out[0, -1], comparison)
        play = []
    env.close()
    batch.close()
    return comparison


def _same_info(after: np.void, info: dict[str, object]) -> None:
    names = ("small", "tall", "fireball")
    ours = {
        "coins": after["coins"], "flag_get": bool(after["flag"]), "life": after["life"],
        "score": after["score"], "stage": after["stage"], "status": names[after["status"]],
        "time": after["time_left"], "world": after["world"], "x_pos": after["x_px"],
        "y_pos": after["y_px"],
    }  # fmt: skip
    assert ours == info


def _same_picture(
    batch: NativeBatch, env: object, frame: np.ndarray, comparison: Comparison
) -> None:
    screen = env.screen  # type: ignore[attr-defined]
    assert batch.ram(0) == env.ram.tobytes()  # type: ignore[attr-defined]
    assert np.array_equal(batch.screen_rgb(0), screen)
    comparison.largest_grey_difference = max(
        comparison.largest_grey_difference, _grey_difference(frame, screen)
    )


def _grey_difference(frame: np.ndarray, screen: np.ndarray) -> int:
    opencv = cv2.resize(grey(np.array(screen)), (84, 84), interpolation=cv2.INTER_AREA)
    return int(np.abs(frame.astype(int) - opencv.astype(int)).max())
