"""The callback between stable-baselines3's loop and this project's trainer; sees every environment.

stable-baselines3 calls back at each step and before each rollout. Before a rollout the networks are
between two updates: that is the *boundary*, where a run is observed, selected and saved.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.dqn import DQN
from stable_baselines3.ppo import PPO

from mario.config.algorithms import PPOConfig
from mario.training.sb3_vec_env import EpisodeRecord
from mario.training.schedules import Schedule, schedule
from mario.training.signals import rollout_signals


class TrainerHooks(Protocol):
    """What the trainer does when it is called back; each method may raise to end `learn`."""

    def step(self, records: list[EpisodeRecord]) -> None:
        """All environments made a step; `records` are the episodes that ended in it."""
        ...

    def between_updates(self) -> None:
        """The networks are between two updates, but nothing is due but to obey a stop."""
        ...

    def boundary(
        self, scalars: Mapping[str, Any], rollout: Mapping[str, Any], pace: Mapping[str, float]
    ) -> None:
        """The networks are between two updates.

        Args:
            scalars: what the last update logged; empty before the first.
            rollout: signals of the rollout before it.
            pace: seconds of rollout and update since the last boundary, and DQN's exploration;
                there also while nothing is learned yet.
        """
        ...


class TrainerCallback(BaseCallback):
    """Calls the trainer at steps and boundaries, and follows the entropy schedule."""

    def __init__(
        self,
        hooks: TrainerHooks,
        algorithm: object,
        total_steps: int,
        boundary_every_steps: int = 0,
    ) -> None:
        """Connect to the trainer.

        Args:
            hooks: the trainer.
            algorithm: the algorithm's configuration.
            total_steps: agent steps of the whole run, for the schedule.
            boundary_every_steps: agent steps between two boundaries; 0 = before every rollout.
                For DQN, whose rollouts are a few steps long.
        """
        super().__init__()
        self._hooks = hooks
        self._total_steps = total_steps
        self._every_steps = boundary_every_steps
        self._next_boundary = 0
        self._rollout: dict[str, Any] = {}
        self._seconds = {"rollout": 0.0, "update": 0.0}
        self._lap_began: float | None = None
        self._entropy: Schedule | None = None
        if isinstance(algorithm, PPOConfig):
            self._entropy = schedule(algorithm.entropy_coefficient, algorithm.entropy_schedule)

    def _on_step(self) -> bool:
        infos: list[dict[str, Any]] = self.locals["infos"]
        dones = self.locals["dones"]
        # Every environment, not only the first: the run this system was born from read index 0.
        records = [infos[i]["record"] for i in range(len(infos)) if dones[i]]
        self._hooks.step(records)
        return True

    def _on_rollout_start(self) -> None:
        self._lap("update")
        if self.num_timesteps < self._next_boundary:
            self._hooks.between_updates()
            return
        # Multiples of the interval, so that a resumed run has the same boundaries.
        if self._every_steps:
            self._next_boundary = (self.num_timesteps // self._every_steps + 1) * self._every_steps
        self._report()
        # What a boundary takes (selection, checkpoint) is neither rollout nor update.
        self._lap_began = time.perf_counter()

    def _on_rollout_end(self) -> None:
        self._lap("rollout")
        if isinstance(self.model, PPO):
            self._rollout = rollout_signals(self.model)
            if self._entropy is not None:
                remaining = 1.0 - self.model.num_timesteps / self._total_steps
                self.model.ent_coef = self._entropy(remaining)

    def _on_training_end(self) -> None:
        self._lap("update")
        self._report()

    def _lap(self, phase: str) -> None:
        """Add the time since the last call, or since the boundary, to a phase."""
        now = time.perf_counter()
        if self._lap_began is not None:
            self._seconds[phase] += now - self._lap_began
        self._lap_began = now

    def _report(self) -> None:
        if not isinstance(self.model, PPO):
            self._rollout = rollout_signals(self.model)
        logged: Mapping[str, Callable[[], Any] | Any] = self.model.logger.name_to_value
        scalars = {name: value for name, value in logged.items() if name.startswith("train/")}
        pace = {f"time/{name}_seconds": spent for name, spent in self._seconds.items() if spent > 0}
        self._seconds = dict.fromkeys(self._seconds, 0.0)
        if isinstance(self.model, DQN):
            pace["rollout/exploration_rate"] = float(self.model.exploration_rate)
        self._hooks.boundary(scalars, self._rollout, pace)
