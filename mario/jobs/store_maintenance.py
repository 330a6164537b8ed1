"""Storekeeping: upgrade, check, import what the older project left, export."""

from __future__ import annotations

import logging
from pathlib import Path

from mario.config.run_states import RunStatus
from mario.errors import RegistryError, RegistryUnavailableError
from mario.jobs.context import Runtime
from mario.jobs.mlflow_journals import replay_tracking
from mario.store import migrate
from mario.store.check import CheckReport, check_store
from mario.store.engine import redact
from mario.store.export import export_parquet
from mario.store.journal_writer import replay_journals
from mario.store.legacy.importer import import_legacy as import_from
from mario.store.store import ExperimentStore
from mario.tracking.mlflow_writer import mark_ended

log = logging.getLogger(__name__)


def upgrade(runtime: Runtime) -> str:
    """Create the tables or bring them to this version's shape; describe it."""
    revision = migrate.upgrade(runtime.database_url)
    return f"{redact(runtime.database_url)} is at revision {revision}"


def check(runtime: Runtime, *, replay: bool = False) -> tuple[bool, str]:
    """Verify the store and read every run; runs whose process is gone become `killed`.

    Args:
        runtime: where the store is.
        replay: first deliver what killed processes left in their journals.

    Returns:
        Whether no invariant is broken, and the report in words.
    """
    with ExperimentStore.open(runtime.database_url, create=False) as store:
        if replay:
            replay_journals(runtime.database_url, runtime.runs_dir)
            replay_tracking(store, runtime)
        report = check_store(store, runs_dir=runtime.runs_dir, mark_killed=True)
        _tell_mlflow(store, report, runtime)
    return report.sound, report.text()


def _tell_mlflow(store: ExperimentStore, report: CheckReport, runtime: Runtime) -> None:
    """Let MLflow's list say of killed runs what the store says; MLflow may be away."""
    for reading in report.runs:
        if reading.status != RunStatus.KILLED:
            continue
        run = store.runs.get(reading.run_id)  # the report does not say when it ended
        if run.status != RunStatus.KILLED or run.mlflow_run_id is None:
            continue
        try:
            mark_ended(runtime.tracking_uri, run.mlflow_run_id, RunStatus.KILLED, run.ended_at)
        except RegistryUnavailableError as error:  # nor would it answer for the next one
            log.warning("MLflow may still show killed runs as running: %s", error)
            return
        except RegistryError as error:
            log.warning("MLflow still shows run %s as running: %s", run.id, error)


def import_legacy(source: str, runtime: Runtime, *, label: str | None = None) -> str:
    """Read the older project's runs into the store; describe what was read.

    Args:
        source: database URL of the older project.
        runtime: where the store is.
        label: part of the runs' ids; the source database's name if None.
    """
    with ExperimentStore.open(runtime.database_url) as store:
        return import_from(source, store, label=label).text()


def export(folder: Path, runtime: Runtime) -> str:
    """Write every table as Parquet; describe it."""
    with ExperimentStore.open(runtime.database_url, create=False) as store:
        counts = export_parquet(store, folder)
    return "\n".join(f"{folder / name}.parquet: {rows} rows" for name, rows in counts.items())
