"""The loop of one attempt at a run, around the one of stable-baselines3.

`execute` restores or begins the run and lets stable-baselines3 learn. That calls back at each step
(`step`) and between two updates, at a boundary (`boundary`), in this order: episodes and progress
are reported, the collapse detector judges the update, the policy is scored where a selection is
due, and a checkpoint is held in memory or written.
"""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from stable_baselines3.common.base_class import BaseAlgorithm

from mario.config.experiment import ExperimentConfig
from mario.config.identities import identity_of_run
from mario.config.run_states import RunStatus
from mario.files import write_whole
from mario.training.algorithms.factory import build_algorithm
from mario.training.callbacks import TrainerCallback
from mario.training.checkpoint import CheckpointContent
from mario.training.checkpoint_retention import RunCheckpoints
from mario.training.collapse_detector import HealthRules
from mario.training.collapse_policy import CollapsePolicy
from mario.training.episodes import EpisodeWindow, TrainingEpisode
from mario.training.export import TorchPolicy
from mario.training.health_monitor import HealthMonitor
from mario.training.interval import StepInterval
from mario.training.reporting import Reporter
from mario.training.result import Select, SelectionScore, TrainingResult
from mario.training.resume import (
    PreservedGenerators,
    capture,
    capture_networks,
    restore,
    restore_networks,
)
from mario.training.run_folder import CONFIG_FILE, find_saved
from mario.training.sb3_vec_env import GameVecEnv
from mario.training.schedules import learning_rate
from mario.training.selection import Selection
from mario.training.signals import GradientMeter
from mario.training.sinks import Incident, Progress, RunStart, SinkSet
from mario.training.threads import set_threads

log = logging.getLogger(__name__)


class _EndLearning(Exception):
    """Ends `learn` from within a callback or hook."""

    def __init__(self, status: RunStatus, reason: str) -> None:
        super().__init__(reason)
        self.status = status
        self.reason = reason


class _Diverged(Exception):
    """A gradient is not finite; the weights have not been touched."""


