"""A sweep as an Optuna study: trials are claimed one at a time and taken over from dead workers.

Any number of workers on any number of machines share a study. What must not happen twice at once
(create the study, count trials and propose the next, put back dead ones) happens under a lock of
the database, which is released when its holder dies.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal

import optuna
from optuna.storages import RetryHeartbeatStaleTrialCallback
from optuna.trial import Trial, TrialState

from mario.config.sweep import (
    Choice,
    Dimension,
    FloatRange,
    HyperbandPruner,
    MedianPruner,
    Scalar,
    Sweep,
)
from mario.errors import ConfigError
from mario.jobs.sweeps.storage import (
    SweepLock,
    open_storage,
    superseded,
    translated,
    without_warnings,
)

_HASH, _DEFINITION, _PARENT = "mario.hash", "mario.definition", "mario.parent_run"
#: Attributes of a trial: its first number; its run in the store; its values.
NUMBER_ATTRIBUTE, RUN_ATTRIBUTE, VALUES_ATTRIBUTE = "trial", "run_id", "values"
#: Its last error; that it must not be retried; how often it failed.
ERROR_ATTRIBUTE, FINAL_ATTRIBUTE = "error", "failed_for_good"
FAILURES_ATTRIBUTE = "failures"
#: The number under which a worker gave it back, and under which one claimed it completely.
GIVEN_BACK_ATTRIBUTE, CLAIMED_ATTRIBUTE = "given_back", "claimed"

Claim = Literal["ran", "wait", "done"]


class SweepStudy:
    """The Optuna study of a sweep, as one worker uses it.

    Attributes:
        name: the sweep's name.
        sweep: its definition.
        study: Optuna's.
    """

    def __init__(self, name: str, sweep: Sweep, database_url: str) -> None:
        """Open the study, or create it.

        Raises:
            ConfigError: the sweep of this name has another definition.
            StoreError: the database is unreachable.
        """
        self.name = name
        self.sweep = sweep
        self._lock = SweepLock(database_url, name)
        with self._lock(), without_warnings(), translated(name):
            self._storage = open_storage(database_url, sweep)
            self.study = optuna.create_study(
                storage=self._storage,
                study_name=name,
                direction="maximize",
                load_if_exists=True,
                pruner=_pruner(sweep),
            )
            self._same_definition()

    def _same_definition(self) -> None:
        known = self.study.user_attrs.get(_HASH)
        if known is None:
            self.study.set_user_attr(_DEFINITION, json.dumps(self.sweep.definition()))
            self.study.set_user_attr(_HASH, self.sweep.content_hash())
        elif known != self.sweep.content_hash():
            raise ConfigError(
                f"got sweep {self.name} with another experiment, space, sampler or pruner than it "
                f"was begun with ({known[:12]}, now {self.sweep.content_hash()[:12]}); expected "
                "the same; give what is new another name, or correct the file"
            )

    @property
    def parent_run_id(self) -> str | None:
        """The id of the sweep's own run in the store; None before it has one."""
        found = self.study.user_attrs.get(_PARENT)
        return None if found is None else str(found)

    @contextmanager
    def alone(self) -> Iterator[SweepStudy]:
        """Hold the sweep's lock during a block."""
        with self._lock(), translated(self.name):
            yield self

    def set_parent(self, run_id: str) -> None:
        """Keep the id of the sweep's own run; call it under the lock."""
        self.study.set_user_attr(_PARENT, run_id)

    def next(self, begin: Callable[[Trial], None], objective: Callable[[Trial], float]) -> Claim:
        """Run one trial, if one is left for this worker.

        Args:
            begin: called with the trial while the lock is held, before anything is trained.
            objective: called with the trial; returns its score, or raises `optuna.TrialPruned`.
                Any other exception fails the trial, which is put back.

        Returns:
            ``ran``; ``wait`` if every trial is claimed but some may still be given back; ``done``
            if every trial has ended.

        Raises:
            StoreUnavailableError: the database is unreachable.
            Exception: whatever the trial raised.
        """
        with translated(self.name):
            return self._next(begin, objective)

    def _next(self, begin: Callable[[Trial], None], objective: Callable[[Trial], float]) -> Claim:
        self._lock.acquire()
        try:
            self.put_back()
            trials = self.study.get_trials(deepcopy=False)
            places = len(trials) - len(superseded(trials))
            waiting = any(trial.state == TrialState.WAITING for trial in trials)
            if not waiting and places >= self.sweep.settings.trials:
                running = any(trial.state == TrialState.RUNNING for trial in trials)
                return "wait" if running else "done"
            # Depends on (seed, number) only: every worker would get the same proposal.
            self.study.sampler = _sampler(self.sweep, len(trials))

            def claimed(trial: Trial) -> float:
                # Optuna counts a trial without any heartbeat as alive, and its thread gives the
                # first one later: a worker killed before would be waited for without end.
                self._storage.record_heartbeat(trial._trial_id)
                trial.set_user_attr(CLAIMED_ATTRIBUTE, trial.number)
                # Proposed under the lock: two workers never propose from the same trials.
                values = propose(trial, self.sweep.settings.space)
                trial.set_user_attr(VALUES_ATTRIBUTE, json.dumps(values))
                if NUMBER_ATTRIBUTE not in trial.user_attrs:
                    trial.set_user_attr(NUMBER_ATTRIBUTE, trial.number)
                begin(trial)
                self._lock.release()
                return objective(trial)

            # `optimize`, not `ask`: it gives the heartbeats while the trial runs.
            self.study.optimize(claimed, n_trials=1)
            return "ran"
        finally:
            self._lock.release()

    def put_back(self) -> None:
        """Fail the trials of silent workers and queue failed trials again; call it under the lock.

        A trial is claimed under the lock, so a running trial without the mark of a complete claim
        has no worker. Waiting, running and completed trials are left alone, so this may be repeated
        and interrupted anywhere. A trial that a worker gave back has not failed. A trial that
        failed more than `max_retries` times stays failed and keeps its place in the sweep.
        """
        with without_warnings():
            optuna.storages.fail_stale_trials(self.study)
            for trial in self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
                if trial.user_attrs.get(CLAIMED_ATTRIBUTE) != trial.number:
                    self._storage.set_trial_state_values(trial._trial_id, TrialState.FAIL)
            queue = RetryHeartbeatStaleTrialCallback(inherit_intermediate_values=True)
            trials = self.study.get_trials(deepcopy=True)
            gone = superseded(trials)
            for trial in trials:
                if trial.state != TrialState.FAIL or trial.number in gone:
                    continue
                given_back = trial.user_attrs.get(GIVEN_BACK_ATTRIBUTE) == trial.number
                failures = trial.user_attrs.get(FAILURES_ATTRIBUTE, 0) + (not given_back)
                if (
                    FINAL_ATTRIBUTE in trial.user_attrs
                    or failures > self.sweep.settings.max_retries
                ):
                    continue
                trial.user_attrs[FAILURES_ATTRIBUTE] = failures
                queue(self.study, trial)


