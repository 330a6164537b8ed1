"""Deliver the journals of ended runs, which wait for delivery on a busy machine."""

from __future__ import annotations

from pathlib import Path

from mario.jobs.context import JobContext, JobSettings
from mario.jobs.mlflow_journals import replay_tracking
from mario.journal.format import Patience, pending_journals
from mario.store.journal_writer import JOURNAL_FOLDER, StoreWriter

_SECONDS = 120.0


def deliver(database_url: str, root: Path) -> None:
    """Deliver the store's journals below a folder."""
    for folder in list(pending_journals(root)):
        if folder.name == JOURNAL_FOLDER:
            patience = Patience(_SECONDS)  # the earlier writer's thread may still hold it
            report = StoreWriter(database_url, folder.parent, patience=patience).close(_SECONDS)
            assert not report.pending, report


def deliver_all(settings: JobSettings) -> None:
    """Deliver the journals of all runs to the store and to MLflow."""
    deliver(settings.database_url, settings.runs_dir)
    with JobContext(settings) as context:
        replay_tracking(context, timeout_seconds=_SECONDS)