class TrainingRun:
    """One attempt at a run."""

    def __init__(
        self,
        config: ExperimentConfig,
        folder: Path,
        *,
        sinks: SinkSet,
        stop: threading.Event,
        progress: Callable[[Progress], None] | None,
        select: Select | None,
        rules: HealthRules | None,
    ) -> None:
        """Prepare; nothing is opened or written yet. See `mario.training.trainer.train`."""
        self._config = config
        self._folder = folder
        self._sinks = sinks
        self._stop = stop
        self._select = select
        self._attempt = 1
        self._window = EpisodeWindow(config.environments)
        self._reporter = Reporter(sinks, self._window, config.total_steps, progress)
        self._health = HealthMonitor(self._window, sinks, config.total_steps, rules)
        self._collapse = CollapsePolicy(config.collapse)
        self._checkpoints = RunCheckpoints(folder, config.checkpoint.keep, sinks)
        self._checkpoint_interval = StepInterval(config.checkpoint.every_steps)
        self._selection = Selection(config.selection, self._checkpoints, sinks, stop)
        self._seen_boundary = False
        self._finished_before = 0

    def find_saved(self, resume: bool) -> tuple[Path, CheckpointContent] | None:
        """Find the checkpoint to resume from; see `mario.training.run_folder.find_saved`."""
        return find_saved(
            self._config, self._folder, resume=resume, on_skipped=self._checkpoints.skipped
        )

    def execute(
        self, env: GameVecEnv, saved: tuple[Path, CheckpointContent] | None,
        initial: Callable[[BaseAlgorithm], None] | None,
    ) -> TrainingResult:  # fmt: skip
        """Train until the run finishes, stops, collapses or diverges.

        Args:
            env: the games.
            saved: the checkpoint to resume from; None begins at step 0.
            initial: called with the model of a run that begins.
        """
        threads = set_threads(self._config, int(saved[1].values["threads"]) if saved else 0)
        self._env = env
        self._algorithm = build_algorithm(self._config, env)
        self._model = self._algorithm.model
        if saved is not None:
            self._restore(*saved)
        elif initial is not None:
            initial(self._model)
        self._folder.mkdir(parents=True, exist_ok=True)
        write_whole(self._folder / CONFIG_FILE, self._config.to_yaml().encode())
        self._finished_before = self._window.finished
        hardware = {
            "device": str(self._model.device),
            "threads": threads,
            "parameters": sum(p.numel() for p in self._model.policy.parameters()),
        }
        self._reporter.start(
            RunStart(self._config, self._folder, self._steps, self._attempt, hardware,
                     self._health.reported_state)
        )  # fmt: skip
        self._meter = GradientMeter(self._model, self._guard)
        try:
            status, reason = self._learn()
            self._reporter.deliver()
            self._checkpoints.write_held(required=True)
        finally:
            self._meter.close()
        # The interrupted steps will be repeated: the run stands where its checkpoint is.
        held = status == RunStatus.INTERRUPTED
        steps = self._checkpoints.held_steps if held else self._steps
        self._reporter.end(status, reason, steps, self._stop)
        return self._result(status, reason, steps)

    def failed(self, error: Exception) -> None:
        """Report an error that ends the attempt; the caller gets it as well."""
        reason = f"{type(error).__name__}: {error}".splitlines()[0][:500]
        self._reporter.end(RunStatus.FAILED, reason, self._checkpoints.held_steps, self._stop)

    def step(self, episodes: list[TrainingEpisode]) -> None:
        """Take the episodes that ended; see `TrainerHooks.step`."""
        # Counted by the games themselves, so that an episode that the callback misses is noticed.
        self._window.finished = self._finished_before + self._env.finished_episodes
        self._reporter.add(episodes)
        if self._algorithm.holds_resume_points:
            self._obey_stop()

    def boundary(
        self, scalars: Mapping[str, Any], rollout: Mapping[str, Any], pace: Mapping[str, float]
    ) -> None:
        """Report, judge, select and save between two updates; see `TrainerHooks.boundary`."""
        steps = self._steps
        finished = steps >= self._config.total_steps
        self._reporter.deliver()
        self._judge_update(scalars, rollout)
        self._reporter.progress(steps, self._health.health.state, {**scalars, **pace})
        if self._selection.is_due(steps, finished=finished):
            self._selection.run(steps, self._score, self._capture_best)
            self._health.restart_clock()
        due = self._checkpoint_interval.is_due(steps)
        if due:
            self._checkpoint_interval.advance(steps)
        stopping = self._stop.is_set()  # read once: a stop that comes now finds no point
        if self._algorithm.holds_resume_points or due or finished or stopping:
            self._hold_point()
        if due:
            self._checkpoints.write_held()
        if stopping:
            self._obey_stop()

    def between_updates(self) -> None:
        """Obey a stop where no boundary is due; see `TrainerHooks.between_updates`."""
        if self._stop.is_set():
            self._reporter.deliver()
            self._hold_point()
            self._obey_stop()

    @property
    def _steps(self) -> int:
        """Agent steps of the run."""
        return self._model.num_timesteps

    def _learn(self) -> tuple[RunStatus, str]:
        """Let stable-baselines3 learn to the end, again after each rollback."""
        callback = TrainerCallback(self, self._algorithm, self._config.total_steps)
        while (remaining := self._config.total_steps - self._steps) > 0:
            try:
                self._model.learn(remaining, callback, log_interval=1, reset_num_timesteps=False)
            except _EndLearning as end:
                return end.status, end.reason
            except _Diverged as diverged:
                self._health.refuse(self._steps, str(diverged))
                if not self._roll_back():
                    return RunStatus.DIVERGED, str(diverged)
            else:
                return RunStatus.FINISHED, ""
        if not self._checkpoints.holds_point:
            self._hold_point()
        return RunStatus.FINISHED, ""

    def _obey_stop(self) -> None:
        """End `learn` where the run is to stop."""
        if self._stop.is_set():
            # A stop may carry its reason, as that of a pruned trial of a sweep does.
            reason = getattr(self._stop, "reason", "") or "stopped on request"
            raise _EndLearning(RunStatus.INTERRUPTED, reason)

    def _guard(self, norm: float) -> None:
        """Refuse an update whose gradient is not finite, and stop within an update."""
        if not math.isfinite(norm):
            raise _Diverged("a gradient is not finite")
        if self._algorithm.holds_resume_points:
            self._obey_stop()

    def _judge_update(self, scalars: Mapping[str, Any], rollout: Mapping[str, Any]) -> None:
        """Have the detector judge the last update, and act on a collapse."""
        norm = self._meter.take()
        first, self._seen_boundary = not self._seen_boundary, True
        if first or not (scalars or norm is not None):
            return  # no update since this attempt began, or since the last boundary
        signals = {**self._algorithm.update_signals(scalars), **rollout}
        health = self._health.observe(
            self._steps, scalars=scalars, signals=signals, gradient_norm=norm
        )
        if (
            not health.state.degenerated
            or self._collapse.tolerates_collapse
            or self._roll_back()
        ):  # fmt: skip
            return
        # The checkpoint shows the policy after the collapse.
        self._hold_point()
        raise _EndLearning(RunStatus(health.state), "; ".join(health.reasons))

    def _roll_back(self) -> bool:
        """Return to the best networks with a lower learning rate; False where that cannot be."""
        best = self._checkpoints.best
        if best is None or not self._collapse.may_roll_back:
            return False
        content = self._checkpoints.read_best(self._model.device)
        if content is None:
            return False
        restore_networks(self._model, content)
        learning_rate(self._model).factor *= self._collapse.learning_rate_factor
        self._health.roll_back()
        # Left by the refused update: the next boundary has no update to judge.
        self._meter.take()
        self._model.logger.name_to_value.clear()
        message = self._collapse.count_rollback(best.total_steps)
        log.warning("%s", message)
        self._sinks.on_incident(Incident("rollback", message))
        return True

    def _score(self) -> SelectionScore | None:
        """Score the policy on selection seeds, or by the training episodes' mean score."""
        if self._select is None:
            mean = self._window.mean_score()
            return None if mean is None else SelectionScore(mean)
        selection = self._config.evaluation.action_selection
        policy = TorchPolicy(self._algorithm, self._config, selection)
        with PreservedGenerators():
            return self._select(policy)

    def _hold_point(self) -> None:
        """Hold the run as it is now in memory, as the point to resume from."""
        self._checkpoints.hold(self._steps, capture(self._algorithm, self._env, self._values()))

    def _capture_best(self, result: SelectionScore) -> CheckpointContent:
        """Copy the networks of the best policy, with its score."""
        content = capture_networks(self._model)
        values = {
            **content.values,
            "score": result.score,
            "details": dict(result.details),
            "resume_hash": identity_of_run(self._config),
        }
        return replace(content, values=values)

    def _values(self) -> dict[str, Any]:
        """What the run itself continues with, as JSON types."""
        best = self._checkpoints.best
        return {
            "resume_hash": identity_of_run(self._config),
            "action_selection": self._config.evaluation.action_selection,
            "attempt": self._attempt,
            **self._health.to_dict(),
            "rollbacks": self._collapse.rollbacks,
            "next_checkpoint": self._checkpoint_interval.next_steps,
            "next_selection": self._selection.interval.next_steps,
            "best": None if best is None else [best.path.name, best.total_steps, best.score],
        }

    def _restore(self, path: Path, content: CheckpointContent) -> None:
        """Continue from a checkpoint."""
        values = restore(self._algorithm, self._env, content)
        self._attempt = values["attempt"] + 1
        self._health.restore(values)
        self._collapse.rollbacks = values["rollbacks"]
        self._checkpoint_interval.next_steps = values["next_checkpoint"]
        self._selection.interval.next_steps = values["next_selection"]
        self._checkpoints.resume_from(path, self._steps, values["best"])

    def _result(self, status: RunStatus, reason: str, steps: int) -> TrainingResult:
        seconds, rate = self._reporter.rate(self._steps)
        return TrainingResult(
            status=status,
            reason=reason,
            total_steps=steps,
            attempt_steps=self._steps - self._reporter.start_steps,
            seconds=seconds,
            steps_per_second=rate,
            episodes=self._window.finished,
            mean_furthest_px=self._window.mean_furthest_px(),
            mean_return=self._window.mean_return(),
            best=self._checkpoints.best,
            last=self._checkpoints.last,
            health=self._health.health,
            rollbacks=self._collapse.rollbacks,
        )