def propose(trial: Trial, space: dict[str, Dimension]) -> dict[str, Scalar]:
    """Propose a value for each key of the space; a trial that was put back keeps its values."""
    return {key: _suggest(trial, key, dimension) for key, dimension in space.items()}


def _suggest(trial: Trial, key: str, dimension: Dimension) -> Scalar:
    if isinstance(dimension, Choice):
        chosen = trial.suggest_categorical(key, list(dimension.choices))
        assert chosen is not None, "no choice is None"
        return chosen
    if isinstance(dimension, FloatRange):
        return trial.suggest_float(key, dimension.low, dimension.high, log=dimension.log)
    return trial.suggest_int(
        key, dimension.low, dimension.high, step=dimension.step, log=dimension.log
    )


def _sampler(sweep: Sweep, number: int) -> optuna.samplers.BaseSampler:
    settings = sweep.settings.sampler
    digest = hashlib.sha256(f"{settings.seed} {number}".encode()).digest()
    # Optuna ≥ 5: multivariate, and running trials count as bad (constant liar), so that two workers
    # do not try the same values.
    return optuna.samplers.TPESampler(
        n_startup_trials=settings.startup_trials, seed=int.from_bytes(digest[:4])
    )


def _pruner(sweep: Sweep) -> optuna.pruners.BasePruner:
    settings = sweep.settings.pruner
    if isinstance(settings, MedianPruner):
        return optuna.pruners.MedianPruner(
            n_startup_trials=settings.startup_trials, n_warmup_steps=settings.warmup_steps
        )
    if isinstance(settings, HyperbandPruner):
        return optuna.pruners.HyperbandPruner(
            min_resource=min(sweep.base.selection.every_steps, sweep.base.total_steps),
            max_resource=sweep.base.total_steps,
            reduction_factor=settings.reduction_factor,
        )
    return optuna.pruners.NopPruner()
