"""One attempt at a run: the loop around stable-baselines3's, and what happens at its boundaries."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from stable_baselines3.common.base_class import BaseAlgorithm

from mario.config.experiment import ExperimentConfig
from mario.config.identities import identity_of_run, is_identity_of_run
from mario.config.run_states import HealthState, RunStatus
from mario.errors import CheckpointError, TrainingError
from mario.files import clear_unfinished, write_whole
from mario.training.algorithms.factory import build_algorithm
from mario.training.callbacks import TrainerCallback
from mario.training.checkpoint import CheckpointContent, read_checkpoint, verify_latest
from mario.training.checkpoint_retention import BEST_FOLDER, CHECKPOINTS_FOLDER, CheckpointKeeper
from mario.training.collapse_detector import CollapseDetector, Health, HealthRules, HealthSample
from mario.training.export import TorchPolicy
from mario.training.result import Select, SelectionScore, TrainingResult
from mario.training.resume import PreservedGenerators, capture, restore, restore_networks
from mario.training.sb3_vec_env import EpisodeRecord, GameVecEnv
from mario.training.schedules import learning_rate
from mario.training.signals import EpisodeWindow, GradientMeter, make_sample
from mario.training.sinks import (
    Incident,
    Progress,
    RunEnd,
    RunStart,
    SelectionDone,
    SinkSet,
)
from mario.training.threads import set_threads

log = logging.getLogger(__name__)

CONFIG_FILE = "config.yaml"


class _EndLearning(Exception):
    """Ends `learn` from within a callback or hook."""

    def __init__(self, status: RunStatus, reason: str) -> None:
        super().__init__(reason)
        self.status = status
        self.reason = reason


class _Diverged(Exception):
    """A gradient is not finite; the weights have not been touched."""


def check_fits(config: ExperimentConfig, checkpoint: Path, values: Mapping[str, Any]) -> None:
    """Refuse to go on from a checkpoint with a configuration that is not its run's.

    Args:
        config: the one to go on with.
        checkpoint: its folder, in the run's.
        values: its plain values.

    Raises:
        CheckpointError: something differs that can change a weight.
    """
    trainer = values["trainer"]
    config_file = checkpoint.parent.parent / CONFIG_FILE
    if not is_identity_of_run(trainer["resume_hash"], config):
        raise CheckpointError(
            f"{checkpoint}: was written by another configuration; expected the one in "
            f"{config_file}; resume with that, or start a new run"
        )
    wanted = config.evaluation.action_selection
    got = trainer.get("action_selection", wanted)  # older checkpoints do not have it
    if got != wanted:
        raise CheckpointError(
            f"{checkpoint}: got evaluation.action_selection {wanted}, expected {got}, by which the "
            "run's policies were judged so far: scores of both cannot be compared; leave it, or "
            "start a new run"
        )


def check_resumable(config: ExperimentConfig, folder: Path) -> None:
    """Verify that a run can be gone on with, before anybody is told that it is; writes nothing.

    Args:
        config: the configuration to go on with.
        folder: the run's.

    Raises:
        CheckpointError: no checkpoint of it is whole, or the newest whole one does not fit.
    """
    found = verify_latest(folder / CHECKPOINTS_FOLDER)
    if found is not None:
        check_fits(config, *found)


class TrainingRun:
    """One attempt at a run: its state, and what happens at each boundary."""

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
        """Prepare; nothing is opened or written yet."""
        self.config = config
        self.folder = folder
        self.sinks = sinks
        self.stop = stop
        self.report_progress = progress
        self.select = select
        self.detector = CollapseDetector(rules)
        self.health = Health(HealthState.WARMING)
        self.window = EpisodeWindow(config.environments)
        self.pending: list[EpisodeRecord] = []
        self.update = 0
        self.attempt = 1
        self.rollbacks = 0
        self.keeper = CheckpointKeeper(folder, config.checkpoint.keep, sinks)
        self.next_checkpoint = config.checkpoint.every_steps
        self.next_selection = config.selection.every_steps
        self.resume_point: CheckpointContent | None = None
        self.resume_steps = 0
        self.start_steps = 0
        self.started = 0.0
        self.seen_boundary = False
        self.finished_before = 0
        self.updated_at: float | None = None

    def find_saved(self, resume: bool) -> tuple[Path, CheckpointContent] | None:
        """Look for a checkpoint to go on from, and refuse to overwrite a run."""
        config_file = self.folder / CONFIG_FILE
        if not resume:
            if config_file.exists():
                raise TrainingError(
                    f"{self.folder}: holds a run already; expected a new folder, or resume it "
                    "(--resume)"
                )
            return None
        if not config_file.exists():
            raise CheckpointError(
                f"{self.folder}: no run to resume; expected the folder of a run, with "
                f"{CONFIG_FILE} in it; check the path"
            )
        for kept in ("", CHECKPOINTS_FOLDER, BEST_FOLDER):
            # Of a killed writer, and in the way where the disk is full.
            clear_unfinished(self.folder / kept)
        saved = self.keeper.newest()
        if saved is None:
            log.info("%s: killed before its first checkpoint, starting anew", self.folder)
            return None
        check_fits(self.config, saved[0], saved[1].values)
        return saved

    def execute(
        self, env: GameVecEnv, saved: tuple[Path, CheckpointContent] | None,
        initial: Callable[[BaseAlgorithm], None] | None,
    ) -> TrainingResult:  # fmt: skip
        """Run to the end."""
        threads = int(saved[1].values["threads"]) if saved else 0
        threads = set_threads(self.config, threads)
        self.env = env
        self.algorithm = build_algorithm(self.config, env)
        self.model = self.algorithm.model
        if saved is not None:
            self._restore(saved)
        elif initial is not None:
            initial(self.model)
        self.folder.mkdir(parents=True, exist_ok=True)
        write_whole(self.folder / CONFIG_FILE, self.config.to_yaml().encode())
        self.start_steps = self.model.num_timesteps
        self.finished_before = self.window.finished
        self.started = time.monotonic()
        parameters = sum(p.numel() for p in self.model.policy.parameters())
        self.sinks.on_start(
            RunStart(self.config, self.folder, self.start_steps, self.attempt,
                     {"device": str(self.model.device), "threads": threads,
                      "parameters": parameters}, self.detector.told)
        )  # fmt: skip
        self.meter = GradientMeter(self.model, self._guard)
        try:
            status, reason = self._learn()
            self._deliver()
            self._save_last(required=True)
        finally:
            self.meter.close()
        # What a stop interrupted will be done again: the run stands where its checkpoint is.
        steps = self.resume_steps if status == RunStatus.INTERRUPTED else self.model.num_timesteps
        self.sinks.on_end(RunEnd(status, reason, steps, self.stop))
        return self._result(status, reason, steps)

    def failed(self, error: Exception) -> None:
        """Tell the sinks of an error, which is no result: it goes on to the caller."""
        reason = f"{type(error).__name__}: {error}".splitlines()[0][:500]
        self.sinks.on_end(RunEnd(RunStatus.FAILED, reason, self.resume_steps, self.stop))

    def step(self, records: list[EpisodeRecord]) -> None:
        """Take the episodes that ended; see `TrainerHooks.step`."""
        # Counted by the games themselves: records that a callback overlooks are missed then.
        self.window.finished = self.finished_before + self.env.finished_episodes
        for record in records:
            self.window.add(record)
            self.pending.append(record)
        self._obey_stop()

    def boundary(
        self, scalars: Mapping[str, Any], rollout: Mapping[str, Any], pace: Mapping[str, float]
    ) -> None:
        """Observe, select and save between two updates; see `TrainerHooks.boundary`."""
        self._deliver()
        norm = self.meter.take()
        if self.seen_boundary and (scalars or norm is not None):
            self._observe(scalars, rollout, norm)
        self.seen_boundary = True
        self._report({**scalars, **pace})
        steps = self.model.num_timesteps
        finished = steps >= self.config.total_steps
        if self.config.selection.units and (steps >= self.next_selection or finished):
            self._select()
            self.updated_at = time.monotonic()
        due = steps >= self.next_checkpoint
        if due:
            every = self.config.checkpoint.every_steps
            self.next_checkpoint = (steps // every + 1) * every
        stopping = self.stop.is_set()  # read once: a stop that comes now finds no point
        if self.algorithm.holds_resume_points or due or finished or stopping:
            self._take_point()
        if due:
            self._save_last(required=False)
        if stopping:
            self._obey_stop(at_boundary=True)

    def between_updates(self) -> None:
        """Obey a stop at once where no point is held in memory."""
        if self.stop.is_set():
            self._deliver()
            self._take_point()
            self._obey_stop(at_boundary=True)

    def _take_point(self) -> None:
        """Hold the run as it is now in memory, as the point to resume from."""
        self.resume_point = capture(self.algorithm, self.env, self._values())
        self.resume_steps = self.model.num_timesteps

    def _learn(self) -> tuple[RunStatus, str]:
        callback = TrainerCallback(self, self.algorithm, self.config.total_steps)
        while True:
            remaining = self.config.total_steps - self.model.num_timesteps
            if remaining <= 0:
                if self.resume_point is None:
                    self._take_point()
                return RunStatus.FINISHED, ""
            try:
                self.model.learn(remaining, callback, log_interval=1, reset_num_timesteps=False)
            except _EndLearning as end:
                return end.status, end.reason
            except _Diverged as diverged:
                self._diverged(str(diverged))
                if not self._roll_back():
                    return RunStatus.DIVERGED, str(diverged)
                continue
            return RunStatus.FINISHED, ""

    def _obey_stop(self, *, at_boundary: bool = False) -> None:
        if not self.stop.is_set():
            return
        # Without a point in memory the run continues to the end of its rollout.
        if not at_boundary and not self.algorithm.holds_resume_points:
            return
        # Whoever stops a run may say why: a sweep that prunes a trial does.
        reason = getattr(self.stop, "reason", "") or "stopped on request"
        raise _EndLearning(RunStatus.INTERRUPTED, reason)

    def _guard(self, norm: float) -> None:
        if not math.isfinite(norm):
            raise _Diverged("a gradient is not finite")
        self._obey_stop()

    def _observe(
        self, scalars: Mapping[str, Any], rollout: Mapping[str, Any], norm: float | None
    ) -> None:
        self.update += 1
        sample = make_sample(
            self.window, update=self.update, total_steps=self.model.num_timesteps,
            target_steps=self.config.total_steps, gradient_norm=norm, scalars=scalars,
            signals={**self.algorithm.update_signals(scalars), **rollout},
            since_update=self._age(),
        )  # fmt: skip
        self.health = self.detector.update(sample)
        self.sinks.on_health(sample, self.health)
        if self.health.changed and self.health.state.suspicious:
            log.warning("%s after %d steps: %s", self.health.state, sample.total_steps,
                        "; ".join(self.health.reasons))  # fmt: skip
        if self.health.state.degenerated:
            self._collapsed()

    def _age(self) -> float | None:
        """Seconds since the update before, where that is too long; selections do not count."""
        now = time.monotonic()
        age = 0.0 if self.updated_at is None else now - self.updated_at
        self.updated_at = now
        return age if age > self.detector.rules.stale_seconds else None

    def _collapsed(self) -> None:
        action = self.config.collapse.action
        if action == "warn" or (action == "rollback" and self._roll_back()):
            return
        # The state after the collapse is what a person will want to look at.
        self._take_point()
        raise _EndLearning(RunStatus(self.health.state), "; ".join(self.health.reasons))

    def _diverged(self, reason: str) -> None:
        self.update += 1
        sample = HealthSample(
            self.update, self.model.num_timesteps, non_finite=True,
            mean_return=self.window.mean_return(),
            mean_furthest_px=self.window.mean_furthest_px(),
            episodes_finished=self.window.finished, episodes_seen=self.window.seen,
        )  # fmt: skip
        self.health = self.detector.update(sample)
        self.sinks.on_health(sample, self.health)
        log.warning("diverged after %d steps: %s", self.model.num_timesteps, reason)

    def _roll_back(self) -> bool:
        """Go back to the best networks with a lower learning rate; False when that is used up."""
        collapse = self.config.collapse
        if (
            collapse.action != "rollback"
            or (best := self.keeper.best) is None
            or self.rollbacks >= collapse.max_rollbacks
        ):
            return False
        try:
            content = read_checkpoint(best.path, self.model.device)
        except CheckpointError as error:
            log.warning("no way back to the best checkpoint: %s", error)
            return False
        self.rollbacks += 1
        restore_networks(self.model, content)
        learning_rate(self.model).factor *= collapse.rollback_learning_rate_factor
        self.detector.restart()
        self.window.roll_back()
        # What a refused update left: the next boundary has no update to judge.
        self.meter.take()
        self.model.logger.name_to_value.clear()
        said = (f"rolled back to the policy of {best.total_steps} steps "
                f"({self.rollbacks} of {collapse.max_rollbacks})")  # fmt: skip
        log.warning("%s", said)
        self.sinks.on_incident(Incident("rollback", said))
        return True

    def _select(self) -> None:
        every = self.config.selection.every_steps
        steps = self.model.num_timesteps
        began = time.monotonic()
        if self.select is None:
            mean = self.window.mean_score()
            result = None if mean is None else SelectionScore(mean)
        else:
            policy = TorchPolicy(
                self.algorithm, self.config, self.config.evaluation.action_selection
            )
            with PreservedGenerators():
                result = self.select(policy)
        if self.stop.is_set() and result is None:
            return
        self.next_selection = (steps // every + 1) * every
        if result is None:
            return
        best = self.keeper.best
        is_best = (best is None or result.score > best.score) and self._save_best(result)
        best_score = self.keeper.best.score if self.keeper.best else result.score
        self.sinks.on_selection(
            SelectionDone(steps, result.score, best_score, is_best, dict(result.details),
                          time.monotonic() - began)
        )  # fmt: skip

    def _save_best(self, result: SelectionScore) -> bool:
        steps = self.model.num_timesteps
        content = capture(self.algorithm, self.env, self._values())
        # Networks and optimizer are what a rollback and an export need; the rest stays out.
        slim = CheckpointContent(
            {"counters": content.values["counters"], "score": result.score,
             "details": dict(result.details), "resume_hash": identity_of_run(self.config)},
            {name: content.tensors[name] for name in ("policy", "optimizer")}, {},
        )  # fmt: skip
        return self.keeper.save_best(steps, result.score, slim)

    def _save_last(self, *, required: bool) -> None:
        """Write the last resume point; a full disk stops nothing but the final one."""
        if self.resume_point is not None:
            self.keeper.save_last(self.resume_steps, self.resume_point, required=required)

    def _deliver(self) -> None:
        if self.pending:
            episodes, self.pending = self.pending, []
            self.sinks.on_episodes(episodes)

    def _report(self, scalars: Mapping[str, Any]) -> None:
        steps, target = self.model.num_timesteps, self.config.total_steps
        seconds = time.monotonic() - self.started
        rate = (steps - self.start_steps) / seconds if seconds > 0 else 0.0
        progress = Progress(
            total_steps=steps,
            target_steps=target,
            steps_per_second=rate,
            seconds_left=max(target - steps, 0) / rate if rate > 0 else None,
            episodes=self.window.finished,
            mean_furthest_px=self.window.mean_furthest_px(),
            mean_return=self.window.mean_return(),
            state=self.health.state,
            scalars={name: float(value) for name, value in scalars.items()},
        )
        self.sinks.on_progress(progress)
        if self.report_progress is not None:
            self.report_progress(progress)

    def _values(self) -> dict[str, Any]:
        best = self.keeper.best
        return {
            "resume_hash": identity_of_run(self.config),
            "action_selection": self.config.evaluation.action_selection,
            "attempt": self.attempt,
            "update": self.update,
            "window": self.window.to_dict(),
            "detector": self.detector.to_dict(),
            "rollbacks": self.rollbacks,
            "next_checkpoint": self.next_checkpoint,
            "next_selection": self.next_selection,
            "best": None if best is None else [best.path.name, best.total_steps, best.score],
        }

    def _restore(self, saved: tuple[Path, CheckpointContent]) -> None:
        values = restore(self.algorithm, self.env, saved[1])
        self.attempt = values["attempt"] + 1
        self.update = values["update"]
        self.window.restore(values["window"])
        self.detector.restore(values["detector"])
        self.health = Health(self.detector.state)
        self.rollbacks = values["rollbacks"]
        self.next_checkpoint = values["next_checkpoint"]
        self.next_selection = values["next_selection"]
        self.keeper.go_on_from(saved[0], self.model.num_timesteps, values["best"])

    def _result(self, status: RunStatus, reason: str, steps: int) -> TrainingResult:
        seconds = time.monotonic() - self.started
        done = self.model.num_timesteps - self.start_steps
        return TrainingResult(
            status=status,
            reason=reason,
            total_steps=steps,
            attempt_steps=done,
            seconds=seconds,
            steps_per_second=done / seconds if seconds > 0 else 0.0,
            episodes=self.window.finished,
            mean_furthest_px=self.window.mean_furthest_px(),
            mean_return=self.window.mean_return(),
            best=self.keeper.best,
            last=self.keeper.last,
            health=self.health,
            rollbacks=self.rollbacks,
        )
