"""Train one trial of a sweep: a training run that reports its scores and may be pruned.

A trial has a row in the store below the sweep's own run, an MLflow run below the sweep's, a folder
and checkpoints. If its worker is killed, another worker resumes it from its checkpoint where the
runs folder is shared, and from the start elsewhere.
"""

from __future__ import annotations

import contextlib
import json
import logging
import threading
from collections.abc import Callable

import optuna
from optuna.trial import Trial

from mario.config.experiment import ExperimentConfig
from mario.config.run_states import RunStatus
from mario.config.sweep import Sweep
from mario.errors import ConfigError, RegistryError, RunIsBusy, TrainingInterrupted
from mario.jobs.attempts import wait_for_turn
from mario.jobs.context import JobContext
from mario.jobs.sweeps.study import (
    ERROR_ATTRIBUTE,
    FINAL_ATTRIBUTE,
    GIVEN_BACK_ATTRIBUTE,
    NUMBER_ATTRIBUTE,
    RUN_ATTRIBUTE,
    VALUES_ATTRIBUTE,
)
from mario.jobs.sweeps.tracking import describe_trial
from mario.jobs.train import TrainOutcome, train_run
from mario.training.run_folder import CONFIG_FILE
from mario.training.sinks import SelectionDone

log = logging.getLogger(__name__)

OnTrial = Callable[[str], None]


class TrialGivenBackError(Exception):
    """The worker was asked to stop during a trial; another worker will resume it."""


class _TrialStop(threading.Event):
    """Stops the training of a trial: when its worker stops, or when the trial is pruned."""

    def __init__(self, trial: Trial, total_steps: int, worker_stop: threading.Event) -> None:
        super().__init__()
        self._trial = trial
        self._total_steps = total_steps
        self._worker_stop = worker_stop
        self.pruned = False
        self.reason = ""
        self.error: Exception | None = None

    def is_set(self) -> bool:
        """Whether to stop."""
        return super().is_set() or self._worker_stop.is_set()

    def selection(self, selection: SelectionDone) -> None:
        """Report a score to the study; stop the trial if the pruner says so."""
        try:
            self._trial.report(selection.score, selection.total_steps)
            # After its last step, pruning would save nothing.
            if selection.total_steps < self._total_steps and self._trial.should_prune():
                self.pruned = True
                self.reason = "pruned: below the other trials of the sweep"
                self.set()
        except Exception as error:  # an exception raised here would only be logged
            self.error = error
            self.set()


def trial_name(sweep_name: str, number: int) -> str:
    """Name the run of a trial: ``<sweep>-<number>``."""
    return f"{sweep_name}-{number:03d}"


class TrialTrainer:
    """Trains the trials that one worker claims."""

    def __init__(
        self,
        name: str,
        sweep: Sweep,
        context: JobContext,
        *,
        stop: threading.Event,
        on_trial: OnTrial,
    ) -> None:
        """Prepare to train trials of a sweep.

        Args:
            name: the sweep's name.
            sweep: its definition.
            context: settings, store and tracking.
            stop: set to stop with a checkpoint and give the trial back.
            on_trial: called with one line when a trial has ended.
        """
        self._name = name
        self._sweep = sweep
        self._context = context
        self._stop = stop
        self._tell = on_trial

    def train(self, trial: Trial, parent_run_id: str | None) -> float:
        """Train one trial; if it fails, the reason is kept with the trial.

        Args:
            trial: the claimed trial.
            parent_run_id: the sweep's own run.

        Returns:
            The score of the best checkpoint on selection seeds.

        Raises:
            optuna.TrialPruned: other trials had better scores.
            TrialGivenBackError: the worker was asked to stop.
            Exception: whatever made the trial fail.
        """
        try:
            return self._train(trial, parent_run_id)
        except (optuna.TrialPruned, TrialGivenBackError):
            raise
        except Exception as error:
            with contextlib.suppress(Exception):  # the database may be what failed
                trial.set_user_attr(ERROR_ATTRIBUTE, f"{type(error).__name__}: {error}"[:500])
            raise

    def _train(self, trial: Trial, parent_run_id: str | None) -> float:
        number = int(trial.user_attrs[NUMBER_ATTRIBUTE])
        run_id = str(trial.user_attrs[RUN_ATTRIBUTE])
        try:
            values = json.loads(trial.user_attrs[VALUES_ATTRIBUTE])
            config = self._sweep.experiment(values, name=trial_name(self._name, number))
        except ConfigError:
            trial.set_user_attr(FINAL_ATTRIBUTE, True)  # values of the space that fail together
            raise
        stop = _TrialStop(trial, config.total_steps, self._stop)
        try:
            outcome = self._run(config, run_id, parent_run_id, stop)
        except TrainingInterrupted as interrupted:  # before it trained
            trial.set_user_attr(GIVEN_BACK_ATTRIBUTE, trial.number)
            raise TrialGivenBackError(f"trial {number} given back: {interrupted}") from interrupted
        if stop.error is not None:
            raise stop.error
        result = outcome.result
        what = f"trial {number} ({run_id})"
        if result.status == RunStatus.INTERRUPTED and not stop.pruned:
            trial.set_user_attr(GIVEN_BACK_ATTRIBUTE, trial.number)
            raise TrialGivenBackError(f"{what} given back at {result.total_steps:,} steps")
        state = "pruned" if stop.pruned else result.status
        score = result.best.score if result.best is not None else 0.0
        self._describe(config, run_id, number, state, score)
        self._tell(f"{what} {state} at {result.total_steps:,} steps, score {score:.4f}")
        if stop.pruned:
            raise optuna.TrialPruned(f"{what} was below the others")
        trial.set_user_attr("status", result.status)
        return score

    def _run(
        self, config: ExperimentConfig, run_id: str, parent_run_id: str | None, stop: _TrialStop
    ) -> TrainOutcome:
        """Start or resume the run of a trial as soon as no other process trains it."""
        while True:
            # Optuna gives up a silent worker long before the store does; it may still be training.
            wait_for_turn(self._context, run_id, stop)
            begun = (self._context.settings.run_dir(run_id) / CONFIG_FILE).is_file()
            try:
                return train_run(
                    config,
                    self._context,
                    resume=run_id if begun else None,
                    run_id=run_id,
                    parent_run_id=parent_run_id,
                    stop=stop,
                    on_selection=stop.selection,
                )
            except RunIsBusy as busy:  # another process took it meanwhile
                log.warning("%s", busy)

    def _describe(
        self, config: ExperimentConfig, run_id: str, number: int, state: str, score: float
    ) -> None:
        """Record the end of a trial in MLflow; an unreachable MLflow is only logged."""
        if not config.sinks.mlflow:
            return
        tracked = self._context.store.runs.get(run_id).mlflow_run_id
        try:
            describe_trial(self._context.tracking, tracked, self._name, number, state, score)
        except RegistryError as error:
            log.warning("MLflow does not know how trial %d ended: %s", number, error)
