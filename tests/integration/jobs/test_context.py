"""The context of a job: its store is opened late and again; only commands and flows open one."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from mario.errors import StoreError
from mario.jobs.context import JobContext, JobSettings
from mario.jobs.versions import show_ledger
from mario.store import migrate
from tests.support.paths import ROOT
from tests.support.store_rows import new_run


def test_nothing_is_opened_before_the_first_use(context: JobContext) -> None:
    assert "empty" in show_ledger("1-1", context)
    settings = context.settings
    assert {file.name.partition("-")[0] for file in settings.runs_dir.iterdir()} == {"mario.db"}
    assert not (settings.runs_dir / "mlflow.db").exists(), "MLflow is not contacted"


def test_a_disconnected_context_connects_again(context: JobContext) -> None:
    run = context.store.runs.start(new_run())
    before = context.store
    context.disconnect()
    assert context.store is not before
    assert context.store.runs.get(run.id) == run


def test_a_failed_opening_is_repeated(tmp_path: Path) -> None:
    with JobContext(JobSettings.embedded(tmp_path / "runs"), create=False) as reading:
        with pytest.raises(StoreError, match="there is no database"):
            _ = reading.store
        migrate.upgrade(reading.settings.database_url)
        assert reading.store.runs.list() == ()


def test_threads_share_one_store(context: JobContext) -> None:
    with ThreadPoolExecutor(8) as threads:
        stores = list(threads.map(lambda _: context.store, range(8)))
    assert len({id(store) for store in stores}) == 1


def test_scratch_work_leaves_nothing(context: JobContext) -> None:
    with context.scratch() as scratch:
        run = scratch.store.runs.start(new_run())
        folder = scratch.settings.runs_dir
    assert context.store.runs.find(run.id) is None
    assert not folder.exists()


def calls(*folders: str) -> Iterator[tuple[str, str]]:
    """Each call in these folders: the file, and the called name with its dots."""
    for folder in folders:
        for file in sorted((ROOT / folder).rglob("*.py")):
            for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Call):
                    yield str(file.relative_to(ROOT)), ast.unparse(node.func)


def test_only_commands_and_flows_open_a_context_and_jobs_print_nothing() -> None:
    opening = {file for file, name in calls("mario", "flows") if name == "JobContext.open"}
    assert {file.partition("/")[0] for file in opening} == {"mario", "flows"}
    assert all(file.startswith(("mario/cli/", "flows/")) for file in opening), opening
    stores = {file for file, name in calls("mario/jobs", "mario/cli", "flows")
              if name == "ExperimentStore.open"}  # fmt: skip
    assert stores == {"mario/jobs/context.py"}
    assert not [file for file, name in calls("mario/jobs") if name in ("print", "typer.echo")]
