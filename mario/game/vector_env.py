"""MarioVectorEnv: N games as a Gymnasium VectorEnv, on one batch.

Environment i plays step for step what a `mario.game.env.MarioEnv` with its seed plays; the batch is
faster.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gymnasium
import numpy as np
import numpy.typing as npt
from gymnasium.utils import seeding
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from mario.config.game import GameConfig
from mario.errors import ConfigError, ConsoleError
from mario.game.batch.contract import BatchStep, EpisodeSpec
from mario.game.batch.factory import open_batch
from mario.game.batch.rewards import batch_rewards
from mario.game.console.contract import UInt8Array
from mario.game.env import observation_space, render_fps
from mario.game.smb.actions import action_set
from mario.game.smb.end_reason import EndReason
from mario.game.smb.levels import level as find_level
from mario.game.smb.memory import STATE_FIELDS, StateArray, furthest_at_start
from mario.game.smb.observations.contract import Observations

BoolArray = npt.NDArray[np.bool_]
VectorInfo = dict[str, Any]

_END_NAMES = np.array([reason.label for reason in EndReason], object)
_TERMINATED = np.array([reason.is_terminal for reason in EndReason])


class MarioVectorEnv(VectorEnv[Observations, npt.NDArray[np.int64], npt.NDArray[Any]]):
    """N games of one level, or one level for each game, stepped in one call.

    Observations: of one kind, by default uint8 (N, 4, 84, 84). Actions: int64 (N,). Autoreset is
    Gymnasium's `SAME_STEP`: where an episode ends, the observation and the info are already those
    of the next one, and `info["final_obs"]` and `info["final_info"]` hold its last ones. `info` has
    an array (N,) for each value of `MarioEnv`'s info, and a mask of the same name with an
    underscore before it.

    Attributes:
        metadata: Gymnasium's.
    """

    metadata: dict[str, Any] = {  # noqa: RUF012
        "render_modes": ["rgb_array"],
        "render_fps": 15,
        "autoreset_mode": AutoresetMode.SAME_STEP,
    }

    def __init__(
        self,
        num_envs: int,
        level: str | Sequence[str] | None = "1-1",
        game: GameConfig | None = None,
        render_mode: str | None = None,
        threads: int = 0,
        observation: str = "pixels",
    ) -> None:
        """Open the consoles.

        Args:
            num_envs: N, at least 1.
            level: ``"1-1"`` … ``"8-4"`` for all, N of them, or None for the whole game.
            game: actions, frame skip, noise, reward and console; None takes the defaults.
            render_mode: None or ``"rgb_array"``.
            threads: threads that step the games; 0 = all cores.
            observation: the kind of observation.

        Raises:
            ConfigError: unknown level or kind of observation, or another number of levels.
            ConsoleError: no such render mode, or the native build is missing.
        """
        if render_mode not in (None, "rgb_array"):
            raise ConsoleError(
                f"render_mode {render_mode!r}: expected None or 'rgb_array'; use one"
            )
        self.levels: tuple[str | None, ...] = (
            (level,) * num_envs if level is None or isinstance(level, str) else tuple(level)
        )
        if len(self.levels) != num_envs:
            raise ConfigError(
                f"{len(self.levels)} levels for {num_envs} games: expected one level, or one for "
                "each game; correct the list"
            )
        for name in self.levels:
            if name is not None:
                find_level(name)
        self.game = game or GameConfig()
        self.render_mode = render_mode
        self.metadata = {**self.metadata, "render_fps": render_fps(self.game)}
        self.num_envs = num_envs
        self.actions = action_set(self.game.actions)
        self.single_action_space = gymnasium.spaces.Discrete(len(self.actions))
        self.action_space = batch_space(self.single_action_space, num_envs)
        self._batch = open_batch(num_envs, self.game, observation=observation, threads=threads)
        self.single_observation_space = observation_space(self._batch.observation)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self._observations = self._batch.observation.zeros(num_envs)
        self._furthest_px = np.zeros(num_envs, np.int32)
        self._generators: dict[int, np.random.Generator] = {}
        # The batch queues each game's next episode, so its seed is drawn one episode ahead.
        self._upcoming_seeds: dict[int, int] = {}

    def reset(
        self,
        *,
        seed: int | Sequence[int | None] | None = None,
        options: dict[str, Any] | None = None,
    ) -> tuple[Observations, VectorInfo]:
        """Start an episode in every game, or in some.

        Args:
            seed: an int seeds game i with seed + i, a list gives each game its own; each game draws
                the seeds of its episodes from its generator. None keeps the generators.
            options: ``{"reset_mask": bool (N,)}`` starts only those games; ``{"state":
                bytes}`` starts from a console save-state.

        Returns:
            Observations (N, …) and the info, whose masks show the games that started.

        Raises:
            ConsoleError: seeds or mask of another length, or a mask without any game.
        """
        options = options or {}
        seeds = self._seeds(seed)
        started = self._mask(options.get("reset_mask"))
        for slot in np.flatnonzero(started).tolist():
            self._start(slot, seeds[slot], options.get("state"))
        states = self._batch.states()
        self._furthest_px[started] = furthest_at_start(states["x_px"][started])
        info: VectorInfo = {}
        self._add(info, started, states, self._furthest_px, None)
        return self._observations.copy(), info

    def step(
        self, actions: npt.NDArray[np.int64]
    ) -> tuple[Observations, npt.NDArray[np.float64], BoolArray, BoolArray, VectorInfo]:
        """Hold one action in each game for one step.

        Args:
            actions: int64 (N,).

        Returns:
            Observations (N, …), rewards float64 (N,), terminated bool (N,) (flag,
            death, clock), truncated bool (N,) (step or stuck limit), info.

        Raises:
            ConsoleError: a call before the first reset, or an invalid action.
        """
        if len(self._generators) < self.num_envs:
            raise ConsoleError("step() before the games were started: call reset() first")
        result = self._batch.step(np.asarray(actions, np.int64), self._observations)
        rewards = batch_rewards(self.game, result, self._furthest_px)
        self._furthest_px[:] = result.furthest_x_px
        ended = result.end != EndReason.RUNNING
        info: VectorInfo = {}
        if not ended.any():
            everyone = np.ones(self.num_envs, np.bool_)
            self._add(info, everyone, result.after, self._furthest_px, result)
        else:
            final: VectorInfo = {}
            self._add(final, ended, result.after, self._furthest_px, result)
            last = np.full(self.num_envs, None, object)
            for slot in np.flatnonzero(ended).tolist():
                last[slot] = result.terminal_observations[slot].copy()
                self._queue(slot)
            now = self._batch.states()
            self._furthest_px[ended] = furthest_at_start(now["x_px"][ended])
            states = result.after.copy()
            states[ended] = now[ended]
            self._add(info, ~ended, states, self._furthest_px, result)
            self._add(info, ended, states, self._furthest_px, None)
            info |= {"final_obs": last, "_final_obs": ended.copy()}
            info |= {"final_info": final, "_final_info": ended.copy()}
        truncated = result.end == EndReason.TRUNCATED
        return (
            self._observations.copy(),
            np.asarray(rewards, np.float64),
            _TERMINATED[result.end],
            truncated,
            info,
        )

    def render(self) -> tuple[UInt8Array, ...] | None:
        """Copy the pictures, N of uint8 (240, 256, 3); None unless the mode is ``rgb_array``."""
        if self.render_mode != "rgb_array":
            return None
        return tuple(self._batch.screen_rgb(slot) for slot in range(self.num_envs))

    def save_state(self, index: int) -> bytes:
        """Save the state of a game's console, for ``reset(options={"state": …})``."""
        return self._batch.console_state(index)

    def close_extras(self, **kwargs: Any) -> None:
        """Free the consoles."""
        self._batch.close()

    def _start(self, slot: int, seed: int | None, state: bytes | None) -> None:
        """Begin a game's next episode and queue the one after it."""
        if seed is not None or slot not in self._generators:
            self._generators[slot], _ = seeding.np_random(seed)
            self._upcoming_seeds[slot] = self._draw(slot)
        spec = EpisodeSpec(self.levels[slot], self._upcoming_seeds[slot], state)
        self._batch.begin(slot, spec, self._observations)
        self._queue(slot)

    def _queue(self, slot: int) -> None:
        self._upcoming_seeds[slot] = self._draw(slot)
        self._batch.queue(slot, EpisodeSpec(self.levels[slot], self._upcoming_seeds[slot]))

    def _draw(self, slot: int) -> int:
        """Draw the seed of an episode as `MarioEnv.reset` does."""
        return int(self._generators[slot].integers(0, 2**63))

    def _seeds(self, seed: int | Sequence[int | None] | None) -> list[int | None]:
        if seed is None:
            return [None] * self.num_envs
        if isinstance(seed, int | np.integer):
            return [int(seed) + index for index in range(self.num_envs)]
        if len(seed) != self.num_envs:
            raise ConsoleError(
                f"{len(seed)} seeds for {self.num_envs} games: expected an int or one for each; "
                "correct the list"
            )
        return list(seed)

    def _mask(self, mask: BoolArray | None) -> BoolArray:
        if mask is None:
            return np.ones(self.num_envs, np.bool_)
        started = np.asarray(mask)
        if started.shape != (self.num_envs,) or started.dtype != np.bool_ or not started.any():
            raise ConsoleError(
                f"reset_mask {started.dtype} {started.shape}: expected bool ({self.num_envs},) "
                "with at least one game to start; correct it"
            )
        return started

    def _add(
        self,
        info: VectorInfo,
        where: BoolArray,
        states: StateArray,
        furthest_px: npt.NDArray[np.int32],
        step: BatchStep | None,
    ) -> None:
        """Write `MarioEnv`'s info of the games in `where`; no step: their episodes just began."""
        values: VectorInfo = {name: states[name] for name in STATE_FIELDS}
        nothing = np.zeros(self.num_envs, np.int32)
        values["furthest_x_px"] = furthest_px
        values["steps"] = nothing if step is None else step.steps
        values["frames"] = nothing if step is None else step.frames
        values["end"] = _END_NAMES[nothing if step is None else step.end]
        for name, value in values.items():
            if name not in info:
                empty = None if value.dtype == object else 0
                info[name] = np.full(self.num_envs, empty, object if empty is None else np.int64)
                info[f"_{name}"] = np.zeros(self.num_envs, np.bool_)
            info[name][where] = value[where]
            info[f"_{name}"] |= where
