"""The callback through which stable-baselines3's loop calls the training run.

stable-baselines3 calls back at each step and before each rollout. Before a rollout no update is
under way: that is a *boundary*, where the run is reported, judged and saved.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from stable_baselines3.common.callbacks import BaseCallback

from mario.training.algorithms.contract import Algorithm
from mario.training.episodes import TrainingEpisode
from mario.training.interval import StepInterval
from mario.training.signals import rollout_signals


class TrainerHooks(Protocol):
    """What the training run does at each callback; each method may raise to end `learn`."""

    def step(self, episodes: list[TrainingEpisode]) -> None:
        """Every environment made a step; `episodes` are those that ended in it."""
        ...

    def between_updates(self) -> None:
        """No update is under way, but no boundary is due: only a stop is obeyed."""
        ...

    def boundary(
        self, scalars: Mapping[str, Any], rollout: Mapping[str, Any], pace: Mapping[str, float]
    ) -> None:
        """No update is under way, and a boundary is due.

        Args:
            scalars: what stable-baselines3 logged in the last update; empty before the first.
            rollout: signals of the rollout before that update.
            pace: seconds of rollout and update since the last boundary, and the algorithm's
                `progress_scalars`; also before the first update.
        """
        ...


class TrainerCallback(BaseCallback):
    """Calls the training run at each step and boundary."""

    def __init__(self, hooks: TrainerHooks, algorithm: Algorithm, total_steps: int) -> None:
        """Connect to the run.

        Args:
            hooks: the run.
            algorithm: the algorithm that learns.
            total_steps: agent steps of the whole run, for the algorithm's schedules.
        """
        super().__init__()
        self._hooks = hooks
        self._total_steps = total_steps
        self._algorithm = algorithm
        every_steps = algorithm.boundary_every_steps
        self._interval = StepInterval(every_steps, at_start=True) if every_steps else None
        self._rollout: dict[str, Any] = {}
        self._seconds = {"rollout": 0.0, "update": 0.0}
        self._lap_began: float | None = None

    def _on_step(self) -> bool:
        infos: list[dict[str, Any]] = self.locals["infos"]
        dones = self.locals["dones"]
        # Every environment: the older project read index 0 only and did not see its run collapse.
        self._hooks.step([infos[i]["record"] for i in range(len(infos)) if dones[i]])
        return True

    def _on_rollout_start(self) -> None:
        self._lap("update")
        if self._interval is not None:
            if not self._interval.is_due(self.num_timesteps):
                self._hooks.between_updates()
                return
            self._interval.advance(self.num_timesteps)
        self._report()
        # The time of a boundary (selection, checkpoint) belongs to neither rollout nor update.
        self._lap_began = time.perf_counter()

    def _on_rollout_end(self) -> None:
        self._lap("rollout")
        if self._interval is None:
            # Before the update, which empties the buffer.
            self._rollout = rollout_signals(self._algorithm)
        self._algorithm.before_update(1.0 - self.num_timesteps / self._total_steps)

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
        if self._interval is not None:
            self._rollout = rollout_signals(self._algorithm)
        logged: Mapping[str, Callable[[], Any] | Any] = self.model.logger.name_to_value
        scalars = {name: value for name, value in logged.items() if name.startswith("train/")}
        pace = {f"time/{name}_seconds": spent for name, spent in self._seconds.items() if spent > 0}
        self._seconds = dict.fromkeys(self._seconds, 0.0)
        pace |= self._algorithm.progress_scalars()
        self._hooks.boundary(scalars, self._rollout, pace)
