"""MarioEnv: one game as a Gymnasium environment.

It is a batch of one game, so observation, noise and ends are those of
`mario.game.batch.contract`.
"""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np

from mario.config.game import GameConfig
from mario.errors import ConsoleError
from mario.game.batch.contract import EpisodeSpec
from mario.game.batch.factory import open_batch
from mario.game.batch.rewards import batch_rewards
from mario.game.console.contract import FRAMES_PER_SECOND, UInt8Array
from mario.game.smb.actions import action_set
from mario.game.smb.end_reason import EndReason
from mario.game.smb.levels import level as find_level
from mario.game.smb.memory import STATE_FIELDS, StateArray, furthest_at_start
from mario.game.smb.observations.contract import ObservationKind, Observations

StepInfo = dict[str, Any]


def state_info(state: StateArray) -> StepInfo:
    """Convert one row of the 13 values to integers by name."""
    return {name: int(state[name]) for name in STATE_FIELDS}


def observation_space(kind: ObservationKind) -> gymnasium.spaces.Box:
    """Describe the observations of a kind to Gymnasium."""
    if kind.dtype == "uint8":
        return gymnasium.spaces.Box(0, 255, kind.shape, np.uint8)
    return gymnasium.spaces.Box(-np.inf, np.inf, kind.shape, np.float32)


def render_fps(game: GameConfig) -> int:
    """Frame rate at which a video of one picture per step plays at the console's speed."""
    return max(1, round(FRAMES_PER_SECOND / game.frame_skip))


class MarioEnv(gymnasium.Env[Observations, np.int64]):
    """One level of Super Mario Bros (or the whole game) as a Gymnasium environment.

    Observation: of a kind of `mario.game.smb.observations`, by default uint8 (4, 84, 84). Action:
    an index into the action set. Reward: as configured. `info` holds the 13 values of
    `mario.game.smb.memory` and `furthest_x_px`, `steps`, `frames`, `end` (name of the end reason,
    lower case).

    Attributes:
        metadata: Gymnasium's; `render_fps` is one picture per step.
    """

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": 15}  # noqa: RUF012

    def __init__(
        self,
        level: str | None = "1-1",
        game: GameConfig | None = None,
        render_mode: str | None = None,
        observation: str = "pixels",
    ) -> None:
        """Open the console.

        Args:
            level: ``"1-1"`` … ``"8-4"``, or None for the whole game with three lives.
            game: actions, frame skip, noise, reward and console; None takes the defaults.
            render_mode: None or ``"rgb_array"``.
            observation: the kind of observation.

        Raises:
            ConfigError: unknown level or kind of observation.
            ConsoleError: no such render mode, or the native build is missing.
        """
        if level is not None:
            find_level(level)
        if render_mode not in (None, "rgb_array"):
            raise ConsoleError(
                f"render_mode {render_mode!r}: expected None or 'rgb_array'; write a video with "
                "mario.game.video"
            )
        self.level = level
        self.game = game or GameConfig()
        self.render_mode = render_mode
        self.metadata = {**self.metadata, "render_fps": render_fps(self.game)}
        self.actions = action_set(self.game.actions)
        self.action_space = gymnasium.spaces.Discrete(len(self.actions))
        self._furthest_px = np.zeros(1, np.int32)
        self._batch = open_batch(1, self.game, observation=observation, threads=1)
        self.observation_space = observation_space(self._batch.observation)
        self._observations = self._batch.observation.zeros(1)
        self._playing = False

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observations, StepInfo]:
        """Start an episode.

        Args:
            seed: seed of the environment's generator, from which each episode's seed is drawn.
            options: ``{"state": bytes}`` starts from a console save-state; ``{"episode_seed":
                int}`` sets the episode's seed.

        Returns:
            The first observation and the info.
        """
        super().reset(seed=seed)
        options = options or {}
        episode_seed = options.get("episode_seed")
        if episode_seed is None:
            episode_seed = int(self.np_random.integers(0, 2**63))
        spec = EpisodeSpec(self.level, int(episode_seed), options.get("state"))
        self._batch.begin(0, spec, self._observations)
        self._playing = True
        states = self._batch.states()
        self._furthest_px[:] = furthest_at_start(states["x_px"])
        info = {
            **state_info(states[0]),
            "furthest_x_px": int(self._furthest_px[0]),
            "steps": 0,
            "frames": 0,
        }
        return self._observations[0].copy(), {**info, "end": EndReason.RUNNING.label}

    def step(self, action: np.int64 | int) -> tuple[Observations, float, bool, bool, StepInfo]:
        """Hold an action for one step.

        Returns:
            Observation, reward, terminated (flag, death, clock), truncated (step or stuck limit),
            info.

        Raises:
            ConsoleError: the episode has ended, or there is no such action.
        """
        if not self._playing:
            raise ConsoleError(
                "step() after the end of an episode: expected reset() first; call it"
            )
        result = self._batch.step(np.array([int(action)], np.int64), self._observations)
        reward = batch_rewards(self.game, result, self._furthest_px)
        self._furthest_px[:] = result.furthest_x_px
        end = EndReason(int(result.end[0]))
        info = {
            **state_info(result.after[0]),
            "furthest_x_px": int(result.furthest_x_px[0]),
            "steps": int(result.steps[0]),
            "frames": int(result.frames[0]),
            "end": end.label,
        }
        self._playing = end is EndReason.RUNNING
        observation = self._observations[0] if self._playing else result.terminal_observations[0]
        truncated = end is EndReason.TRUNCATED
        return observation.copy(), float(reward[0]), end.is_terminal, truncated, info

    def render(self) -> UInt8Array | None:
        """Copy the picture, uint8 (240, 256, 3); None unless the render mode is ``rgb_array``."""
        return self._batch.screen_rgb(0) if self.render_mode == "rgb_array" else None

    def save_state(self) -> bytes:
        """Save the console's state, for ``reset(options={"state": …})``."""
        return self._batch.console_state(0)

    def close(self) -> None:
        """Free the console."""
        self._batch.close()
