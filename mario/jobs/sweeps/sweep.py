"""Sweep: look for better hyperparameters with any number of workers that come, go and die.

A trial is a training run like any other: it has its row in the store (below the sweep's own run),
its MLflow run (a child of the sweep's), its folder and its checkpoints, so a trial whose worker was
killed goes on from its checkpoint wherever the runs folder is shared, and from the start elsewhere.
What a trial is worth is the score of its best checkpoint on selection seeds; confirmation seeds are
for the gate, which judges what a sweep found like anything else.
"""

from __future__ import annotations

import contextlib
import json
import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import optuna
from optuna.trial import FrozenTrial, Trial, TrialState

from mario.config.experiment import ExperimentConfig
from mario.config.run_states import RunStatus
from mario.config.sweep import Sweep
from mario.errors import (
    ConfigError,
    RegistryError,
    RunIsBusy,
    StoreError,
    TrainingInterrupted,
)
from mario.jobs.attempts import wait_for_turn
from mario.jobs.context import JobContext
from mario.jobs.provenance import git_commit, git_diff, library_versions
from mario.jobs.sweeps.study import (
    ERROR_ATTRIBUTE,
    FINAL_ATTRIBUTE,
    GIVEN_BACK_ATTRIBUTE,
    NUMBER_ATTRIBUTE,
    RUN_ATTRIBUTE,
    VALUES_ATTRIBUTE,
    SweepStudy,
    load_trials,
)
from mario.jobs.sweeps.tracking import begin_sweep_run, describe_trial, end_sweep_run
from mario.jobs.train import train_run
from mario.store.check import SWEEP_ALGORITHM, run_is_alive
from mario.store.records import AttemptEnd, Heartbeat, NewRun, Run, new_id
from mario.store.store import ExperimentStore
from mario.training.run import CONFIG_FILE
from mario.training.sinks import SelectionDone

log = logging.getLogger(__name__)

#: How often a worker without a trial looks whether one was given back.
_LOOK_EVERY_SECONDS = 5.0

OnTrial = Callable[[str], None]


class _GivenBackError(Exception):
    """The worker was asked to end in the middle of a trial; another will go on with it."""


@dataclass(frozen=True)
class SweepWork:
    """What one worker did.

    Attributes:
        trials: how many it worked on.
        finished: whether every trial of the sweep has ended.
    """

    trials: int
    finished: bool


class _Watch(threading.Event):
    """The stop of a trial's training: the worker's own, or that the trial is given up."""

    def __init__(self, trial: Trial, total_steps: int, stop: threading.Event) -> None:
        super().__init__()
        self._trial = trial
        self._total_steps = total_steps
        self._worker_stop = stop
        self.pruned = False
        self.reason = ""
        self.error: Exception | None = None

    def is_set(self) -> bool:
        """Whether to end."""
        return super().is_set() or self._worker_stop.is_set()

    def selection(self, selection: SelectionDone) -> None:
        """Report the score; give the trial up where others did better by now."""
        try:
            self._trial.report(selection.score, selection.total_steps)
            # At its end there is nothing left to save.
            if selection.total_steps < self._total_steps and self._trial.should_prune():
                self.pruned = True
                self.reason = "pruned: below the other trials of the sweep"
                self.set()
        except Exception as error:  # a sink's exceptions go no further than the log
            self.error = error
            self.set()


