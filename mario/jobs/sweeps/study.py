"""A sweep's trials in Optuna's own tables: claimed one at a time, taken up when a worker dies.

Optuna keeps its tables in a schema of its own (PostgreSQL) or a file of its own (SQLite, beside the
store's), because both it and the store name a table ``alembic_version``.

Any number of workers on any number of machines share a study. What must not happen twice at a time
(making the study, counting trials and asking for the next, putting dead ones back) happens under a
lock of the database, which a worker that dies gives up by dying.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import IO, Any, Literal

import optuna
import sqlalchemy as sa
from optuna.storages import RDBStorage, RetryHeartbeatStaleTrialCallback
from optuna.trial import FrozenTrial, Trial, TrialState

from mario.config.sweep import (
    Choice,
    Dimension,
    FloatRange,
    HyperbandPruner,
    MedianPruner,
    Scalar,
    Sweep,
)
from mario.errors import ConfigError, StoreError
from mario.store.engine import StoreUnavailableError, explain, make_engine, sqlite_path

#: Optuna's schema in a PostgreSQL database, and its file beside a SQLite one.
SCHEMA = "mario_sweeps"
FILE = "sweeps.db"
_HASH, _DEFINITION, _PARENT = "mario.hash", "mario.definition", "mario.parent_run"
#: Of a trial: the number it had first; its run in the store; its values.
NUMBER_ATTRIBUTE, RUN_ATTRIBUTE, VALUES_ATTRIBUTE = "trial", "run_id", "values"
#: Why it failed last, and why it is not tried again; how often it failed before.
ERROR_ATTRIBUTE, FINAL_ATTRIBUTE = "error", "failed_for_good"
FAILURES_ATTRIBUTE = "failures"
#: Its number of then, where a worker gave it back, and where one had claimed it whole.
GIVEN_BACK_ATTRIBUTE, CLAIMED_ATTRIBUTE = "given_back", "claimed"

Claim = Literal["ran", "wait", "done"]


def storage_url(database_url: str) -> str:
    """Where the trials of a store's sweeps are.

    Example:
        >>> storage_url("sqlite:///runs/mario.db")
        'sqlite:///runs/sweeps.db'
    """
    path = sqlite_path(database_url)
    return database_url if path is None else f"sqlite:///{path.with_name(FILE)}"


class SweepLock:
    """One holder at a time, over all workers; released when its process or connection ends."""

    def __init__(self, database_url: str, name: str) -> None:
        """Prepare the lock of a sweep; nothing is taken yet."""
        self._path = sqlite_path(storage_url(database_url))
        self._key = int.from_bytes(
            hashlib.sha256(f"sweep {name}".encode()).digest()[:8], signed=True
        )
        self._engine = make_engine(database_url) if self._path is None else None
        self._held: sa.Connection | IO[str] | None = None

    @property
    def held(self) -> bool:
        """Whether this process holds it."""
        return self._held is not None

    def acquire(self) -> None:
        """Wait for the lock.

        Raises:
            StoreError: the database does not answer.
        """
        if self._engine is None:
            assert self._path is not None
            self._path.parent.mkdir(parents=True, exist_ok=True)
            file = self._path.with_suffix(".lock").open("w")
            fcntl.flock(file, fcntl.LOCK_EX)
            self._held = file
            return
        try:
            connection = self._engine.connect()
            connection.execute(sa.select(sa.func.pg_advisory_lock(self._key)))
            connection.commit()  # the lock is the session's; no transaction stays open
        except sa.exc.DBAPIError as error:
            raise explain(error, self._engine.url) from error
        self._held = connection

    def release(self) -> None:
        """Let the next one in; nothing happens where it is not held."""
        held, self._held = self._held, None
        if isinstance(held, sa.Connection):
            held.detach()  # ended, not given back to a pool: that is what frees the lock
            held.close()
        elif held is not None:
            held.close()

    @contextmanager
    def __call__(self) -> Iterator[None]:
        """Hold it for a block."""
        self.acquire()
        try:
            yield
        finally:
            self.release()


def open_storage(database_url: str, sweep: Sweep | None = None) -> RDBStorage:
    """Open Optuna's tables, made if need be; call it under the lock.

    Args:
        database_url: the store's.
        sweep: its heartbeat is kept; None for looking only.

    Raises:
        StoreError: the database does not answer, or may not get a schema.
    """
    url = storage_url(database_url)
    arguments: dict[str, Any] = {"connect_args": {"timeout": 60}}
    if sqlite_path(url) is None:
        _make_schema(database_url)
        arguments = {
            "connect_args": {"options": f"-csearch_path={SCHEMA}", "connect_timeout": 5},
            "pool_pre_ping": True,
        }
    optuna.logging.set_verbosity(optuna.logging.ERROR)  # what matters is said by the worker
    try:
        with _quiet():
            return RDBStorage(
                url,
                engine_kwargs=arguments,
                heartbeat_interval=sweep.settings.heartbeat_seconds if sweep else None,
                grace_period=sweep.settings.grace_seconds if sweep else None,
            )
    except sa.exc.DBAPIError as error:
        raise explain(error, url) from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Without Optuna's warnings that heartbeats are experimental."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        yield


@contextmanager
def _answering(name: str) -> Iterator[None]:
    """Say in one line that a sweep's tables cannot be used now; the same may go well later.

    Raises:
        StoreUnavailableError: the database did not answer, or took something back.
    """
    try:
        yield
    except (sa.exc.SQLAlchemyError, optuna.exceptions.StorageInternalError) as error:
        reason = _first_line(error.__cause__ or error)  # Optuna's own words are of invalid data
        raise StoreUnavailableError(
            f"the tables of sweep {name} cannot be used ({reason}); expected a database that "
            "answers; the same command goes on when it does"
        ) from error


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


def _make_schema(database_url: str) -> None:
    engine = make_engine(database_url)
    try:
        with engine.begin() as connection:
            there = connection.execute(
                sa.text("SELECT 1 FROM information_schema.schemata WHERE schema_name = :name"),
                {"name": SCHEMA},
            ).first()
            if there is None:  # only then is the right to create one needed
                connection.execute(sa.schema.CreateSchema(SCHEMA, if_not_exists=True))
    except sa.exc.DBAPIError as error:
        raise explain(error, database_url) from error
    finally:
        engine.dispose()


class SweepStudy:
    """A sweep's study, as one worker sees it.

    Attributes:
        name: what people call the sweep.
        sweep: its definition.
        study: Optuna's.
    """

    def __init__(self, name: str, sweep: Sweep, database_url: str) -> None:
        """Open the study, or make it.

        Raises:
            ConfigError: a sweep of this name looks for something else.
            StoreError: the database does not answer.
        """
        self.name = name
        self.sweep = sweep
        self._lock = SweepLock(database_url, name)
        with self._lock(), _quiet(), _answering(name):
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
        """The sweep's own run in the store, once it has one."""
        found = self.study.user_attrs.get(_PARENT)
        return None if found is None else str(found)

    @contextmanager
    def alone(self) -> Iterator[SweepStudy]:
        """Hold the sweep's lock for a block."""
        with self._lock(), _answering(self.name):
            yield self

    def set_parent(self, run_id: str) -> None:
        """Note the sweep's own run; call it under the lock."""
        self.study.set_user_attr(_PARENT, run_id)

    def next(self, begin: Callable[[Trial], None], objective: Callable[[Trial], float]) -> Claim:
        """Run one trial, if there is one for this worker.

        Args:
            begin: called with the trial while the lock is held, before anything is trained.
            objective: called with the trial; returns its score, or raises `optuna.TrialPruned`.
                With what else it raises the trial has failed, and is put back.

        Returns:
            ``ran``; ``wait`` where all trials are handed out but some may still be given back;
            ``done`` where every one has ended.

        Raises:
            StoreUnavailableError: the database does not answer.
            Exception: whatever the trial raised.
        """
        with _answering(self.name):
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
            # From (seed, number) alone: the same proposals whoever asks for them.
            self.study.sampler = _sampler(self.sweep, len(trials))

            def claimed(trial: Trial) -> float:
                # Optuna's thread gives the first sign of life sometime, and takes a trial without
                # any for alive: of a worker killed before, it would wait for ever.
                self._storage.record_heartbeat(trial._trial_id)
                trial.set_user_attr(CLAIMED_ATTRIBUTE, trial.number)
                # Proposed while nobody else asks: two workers never propose from the same past.
                values = propose(trial, self.sweep.settings.space)
                trial.set_user_attr(VALUES_ATTRIBUTE, json.dumps(values))
                if NUMBER_ATTRIBUTE not in trial.user_attrs:
                    trial.set_user_attr(NUMBER_ATTRIBUTE, trial.number)
                begin(trial)
                self._lock.release()
                return objective(trial)

            # `optimize`, not `ask`: it is what keeps the heartbeat while the trial runs.
            self.study.optimize(claimed, n_trials=1)
            return "ran"
        finally:
            self._lock.release()

    def put_back(self) -> None:
        """Fail trials whose worker is silent, and queue what failed again; under the lock.

        A trial is claimed under the lock, so one that runs and is not claimed whole has no worker.
        A trial that waits, runs or has ended well is left alone, so this may be repeated and may be
        broken off anywhere. A trial that a worker gave back is no failure; one that failed more
        than `max_retries` times stays failed, and keeps its place among the sweep's trials.
        """
        with _quiet():
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


