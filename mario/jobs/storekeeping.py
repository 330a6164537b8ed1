"""Storekeeping: upgrade, check, import what the older project left, export."""

from __future__ import annotations

from pathlib import Path

from mario.jobs.runtime import Runtime
from mario.store import migrate
from mario.store.check import check_store
from mario.store.engine import redact
from mario.store.export import export_parquet
from mario.store.legacy import import_legacy as import_from
from mario.store.store import ExperimentStore
from mario.store.writer import replay_journals


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
        report = check_store(store, runs_dir=runtime.runs_dir, mark_killed=True)
    return report.sound, report.text()


def import_legacy(source: str, runtime: Runtime) -> str:
    """Read the older project's runs into the store; describe what was read."""
    with ExperimentStore.open(runtime.database_url) as store:
        return import_from(source, store).text()


def export(folder: Path, runtime: Runtime) -> str:
    """Write every table as Parquet; describe it."""
    with ExperimentStore.open(runtime.database_url, create=False) as store:
        counts = export_parquet(store, folder)
    return "\n".join(f"{folder / name}.parquet: {rows} rows" for name, rows in counts.items())
