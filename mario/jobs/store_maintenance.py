"""Maintain the store: upgrade, check, import a legacy database, export."""

from __future__ import annotations

import logging
from pathlib import Path

from mario.config.run_states import RunStatus
from mario.errors import RegistryError, RegistryUnavailableError
from mario.jobs.context import JobContext
from mario.jobs.mlflow_journals import replay_tracking
from mario.store import migrate
from mario.store.check import CheckReport, check_store
from mario.store.engine import redact
from mario.store.export import export_parquet
from mario.store.journal_writer import replay_journals
from mario.store.legacy.importer import import_legacy as import_from
from mario.tracking.mlflow_writer import mark_ended

log = logging.getLogger(__name__)


def upgrade(context: JobContext) -> str:
    """Create the tables or upgrade their schema; describe the result."""
    revision = migrate.upgrade(context.settings.database_url)
    return f"{redact(context.settings.database_url)} is at revision {revision}"


def check(context: JobContext, *, replay: bool = False) -> tuple[bool, str]:
    """Verify the store and read every run; mark runs of dead processes as `killed`.

    Args:
        context: settings, store and tracking.
        replay: first deliver the journals of killed processes.

    Returns:
        Whether every invariant holds, and the report as text.
    """
    settings, store = context.settings, context.store
    if replay:
        replay_journals(settings.database_url, settings.runs_dir)
        replay_tracking(context)
    report = check_store(store, runs_dir=settings.runs_dir, mark_killed=True)
    _tell_mlflow(report, context)
    return report.sound, report.text()


def _tell_mlflow(report: CheckReport, context: JobContext) -> None:
    """Set the status of killed runs in MLflow, if it answers."""
    for reading in report.runs:
        if reading.status != RunStatus.KILLED:
            continue
        run = context.store.runs.get(reading.run_id)  # the report does not say when it ended
        if run.status != RunStatus.KILLED or run.mlflow_run_id is None:
            continue
        try:
            mark_ended(context.tracking, run.mlflow_run_id, RunStatus.KILLED, run.ended_at)
        except RegistryUnavailableError as error:  # it would not answer for the next one either
            log.warning("MLflow may still show killed runs as running: %s", error)
            return
        except RegistryError as error:
            log.warning("MLflow still shows run %s as running: %s", run.id, error)


def import_legacy(source: str, context: JobContext, *, label: str | None = None) -> str:
    """Import the runs of the older project into the store; describe the import.

    Args:
        source: database URL of the older project.
        context: the store.
        label: part of the runs' ids; None is the name of the source database.
    """
    return import_from(source, context.store, label=label).text()


def export(folder: Path, context: JobContext) -> str:
    """Write every table as a Parquet file; describe the files."""
    counts = export_parquet(context.store, folder)
    return "\n".join(f"{folder / name}.parquet: {rows} rows" for name, rows in counts.items())
