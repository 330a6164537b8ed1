"""What a job works with: settings, store, registry and tracking, in one argument."""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from mario.config.addresses import Addresses
from mario.journal.format import LOCK_SECONDS
from mario.registry.registry import ModelRegistry
from mario.store.process_identity import HANG_SECONDS, HEARTBEAT_SECONDS
from mario.store.store import ExperimentStore
from mario.tracking.mlflow_client import MlflowTracking


class JobSettings(Addresses):
    """The addresses and the folder that a job works with."""

    def run_dir(self, run_id: str) -> Path:
        """The folder of one training run."""
        return self.runs_dir / run_id


@dataclass(frozen=True)
class Waits:
    """How long jobs wait for other processes, in seconds.

    Attributes:
        lock_seconds: for another process to release a journal of the run.
        look_seconds: between two looks at a run that another process trains.
        settle_seconds: that a process on another machine must be seen silent before its run is
            taken over: it may only have lost its database.
        heartbeat_seconds: between two heartbeats of a run.
        hang_seconds: without progress, after which training counts as hung and has no heartbeat.
    """

    lock_seconds: float = LOCK_SECONDS
    look_seconds: float = 2.0
    settle_seconds: float = 2 * HEARTBEAT_SECONDS
    heartbeat_seconds: float = HEARTBEAT_SECONDS
    hang_seconds: float = HANG_SECONDS


DEFAULT_WAITS = Waits()


class JobContext:
    """Settings, store, registry and tracking of a job; only `cli` and `flows` open one.

    The store is opened at its first use and again at the first use after `disconnect`, so that a
    database may be unreachable while no job asks for it. Threads may share a context; a process
    that a job starts gets the settings and opens its own.

    Attributes:
        settings: addresses and folder.
        waits: how long jobs wait for other processes.

    Example:
        >>> with JobContext.open() as context:  # doctest: +SKIP
        ...     register_run("run-0123", context)
    """

    def __init__(
        self, settings: JobSettings, *, create: bool = True, waits: Waits = DEFAULT_WAITS
    ) -> None:
        """Make a context; nothing is connected yet.

        Args:
            settings: addresses and folder.
            create: make or upgrade an embedded (SQLite) database at its first use. False for jobs
                that only read.
            waits: how long jobs wait for other processes.
        """
        self.settings = settings
        self.waits = waits
        self._create = create
        self._store: ExperimentStore | None = None
        self._opening = threading.Lock()

    @classmethod
    def open(cls, *, create: bool = True) -> Self:
        """Make the context that the environment describes; see `JobContext` for `create`."""
        return cls(JobSettings.from_environment(), create=create)

    @property
    def store(self) -> ExperimentStore:
        """The SQL store.

        Raises:
            StoreError: the database is missing, unreachable or at another schema revision.
        """
        with self._opening:
            if self._store is None:
                self._store = ExperimentStore.open(self.settings.database_url, create=self._create)
            return self._store

    @property
    def registry(self) -> ModelRegistry:
        """MLflow's model registry under the ledger of the store; connects at its first call.

        Raises:
            StoreError: as for `store`.
        """
        settings = self.settings
        return ModelRegistry(settings.tracking_uri, self.store, settings.artifact_dir)

    @property
    def tracking(self) -> MlflowTracking:
        """MLflow's tracking server; connects at its first call."""
        return MlflowTracking(self.settings.tracking_uri, self.settings.artifact_dir)

    @contextmanager
    def scratch(self) -> Iterator[JobContext]:
        """Open an empty, temporary context for work that must not be stored."""
        with (
            tempfile.TemporaryDirectory(prefix="mario-scratch-") as folder,
            JobContext(JobSettings.embedded(folder)) as opened,
        ):
            yield opened

    def disconnect(self) -> None:
        """Close all connections; the next use connects again.

        A job that works for long without the database (training) calls it first.
        """
        with self._opening:
            store, self._store = self._store, None
        if store is not None:
            store.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.disconnect()
