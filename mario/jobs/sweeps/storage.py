"""Where the trials of sweeps are stored: Optuna's tables, and a lock for each sweep.

Optuna keeps its tables in a schema of its own (PostgreSQL) or a file of its own (SQLite, beside the
store's file), because Optuna and the store both name a table ``alembic_version``.
"""

from __future__ import annotations

import fcntl
import hashlib
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any

import optuna
import sqlalchemy as sa
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial

from mario.config.sweep import Sweep
from mario.errors import StoreError
from mario.store.engine import StoreUnavailableError, explain, make_engine, sqlite_path

#: Optuna's schema in a PostgreSQL database, and its file beside a SQLite one.
SCHEMA = "mario_sweeps"
FILE = "sweeps.db"


def storage_url(database_url: str) -> str:
    """The URL of the trials of a store's sweeps.

    Example:
        >>> storage_url("sqlite:///runs/mario.db")
        'sqlite:///runs/sweeps.db'
    """
    path = sqlite_path(database_url)
    return database_url if path is None else f"sqlite:///{path.with_name(FILE)}"


class SweepLock:
    """A lock of one sweep over all workers; it is released when its process or connection ends."""

    def __init__(self, database_url: str, name: str) -> None:
        """Prepare the lock of a sweep; nothing is locked yet."""
        self._path = sqlite_path(storage_url(database_url))
        self._key = int.from_bytes(
            hashlib.sha256(f"sweep {name}".encode()).digest()[:8], signed=True
        )
        self._engine = make_engine(database_url) if self._path is None else None
        self._held: sa.Connection | IO[str] | None = None

    def acquire(self) -> None:
        """Wait for the lock.

        Raises:
            StoreError: the database is unreachable.
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
            connection.commit()  # the session holds the lock; no transaction stays open
        except sa.exc.DBAPIError as error:
            raise explain(error, self._engine.url) from error
        self._held = connection

    def release(self) -> None:
        """Release the lock, if it is held."""
        held, self._held = self._held, None
        if isinstance(held, sa.Connection):
            held.detach()  # closed, not returned to a pool: that releases the lock
            held.close()
        elif held is not None:
            held.close()

    @contextmanager
    def __call__(self) -> Iterator[None]:
        """Hold the lock during a block."""
        self.acquire()
        try:
            yield
        finally:
            self.release()


def open_storage(database_url: str, sweep: Sweep | None = None) -> RDBStorage:
    """Open Optuna's tables and create them where missing; call it under the lock.

    Args:
        database_url: the store's.
        sweep: gives the heartbeat of its trials; None to read only.

    Raises:
        StoreError: the database is unreachable, or refuses the schema.
    """
    url = storage_url(database_url)
    arguments: dict[str, Any] = {"connect_args": {"timeout": 60}}
    if sqlite_path(url) is None:
        _make_schema(database_url)
        arguments = {
            "connect_args": {"options": f"-csearch_path={SCHEMA}", "connect_timeout": 5},
            "pool_pre_ping": True,
        }
    optuna.logging.set_verbosity(optuna.logging.ERROR)  # the worker reports what matters
    try:
        with without_warnings():
            return RDBStorage(
                url,
                engine_kwargs=arguments,
                heartbeat_interval=sweep.settings.heartbeat_seconds if sweep else None,
                grace_period=sweep.settings.grace_seconds if sweep else None,
            )
    except sa.exc.DBAPIError as error:
        raise explain(error, url) from error


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


@contextmanager
def without_warnings() -> Iterator[None]:
    """Suppress Optuna's warnings that heartbeats are experimental."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        yield


@contextmanager
def translated(name: str) -> Iterator[None]:
    """Turn the errors of a sweep's tables into one line.

    Raises:
        StoreUnavailableError: the database did not answer or broke off; a retry may succeed.
    """
    try:
        yield
    except (sa.exc.SQLAlchemyError, optuna.exceptions.StorageInternalError) as error:
        reason = _first_line(error.__cause__ or error)  # Optuna's own message blames the data
        raise StoreUnavailableError(
            f"the tables of sweep {name} cannot be used ({reason}); expected a database that "
            "answers; repeat the command when it does"
        ) from error


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


def superseded(trials: list[FrozenTrial]) -> set[int]:
    """Numbers of the failed trials that a later trial repeats."""
    return {number for trial in trials for number in trial.system_attrs.get("retry_history", ())}


def load_trials(name: str, database_url: str) -> list[FrozenTrial]:
    """Load the trials of a sweep in order, without those that a later one repeats.

    Raises:
        StoreError: there is no sweep of this name.
        StoreUnavailableError: the database is unreachable.
    """
    path = sqlite_path(storage_url(database_url))
    known: list[str] = []
    with translated(name):
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
    gone = superseded(trials)
    return [trial for trial in trials if trial.number not in gone]