class SweepWorker:
    """One worker of a sweep: takes trials until there are none, or until it is told to stop."""

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
            name: what people call it; workers that use the same name share the trials.
            sweep: its definition.
            context: settings, store and tracking.
            stop: set to end cleanly: the trial is given back and goes on elsewhere.
            on_trial: told in words what became of each trial.

        Raises:
            ConfigError: the name is none, or a sweep of this name looks for something else.
            StoreError: the database does not answer.
        """
        self._context = context
        self._sweep = sweep
        self._stop = stop or threading.Event()
        self._tell = on_trial or log.info
        self._name = name
        sweep.experiment({}, name=_trial_name(name, 0))  # refuses a name that runs cannot have
        # The store's tables are made before Optuna's beside them.
        self._study = SweepStudy(name, sweep, context.store.url)

    def run(self, max_trials: int | None = None) -> SweepWork:
        """Take trials until all have ended.

        Args:
            max_trials: end after so many of its own.

        Raises:
            StoreError, RegistryError: database or tracking cannot be reached; the trial goes back.
        """
        with self._signs_of_life():
            return self._run(max_trials)

    def _run(self, max_trials: int | None) -> SweepWork:
        worked = 0
        while not self._stop.is_set() and (max_trials is None or worked < max_trials):
            try:
                claim = self._study.next(self._begin, self._train)
            except (StoreError, RegistryError):
                raise
            except _GivenBackError as given:
                self._tell(str(given))
                break
            except Exception as error:
                # A trial that cannot be trained must not end the sweep: its retries are counted.
                log.warning("a trial failed: %s: %s", type(error).__name__, error)
                claim = "ran"
            if claim == "done":
                self._end()
                return SweepWork(worked, finished=True)
            if claim == "wait":
                self._stop.wait(_LOOK_EVERY_SECONDS)
                continue
            worked += 1
        with self._study.alone() as study:
            study.put_back()
        return SweepWork(worked, finished=False)

    # -- under the sweep's lock -------------------------------------------------------------

    def _begin(self, trial: Trial) -> None:
        """Give the trial a run's id before there is a run, and see that the sweep's run lives."""
        if RUN_ATTRIBUTE not in trial.user_attrs:
            trial.set_user_attr(RUN_ATTRIBUTE, new_id("run"))
        self._keep_parent()

    def _keep_parent(self) -> str:
        """The sweep's own run in the store: begun by the first worker, adopted by any other."""
        run_id = self._study.parent_run_id
        if run_id is None:
            run_id = new_id("sweep")
            self._study.set_parent(run_id)
        store = self._context.store
        run = store.runs.find(run_id)
        if run is None:
            base = self._sweep.base
            run = store.runs.start(
                NewRun(
                    id=run_id,
                    name=self._name,
                    task=base.task,
                    algorithm=SWEEP_ALGORITHM,
                    config=self._sweep.definition(),
                    config_hash=self._sweep.content_hash(),
                    git_commit=git_commit(),
                    git_diff=git_diff(),
                    library_versions=library_versions(),
                )
            )
        else:
            run = _keep(store, run)
        if self._sweep.base.sinks.mlflow and run.mlflow_run_id is None:
            store.runs.set_mlflow_run(
                run_id, begin_sweep_run(self._context.tracking, run, self._sweep.definition())
            )
        return run_id

    @contextmanager
    def _signs_of_life(self) -> Iterator[None]:
        """Say all the time that the sweep's own run lives: it is nobody's, as workers come and go.

        Without it, a run that another machine's worker began would be dead to everybody else.
        """
        over = threading.Event()

        def beat() -> None:
            while not over.wait(self._context.waits.heartbeat_seconds):
                try:
                    run_id = self._study.parent_run_id
                    store = self._context.store
                    run = None if run_id is None else store.runs.find(run_id)
                    if run is not None and run.status != RunStatus.FINISHED:
                        _keep(store, run)
                except Exception as error:  # whoever waits for a database says so
                    log.debug("no sign of life of the sweep: %s", error)

        thread = threading.Thread(target=beat, name="signs of life", daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join(_LOOK_EVERY_SECONDS)

    # -- a trial ----------------------------------------------------------------------------

    def _train(self, trial: Trial) -> float:
        """Train one trial; its score. Why it failed stays with it."""
        try:
            return self._trained(trial)
        except (optuna.TrialPruned, _GivenBackError):
            raise
        except Exception as error:
            with contextlib.suppress(Exception):  # the database may be what failed
                trial.set_user_attr(ERROR_ATTRIBUTE, f"{type(error).__name__}: {error}"[:500])
            raise

    def _trained(self, trial: Trial) -> float:
        first = int(trial.user_attrs[NUMBER_ATTRIBUTE])
        values = json.loads(trial.user_attrs[VALUES_ATTRIBUTE])
        run_id = str(trial.user_attrs[RUN_ATTRIBUTE])
        try:
            config = self._sweep.experiment(values, name=_trial_name(self._name, first))
        except ConfigError:
            trial.set_user_attr(FINAL_ATTRIBUTE, True)  # the space allows what the game does not
            raise
        watch = _Watch(trial, config.total_steps, self._stop)
        outcome = None
        try:
            while outcome is None:
                # Its worker was silent for longer than the grace; it may be there all the same.
                wait_for_turn(self._context, run_id, watch)
                begun = (self._context.settings.run_dir(run_id) / CONFIG_FILE).is_file()
                try:
                    outcome = train_run(
                        config,
                        self._context,
                        resume=run_id if begun else None,
                        run_id=run_id,
                        parent_run_id=self._study.parent_run_id,
                        stop=watch,
                        on_selection=watch.selection,
                    )
                except RunIsBusy as busy:  # another was quicker, or it was heard of in this moment
                    log.warning("%s", busy)
        except TrainingInterrupted as interrupted:  # before it trained
            trial.set_user_attr(GIVEN_BACK_ATTRIBUTE, trial.number)
            raise _GivenBackError(f"trial {first} given back: {interrupted}") from interrupted
        if watch.error is not None:
            raise watch.error
        result = outcome.result
        what = f"trial {first} ({run_id})"
        if result.status == RunStatus.INTERRUPTED and not watch.pruned:
            trial.set_user_attr(GIVEN_BACK_ATTRIBUTE, trial.number)
            raise _GivenBackError(f"{what} given back at {result.total_steps:,} steps")
        state = "pruned" if watch.pruned else result.status
        score = result.best.score if result.best is not None else 0.0
        self._describe(config, run_id, first, state, score)
        self._tell(f"{what} {state} at {result.total_steps:,} steps, score {score:.4f}")
        if watch.pruned:
            raise optuna.TrialPruned(f"{what} was below the others")
        trial.set_user_attr("status", result.status)
        return score

    def _describe(
        self, config: ExperimentConfig, run_id: str, number: int, state: str, score: float
    ) -> None:
        """Say in MLflow what became of the trial; MLflow may be away."""
        if not config.sinks.mlflow:
            return
        tracked = self._context.store.runs.get(run_id).mlflow_run_id
        try:
            describe_trial(self._context.tracking, tracked, self._name, number, state, score)
        except RegistryError as error:
            log.warning("MLflow does not know how trial %d ended: %s", number, error)

    def _end(self) -> None:
        """End the sweep's own run, once."""
        with self._study.alone() as study:
            run_id = study.parent_run_id
            if run_id is None:
                return
            run = self._context.store.runs.get(run_id)
            if run.status == RunStatus.FINISHED:
                return
            self._context.store.runs.end(
                AttemptEnd(
                    run_id=run_id,
                    attempt=run.attempts[-1].attempt,
                    status=RunStatus.FINISHED,
                    end_steps=None,
                    reason=None,
                )
            )
        if run.mlflow_run_id is not None:
            trials = load_trials(self._name, self._context.settings.database_url)[1]
            best = best_of(trials)
            try:
                end_sweep_run(
                    self._context.tracking,
                    run.mlflow_run_id,
                    len(trials),
                    best.value if best else None,
                )
            except RegistryError as error:
                log.warning("MLflow still shows the sweep as running: %s", error)


def _keep(store: ExperimentStore, run: Run) -> Run:
    """Give a sign of life for a sweep's own run; take it over where none was given for long."""
    if run.status == RunStatus.RUNNING and run_is_alive(run):
        last = run.attempts[-1].attempt
        store.runs.write([Heartbeat(run_id=run.id, attempt=last, total_steps=0)])
        return run
    try:
        return store.runs.resume(run.id, start_steps=0)
    except RunIsBusy:  # another was quicker
        return run


def _trial_name(name: str, number: int) -> str:
    return f"{name}-{number:03d}"


def best_of(trials: list[FrozenTrial]) -> FrozenTrial | None:
    """The trial with the highest score among those that came to their end; the first of equals."""
    ended = [trial for trial in trials if trial.state == TrialState.COMPLETE]
    return max(ended, key=lambda trial: (trial.value or 0.0, -trial.number), default=None)


def open_sweep(name: str, sweep: Sweep, context: JobContext) -> None:
    """Begin a sweep, or see that it can be gone on with; see :class:`SweepWorker` for errors."""
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
    """Work on a sweep; see :class:`SweepWorker`."""
    worker = SweepWorker(name, sweep, context, stop=stop, on_trial=on_trial)
    return worker.run(max_trials)


def describe_sweep(name: str, context: JobContext) -> str:
    """What `mario sweep status` shows: one line a trial, then how many are in which state.

    Raises:
        StoreError: there is no such sweep.
    """
    _, trials = load_trials(name, context.settings.database_url)
    lines = [_trial_line(trial) for trial in trials]
    counts = {
        state.name.lower(): sum(trial.state == state for trial in trials) for state in TrialState
    }
    shown = ", ".join(f"{count} {state}" for state, count in counts.items() if count)
    return "\n".join([*lines, f"{name}: {len(trials)} trials: {shown or 'none yet'}"])


def _trial_line(trial: FrozenTrial) -> str:
    number = trial.user_attrs.get(NUMBER_ATTRIBUTE, trial.number)
    score = trial.value
    if score is None and trial.intermediate_values:
        score = trial.intermediate_values[max(trial.intermediate_values)]
    retries = len(trial.system_attrs.get("retry_history", ()))
    again = f", taken up {retries}x" if retries else ""
    failed = trial.state == TrialState.FAIL
    why = trial.user_attrs.get(ERROR_ATTRIBUTE) if failed else None
    return (
        f"{number:>4} {trial.state.name.lower():<9} "
        f"{'-' if score is None else f'{score:.4f}':<7} "
        f"{trial.user_attrs.get(RUN_ATTRIBUTE, '-'):<29} {_values_text(trial.params)}{again}"
        + (f" ({why})" if why else "")
    )


def _values_text(values: dict[str, Any]) -> str:
    return " ".join(
        f"{key}={value:.6g}" if isinstance(value, float) else f"{key}={value}"
        for key, value in values.items()
    )


def describe_best(name: str, context: JobContext) -> str:
    """What `mario sweep best` shows: the best trial, and how to go on with it.

    Raises:
        StoreError: there is no such sweep, or none of its trials has come to its end.
    """
    best = _best(name, context)
    run_id = best.user_attrs[RUN_ATTRIBUTE]
    settings = " ".join(f"--set {key}={json.dumps(value)}" for key, value in best.params.items())
    return (
        f"best trial {best.user_attrs[NUMBER_ATTRIBUTE]}: score "
        f"{best.value:.4f} on selection seeds, run {run_id}\n"
        f"{_values_text(best.params)}\n"
        f"register it with: mario register {run_id}\n"
        f"train with its values: mario train --config … {settings}"
    )


def best_config(name: str, context: JobContext) -> ExperimentConfig:
    """The best trial's experiment, under its own name.

    Raises:
        StoreError: there is no such sweep, or none of its trials has come to its end.
    """
    best = _best(name, context)
    config = context.store.runs.get(str(best.user_attrs[RUN_ATTRIBUTE])).config
    return ExperimentConfig.model_validate(dict(config))


def _best(name: str, context: JobContext) -> FrozenTrial:
    _, trials = load_trials(name, context.settings.database_url)
    best = best_of(trials)
    if best is None:
        raise StoreError(
            f"sweep {name} has {len(trials)} trials, and none of them has come to its end; "
            "expected one at least; see `mario sweep status`"
        )
    return best
