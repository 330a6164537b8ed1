"""A run waits for its own journals, which an ending process or a replay still has for a while."""

from __future__ import annotations

import logging
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import mario.jobs.train
from mario.errors import StoreError, TrainingInterrupted
from mario.jobs.context import Runtime
from mario.jobs.train import TrainOutcome, train_run
from mario.journal.format import LOCK_SECONDS, REPLAY_SECONDS, Journal, Patience, encode_line
from mario.store.journal_writer import StoreWriter, replay_journals
from mario.store.records import Run
from mario.store.store import ExperimentStore
from mario.tracking.mlflow_client import tracking_client
from tests.support.delivered import deliver_all
from tests.support.training_runs import small_config


@contextmanager
def held(folder: Path, seconds: float) -> Iterator[None]:
    """Have another owner of a journal, for so long (a lock of another file is another's)."""
    journal = Journal(folder)
    timer = threading.Timer(seconds, lambda: journal.close(empty=False))
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        journal.close(empty=False)


def _at_once(took_seconds: Callable[[], float], seconds: float) -> bool:
    """Whether something is that quick; the machine may stall, but not always."""
    return any(took_seconds() < seconds for _ in range(10))


def test_a_journal_is_waited_for_as_long_as_is_said(tmp_path: Path) -> None:
    def refused_after_seconds() -> float:
        begun = time.monotonic()
        with pytest.raises(StoreError, match="another process"):
            Journal(tmp_path)
        return time.monotonic() - begun

    with held(tmp_path, 600):
        assert _at_once(refused_after_seconds, 0.5), "where nothing else is said"
        begun = time.monotonic()
        with pytest.raises(StoreError, match="another process"):
            Journal(tmp_path, patience=Patience(0.6))
        assert time.monotonic() - begun >= 0.6
    with held(tmp_path, 0.5):
        Journal(tmp_path, patience=Patience(30)).close(empty=True)


def test_a_replay_waits_for_nobody_and_is_shorter_than_a_run_waits(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/mario.db"

    def replayed_seconds() -> float:
        begun = time.monotonic()
        assert [replay.busy for replay in replay_journals(url, tmp_path)] == [True]
        return time.monotonic() - begun

    with held(tmp_path / "run" / "journal", 600):
        (tmp_path / "run" / "journal" / "00000001.jsonl").write_bytes(encode_line({"n": 1}))
        assert _at_once(replayed_seconds, 2)
    assert REPLAY_SECONDS + 1 < LOCK_SECONDS  # its thread is given a second more


CONFIG = small_config(
    total_steps=64 * 6,
    selection={"units": 0},
    sinks={"mlflow": True, "prometheus": False, "tensorboard": False},
)


@pytest.fixture
def runtime(tmp_path: Path, empty_mlflow: Path) -> Runtime:
    runtime = Runtime.embedded(tmp_path / "runs")
    runtime.runs_dir.mkdir()
    shutil.copy(empty_mlflow, runtime.runs_dir / "mlflow.db")
    return runtime


@pytest.fixture
def begun(runtime: Runtime) -> TrainOutcome:
    """A run that was interrupted."""
    stop = threading.Event()
    outcome = train_run(CONFIG, runtime, stop=stop, on_progress=lambda _: stop.set())
    assert outcome.result.status == "interrupted"
    deliver_all(runtime)
    return outcome


def stored(runtime: Runtime, run_id: str) -> Run:
    deliver_all(runtime)
    with ExperimentStore.open(runtime.database_url) as store:
        return store.runs.get(run_id)


def test_the_next_attempt_waits_for_what_the_process_before_it_still_has(
    runtime: Runtime, begun: TrainOutcome, caplog: pytest.LogCaptureFixture
) -> None:
    """Its sinks hang for some seconds more; then the attempt is recorded in all of them."""
    caplog.set_level(logging.WARNING)
    with held(begun.run_dir / "journal", 1.5), held(begun.run_dir / "journal-mlflow", 3.0):
        outcome = train_run(CONFIG, runtime, resume=begun.run_id)
    assert outcome.result.status == "finished"
    assert "left out" not in caplog.text
    run = stored(runtime, begun.run_id)
    assert [attempt.status for attempt in run.attempts] == ["interrupted", "finished"]
    assert run.mlflow_run_id is not None
    assert tracking_client(runtime.tracking_uri).get_run(run.mlflow_run_id).info.status == (
        "FINISHED"
    )


def test_an_attempt_that_cannot_be_recorded_is_none_that_runs(
    runtime: Runtime, begun: TrainOutcome, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The database knows that it failed, and it is gone on with when the journal is free."""
    monkeypatch.setattr(mario.jobs.train, "LOCK_SECONDS", 0.3)
    with held(begun.run_dir / "journal", 600), pytest.raises(StoreError, match="another process"):
        train_run(CONFIG, runtime, resume=begun.run_id)
    run = stored(runtime, begun.run_id)
    assert [attempt.status for attempt in run.attempts] == ["interrupted", "failed"]
    assert run.status == "failed"
    assert run.status_reason is not None
    assert "another process" in run.status_reason
    assert train_run(CONFIG, runtime, resume=begun.run_id).result.status == "finished"


@pytest.mark.parametrize("journal", ["journal", "journal-mlflow"])
def test_a_run_that_waits_for_a_journal_ends_when_it_is_told_to(
    runtime: Runtime, begun: TrainOutcome, journal: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is as it was, and is gone on with afterwards."""
    monkeypatch.setattr(mario.jobs.train, "LOCK_SECONDS", 600.0)
    stop = threading.Event()
    told = threading.Timer(0.5, stop.set)
    told.start()
    waited = time.monotonic()
    with held(begun.run_dir / journal, 600):
        if journal == "journal":
            with pytest.raises(TrainingInterrupted, match="ended on request before it began"):
                train_run(CONFIG, runtime, resume=begun.run_id, stop=stop)
        else:  # it can be recorded without MLflow
            outcome = train_run(CONFIG, runtime, resume=begun.run_id, stop=stop)
            assert outcome.result.status == "interrupted"
            assert outcome.result.total_steps == begun.result.total_steps
    assert time.monotonic() - waited < 300
    run = stored(runtime, begun.run_id)
    assert [attempt.status for attempt in run.attempts] == ["interrupted", "interrupted"]
    assert train_run(CONFIG, runtime, resume=begun.run_id).result.status == "finished"


def test_what_keeps_the_end_from_being_stored_hides_nothing(
    runtime: Runtime, begun: TrainOutcome, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    def away(*_: object) -> None:
        raise StoreError("the database is away")

    monkeypatch.setattr(mario.jobs.train, "LOCK_SECONDS", 0.1)
    monkeypatch.setattr("mario.store.runs.Runs.end", away)
    with held(begun.run_dir / "journal", 600), pytest.raises(StoreError, match="another process"):
        train_run(CONFIG, runtime, resume=begun.run_id)
    assert "the database is away" in caplog.text


def test_a_writer_of_the_store_waits_too(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/mario.db"
    with held(tmp_path / "run" / "journal", 0.5):
        StoreWriter(url, tmp_path / "run", patience=Patience(30)).close(0.0)
