"""A worker of a sweep: claims trials and trains them until none is left.

Any number of workers share a sweep; each may start late, stop early or be killed. A trial's score
is that of its best checkpoint on selection seeds; confirmation seeds belong to the gate.
"""

from __future__ import annotations

import logging
import threading
from dataclasses import dataclass

from optuna.trial import Trial

from mario.config.sweep import Sweep
from mario.errors import RegistryError, StoreError
from mario.jobs.context import JobContext
from mario.jobs.sweeps.parent_run import ParentRun
from mario.jobs.sweeps.study import RUN_ATTRIBUTE, SweepStudy
from mario.jobs.sweeps.trial import OnTrial, TrialGivenBackError, TrialTrainer, trial_name
from mario.store.records import new_id

log = logging.getLogger(__name__)

#: How often a worker without a trial checks whether one was given back.
_LOOK_EVERY_SECONDS = 5.0


@dataclass(frozen=True)
class SweepWork:
    """What one worker did.

    Attributes:
        trials: number of trials it worked on.
        finished: whether every trial of the sweep has ended.
    """

    trials: int
    finished: bool


class SweepWorker:
    """One worker of a sweep."""

    def __init__(
        self,
        name: str,
        sweep: Sweep,
        context: JobContext,
        *,
        stop: threading.Event | None = None,
        on_trial: OnTrial | None = None,
    ) -> None:
        """Open the sweep, or begin it.

        Args:
            name: the sweep's name; workers that use the same name share the trials.
            sweep: its definition.
            context: settings, store and tracking.
            stop: set to stop cleanly: the trial is given back and resumed by another worker.
            on_trial: called with one line when a trial has ended; None logs it.

        Raises:
            ConfigError: the name is invalid, or the sweep of this name has another definition.
            StoreError: the database is unreachable.
        """
        self._stop = stop or threading.Event()
        self._tell = on_trial or log.info
        sweep.experiment({}, name=trial_name(name, 0))  # refuses a name that runs cannot have
        # The store's tables are created before Optuna's beside them.
        self.study = SweepStudy(name, sweep, context.store.url)
        self.parent = ParentRun(name, sweep, context, self.study)
        self.trainer = TrialTrainer(name, sweep, context, stop=self._stop, on_trial=self._tell)

    def run(self, max_trials: int | None = None) -> SweepWork:
        """Work on trials until all have ended.

        Args:
            max_trials: stop after so many trials of this worker.

        Raises:
            StoreError, RegistryError: the database or MLflow is unreachable; the trial is put back.
        """
        with self.parent.heartbeats():
            return self._run(max_trials)

    def _run(self, max_trials: int | None) -> SweepWork:
        worked = 0
        while not self._stop.is_set() and (max_trials is None or worked < max_trials):
            try:
                claim = self.study.next(self._begin, self._train)
            except (StoreError, RegistryError):
                raise
            except TrialGivenBackError as given:
                self._tell(str(given))
                break
            except Exception as error:
                # A trial that cannot be trained must not end the sweep: its retries are counted.
                log.warning("a trial failed: %s: %s", type(error).__name__, error)
                claim = "ran"
            if claim == "done":
                self.parent.end()
                return SweepWork(worked, finished=True)
            if claim == "wait":
                self._stop.wait(_LOOK_EVERY_SECONDS)
                continue
            worked += 1
        with self.study.alone() as study:
            study.put_back()
        return SweepWork(worked, finished=False)

    def _begin(self, trial: Trial) -> None:
        """Under the sweep's lock: give the trial the id of its run, and the sweep a heartbeat."""
        if RUN_ATTRIBUTE not in trial.user_attrs:
            trial.set_user_attr(RUN_ATTRIBUTE, new_id("run"))
        self.parent.keep()

    def _train(self, trial: Trial) -> float:
        return self.trainer.train(trial, self.study.parent_run_id)


def open_sweep(name: str, sweep: Sweep, context: JobContext) -> None:
    """Begin a sweep, or check that it can continue; see `SweepWorker` for errors."""
    SweepWorker(name, sweep, context)


def run_sweep(
    name: str,
    sweep: Sweep,
    context: JobContext,
    *,
    stop: threading.Event | None = None,
    max_trials: int | None = None,
    on_trial: OnTrial | None = None,
) -> SweepWork:
    """Work on a sweep; see `SweepWorker`."""
    return SweepWorker(name, sweep, context, stop=stop, on_trial=on_trial).run(max_trials)
