"""The games as a stable-baselines3 VecEnv: rewards, auto-reset, episode records, exact snapshots.

The seed of an episode is derived from (run seed, environment index, episode number), so an episode
can be played again alone and no two runs or environments share one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt
from stable_baselines3.common.vec_env import VecEnv

from mario.config.experiment import ExperimentConfig
from mario.errors import SaveStateError
from mario.game.batch.contract import BatchStep, EpisodeSpec, GameBatch
from mario.game.batch.factory import open_batch
from mario.game.batch.rewards import batch_rewards
from mario.game.env import observation_space
from mario.game.rng import derive_seed
from mario.game.smb.end_reason import EndReason
from mario.game.smb.memory import STATE_FIELDS, furthest_at_start
from mario.game.smb.observations.contract import Observations
from mario.training.episodes import TrainingEpisode

EpisodeSource = Callable[[int, int], EpisodeSpec]
"""(environment index, episode number in it, from 0) → the episode to play."""


@dataclass
class VecSnapshot:
    """Everything of all environments, for exact resume.

    Attributes:
        slots: one snapshot of the batch for each environment.
        episodes: int64 (N,), number of the episode each plays.
        returns: float64 (N,), its return so far.
        furthest_px: int32 (N,), its furthest x so far.
        observations: (N, …), what the policy sees next.
        total_steps: agent steps of all environments so far.
    """

    slots: list[bytes]
    episodes: npt.NDArray[np.int64]
    returns: npt.NDArray[np.float64]
    furthest_px: npt.NDArray[np.int32]
    observations: Observations
    total_steps: int


def episode_source(seed: int, levels: Sequence[str]) -> EpisodeSource:
    """Play the levels in turn, each environment starting at another one.

    Args:
        seed: the run's seed.
        levels: at least one level.
    """

    def source(env_index: int, episode_index: int) -> EpisodeSpec:
        level = levels[(env_index + episode_index) % len(levels)]
        return EpisodeSpec(level, derive_seed(seed, env_index, episode_index))

    return source


class GameVecEnv(VecEnv):
    """N games as stable-baselines3 wants them.

    `infos` is empty but for episodes that end: `terminal_observation`, `TimeLimit.truncated`,
    `episode` (r, l, t, as SB3's Monitor has them), `record` (a :class:`TrainingEpisode`) and the
    13 values.
    """

    def __init__(
        self,
        batch: GameBatch,
        source: EpisodeSource,
    ) -> None:
        """Take a batch over; it is closed with this environment.

        Args:
            batch: the games.
            source: what each environment plays.
        """
        super().__init__(
            batch.slots,
            observation_space(batch.observation),
            gym.spaces.Discrete(len(batch.buttons)),
        )
        self._batch = batch
        self._source = source
        self._observations = batch.observation.zeros(batch.slots)
        self._episodes = np.zeros(batch.slots, np.int64)
        self._returns = np.zeros(batch.slots, np.float64)
        self._furthest_px = np.zeros(batch.slots, np.int32)
        self._actions = np.zeros(batch.slots, np.int64)
        self._total_steps = 0
        self._finished_episodes = 0
        self._started = False

    @property
    def finished_episodes(self) -> int:
        """Episodes that ended since this object was made."""
        return self._finished_episodes

    @property
    def batch(self) -> GameBatch:
        """The games themselves."""
        return self._batch

    def reset(self) -> Observations:
        """Start an episode in every environment: observations (N, …).

        A second reset starts the next episodes; it does not repeat the first ones.
        """
        if self._started:
            self._episodes += 1
        self._started = True
        for slot in range(self.num_envs):
            episode = int(self._episodes[slot])
            self._batch.begin(slot, self._source(slot, episode), self._observations)
            self._batch.queue(slot, self._source(slot, episode + 1))
        self._returns[:] = 0
        self._furthest_px[:] = furthest_at_start(self._batch.states()["x_px"])
        return self._observations.copy()

    def step_async(self, actions: npt.NDArray[np.int64]) -> None:
        """Keep the actions, int64 (N,), for :meth:`step_wait`."""
        self._actions[:] = actions

    def step_wait(
        self,
    ) -> tuple[Observations, npt.NDArray[np.float32], npt.NDArray[np.bool_], list[dict[str, Any]]]:
        """Step all games.

        Returns:
            Observations (N, …) (of the next episode where one ended), rewards
            float32 (N,), dones bool (N,), infos.
        """
        step = self._batch.step(self._actions, self._observations)
        rewards = batch_rewards(self._batch.game, step, self._furthest_px)
        self._total_steps += self.num_envs
        self._returns += rewards
        self._furthest_px[:] = step.furthest_x_px
        dones = step.end != EndReason.RUNNING
        infos: list[dict[str, Any]] = [{} for _ in range(self.num_envs)]
        if dones.any():
            ended = np.flatnonzero(dones)
            self._finished_episodes += len(ended)
            for slot in ended:
                infos[slot] = self._finish(int(slot), step)
            # Where the next episode begins; its own furthest x starts there.
            self._furthest_px[ended] = furthest_at_start(self._batch.states()["x_px"][ended])
        return self._observations.copy(), rewards.astype(np.float32), dones, infos

    def snapshot(self) -> VecSnapshot:
        """Take everything of all environments, between two steps."""
        return VecSnapshot(
            slots=[self._batch.snapshot(slot) for slot in range(self.num_envs)],
            episodes=self._episodes.copy(),
            returns=self._returns.copy(),
            furthest_px=self._furthest_px.copy(),
            observations=self._observations.copy(),
            total_steps=self._total_steps,
        )

    def restore(self, snapshot: VecSnapshot) -> Observations:
        """Go on from a snapshot.

        Returns:
            The observations (N, …).

        Raises:
            SaveStateError: it was taken with another number of environments or another console.
        """
        if len(snapshot.slots) != self.num_envs:
            raise SaveStateError(
                f"snapshot of {len(snapshot.slots)} environments: expected {self.num_envs}; resume "
                "with the number of environments the run was started with"
            )
        for slot, state in enumerate(snapshot.slots):
            self._batch.restore(slot, state, self._observations)
        if not np.array_equal(self._observations, snapshot.observations):
            raise SaveStateError(
                "snapshot of environments: their pictures are not those that were saved; resume "
                "with the console and version the run was started with"
            )
        self._episodes[:] = snapshot.episodes
        self._returns[:] = snapshot.returns
        self._furthest_px[:] = snapshot.furthest_px
        self._total_steps = snapshot.total_steps
        self._started = True
        return self._observations.copy()

    def _finish(self, slot: int, step: BatchStep) -> dict[str, Any]:
        episode = int(self._episodes[slot])
        spec = self._source(slot, episode)
        end = EndReason(int(step.end[slot]))
        state = {name: int(step.after[name][slot]) for name in STATE_FIELDS}
        record = TrainingEpisode(
            env_index=slot,
            episode_index=episode,
            seed=spec.seed,
            level=spec.level,
            shaped_return=float(self._returns[slot]),
            length_steps=int(step.steps[slot]),
            length_frames=int(step.frames[slot]),
            furthest_x_px=int(step.furthest_x_px[slot]),
            end=end.label,
            total_steps=self._total_steps,
            state=state,
        )
        self._returns[slot] = 0.0
        self._episodes[slot] = episode + 1
        self._batch.queue(slot, self._source(slot, episode + 2))
        return {
            **state,
            "terminal_observation": step.terminal_observations[slot].copy(),
            "TimeLimit.truncated": end is EndReason.TRUNCATED,
            "episode": {"r": record.shaped_return, "l": record.length_steps, "t": 0.0},
            "record": record,
        }

    def close(self) -> None:
        """Close the batch."""
        self._batch.close()

    def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
        """Give an attribute of this environment once for each index."""
        value = None if attr_name == "render_mode" else getattr(self, attr_name)
        return [value for _ in self._get_indices(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:
        """Refuse: the games share one batch and have no attributes of their own."""
        raise NotImplementedError("the games of a batch have no attributes of their own")

    def env_method(
        self, method_name: str, *method_args: Any, indices: Any = None, **method_kwargs: Any
    ) -> list[Any]:
        """Refuse: the games share one batch and have no methods of their own."""
        raise NotImplementedError("the games of a batch have no methods of their own")

    def env_is_wrapped(
        self, wrapper_class: type[gym.Wrapper[Any, Any, Any, Any]], indices: Any = None
    ) -> list[bool]:
        """No game is wrapped."""
        return [False for _ in self._get_indices(indices)]


def make_vec_env(
    config: ExperimentConfig, source: EpisodeSource | None = None, threads: int = 0
) -> GameVecEnv:
    """Open the games of an experiment.

    Args:
        config: the experiment.
        source: what each environment plays; by default the task's levels in turn.
        threads: threads that step the games; 0 = all cores.

    Raises:
        ConsoleError: the console is not there.
    """
    return GameVecEnv(
        open_batch(
            config.environments,
            config.game,
            observation=config.observation,
            threads=threads,
        ),
        source or episode_source(config.seed, config.level_names),
    )