def superseded(trials: list[FrozenTrial]) -> set[int]:
    """Numbers of failed trials that another trial stands for."""
    return {number for trial in trials for number in trial.system_attrs.get("retry_history", ())}


def propose(trial: Trial, space: dict[str, Dimension]) -> dict[str, Scalar]:
    """One value for each key of the space; a trial that was put back has its old ones."""
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
    # Optuna ≥ 5: multivariate, and trials that run count as bad where they are (constant liar), so
    # that two workers do not try the same spot.
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


def load_trials(name: str, database_url: str) -> tuple[dict[str, Any], list[FrozenTrial]]:
    """Look at a sweep: its definition, and its trials in order, without those put back.

    Raises:
        StoreError: there is no sweep of this name.
        StoreUnavailableError: the database does not answer.
    """
    path = sqlite_path(storage_url(database_url))
    known: list[str] = []
    with _answering(name):
        if path is None or path.is_file():
            with SweepLock(database_url, name)():
                storage = open_storage(database_url)
            known = sorted(study.study_name for study in storage.get_all_studies())
        if name not in known:
            raise StoreError(
                f"got sweep {name!r}; expected one of: {', '.join(known) or 'none yet'}; begin it "
                f"with `mario sweep run {name} --config configs/sweeps/…`"
            )
        study = optuna.load_study(study_name=name, storage=storage)
        trials = study.get_trials(deepcopy=False)
        definition = json.loads(study.user_attrs.get(_DEFINITION, "{}"))
    gone = superseded(trials)
    return definition, [trial for trial in trials if trial.number not in gone]
