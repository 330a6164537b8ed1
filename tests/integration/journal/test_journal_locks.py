"""A run waits for its journals while an ending process or a replay holds them."""

from __future__ import annotations

import logging
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from mario.errors import StoreError, TrainingInterrupted
from mario.jobs.context import JobContext, Waits
from mario.jobs.train import TrainOutcome, train_run
from mario.journal.format import LOCK_SECONDS, REPLAY_SECONDS, Journal, Patience, encode_line
from mario.store.journal_writer import StoreWriter, replay_journals
from mario.store.records import Run
from tests.support.delivered import deliver_all
from tests.support.training_runs import small_config


@contextmanager
def held(folder: Path, seconds: float) -> Iterator[None]:
    """Hold a journal like another process, for a time (a lock belongs to an open file)."""
    journal = Journal(folder)
    timer = threading.Timer(seconds, lambda: journal.close(empty=False))
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        journal.close(empty=False)


def _at_once(took_seconds: Callable[[], float], seconds: float) -> bool:
    """Whether one of ten tries is that quick; the machine may stall now and then."""
    return any(took_seconds() < seconds for _ in range(10))


def test_the_wait_for_a_journals_lock_follows_patience(tmp_path: Path) -> None:
    def refused_after_seconds() -> float:
        begun = time.monotonic()
        with pytest.raises(StoreError, match="another process"):
            Journal(tmp_path)
        return time.monotonic() - begun

    with held(tmp_path, 600):
        assert _at_once(refused_after_seconds, 0.5), "the default does not wait"
        begun = time.monotonic()
        with pytest.raises(StoreError, match="another process"):
            Journal(tmp_path, patience=Patience(0.6))
        assert time.monotonic() - begun >= 0.6
    with held(tmp_path, 0.5):
        Journal(tmp_path, patience=Patience(30)).close(empty=True)


def test_a_replay_never_waits_and_ends_before_a_run_gives_up(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/mario.db"

    def replayed_seconds() -> float:
        begun = time.monotonic()
        assert [replay.busy for replay in replay_journals(url, tmp_path)] == [True]
        return time.monotonic() - begun

    with held(tmp_path / "run" / "journal", 600):
        (tmp_path / "run" / "journal" / "00000001.jsonl").write_bytes(encode_line({"n": 1}))
        assert _at_once(replayed_seconds, 2)
    assert REPLAY_SECONDS + 1 < LOCK_SECONDS  # its thread gets one more second


CONFIG = small_config(
    total_steps=64 * 6,
    selection={"units": 0},
    sinks={"mlflow": True, "prometheus": False, "tensorboard": False},
)


@pytest.fixture
def context(context: JobContext, empty_mlflow: Path) -> JobContext:
    context.settings.runs_dir.mkdir()
    shutil.copy(empty_mlflow, context.settings.runs_dir / "mlflow.db")
    return context


def waiting(context: JobContext, lock_seconds: float) -> JobContext:
    """The same context with another patience for held journals."""
    return JobContext(context.settings, waits=Waits(lock_seconds=lock_seconds))


@pytest.fixture
def begun(context: JobContext) -> TrainOutcome:
    """An interrupted run."""
    stop = threading.Event()
    outcome = train_run(CONFIG, context, stop=stop, on_progress=lambda _: stop.set())
    assert outcome.result.status == "interrupted"
    deliver_all(context.settings)
    return outcome


def stored(context: JobContext, run_id: str) -> Run:
    deliver_all(context.settings)
    return context.store.runs.get(run_id)


def test_the_next_attempt_waits_for_journals_of_the_earlier_process(
    context: JobContext, begun: TrainOutcome, caplog: pytest.LogCaptureFixture
) -> None:
    """The earlier process holds them for some seconds; then every sink records the attempt."""
    caplog.set_level(logging.WARNING)
    with held(begun.run_dir / "journal", 1.5), held(begun.run_dir / "journal-mlflow", 3.0):
        outcome = train_run(CONFIG, context, resume=begun.run_id)
    assert outcome.result.status == "finished"
    assert "left out" not in caplog.text
    run = stored(context, begun.run_id)
    assert [attempt.status for attempt in run.attempts] == ["interrupted", "finished"]
    assert run.mlflow_run_id is not None
    assert context.tracking.client.get_run(run.mlflow_run_id).info.status == "FINISHED"


def test_an_attempt_without_its_journal_fails_before_training(
    context: JobContext, begun: TrainOutcome
) -> None:
    """The database stores the failure; the run resumes once the journal is free."""
    with held(begun.run_dir / "journal", 600), pytest.raises(StoreError, match="another process"):
        train_run(CONFIG, waiting(context, 0.3), resume=begun.run_id)
    run = stored(context, begun.run_id)
    assert [attempt.status for attempt in run.attempts] == ["interrupted", "failed"]
    assert run.status == "failed"
    assert run.status_reason is not None
    assert "another process" in run.status_reason
    assert train_run(CONFIG, context, resume=begun.run_id).result.status == "finished"


@pytest.mark.parametrize("journal", ["journal", "journal-mlflow"])
def test_a_stop_ends_the_wait_for_a_journal(
    context: JobContext, begun: TrainOutcome, journal: str
) -> None:
    """The run is unchanged and can be resumed."""
    patient = waiting(context, 600.0)
    stop = threading.Event()
    told = threading.Timer(0.5, stop.set)
    told.start()
    waited = time.monotonic()
    with held(begun.run_dir / journal, 600):
        if journal == "journal":
            with pytest.raises(TrainingInterrupted, match="ended on request before it began"):
                train_run(CONFIG, patient, resume=begun.run_id, stop=stop)
        else:  # the run works without MLflow
            outcome = train_run(CONFIG, patient, resume=begun.run_id, stop=stop)
            assert outcome.result.status == "interrupted"
            assert outcome.result.total_steps == begun.result.total_steps
    assert time.monotonic() - waited < 300
    run = stored(context, begun.run_id)
    assert [attempt.status for attempt in run.attempts] == ["interrupted", "interrupted"]
    assert train_run(CONFIG, context, resume=begun.run_id).result.status == "finished"


def test_a_failure_to_store_the_end_does_not_hide_the_cause(
    context: JobContext, begun: TrainOutcome, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    def unreachable(*_: object) -> None:
        raise StoreError("the database is unreachable")

    monkeypatch.setattr("mario.store.runs.Runs.end", unreachable)
    with held(begun.run_dir / "journal", 600), pytest.raises(StoreError, match="another process"):
        train_run(CONFIG, waiting(context, 0.1), resume=begun.run_id)
    assert "the database is unreachable" in caplog.text


def test_a_store_writer_waits_for_its_journal(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/mario.db"
    with held(tmp_path / "run" / "journal", 0.5):
        StoreWriter(url, tmp_path / "run", patience=Patience(30)).close(0.0)
