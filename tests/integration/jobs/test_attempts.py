"""An attempt at a run waits for the process that still trains it.

Rows stand for processes of other machines: their host is another's, and the sink of training writes
their heartbeats.
"""

from __future__ import annotations

import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from pathlib import Path

import pytest
import sqlalchemy as sa

from mario.config.experiment import load_config
from mario.config.run_states import RunStatus
from mario.errors import RunIsBusy, TrainingInterrupted
from mario.jobs.attempts import wait_for_turn
from mario.jobs.context import JobContext, JobSettings, Waits
from mario.journal.format import Journal, encode_line
from mario.store import tables
from mario.store.check import check_store
from mario.store.engine import writing
from mario.store.journal_writer import StoreWriter, to_record
from mario.store.process_identity import HANG_SECONDS, SILENCE_SECONDS
from mario.store.records import AttemptEnd, Heartbeat, Run, utc_now
from mario.store.store import ExperimentStore
from mario.tracking.store import StoreSink
from mario.training.sinks import RunEnd, RunStart
from tests.support.delivered import deliver
from tests.support.paths import ROOT
from tests.support.serving_load import wait_until
from tests.support.store_rows import new_run


@pytest.fixture
def context(database_url: str, tmp_path: Path) -> Iterator[JobContext]:
    settings = JobSettings(tmp_path / "runs", database_url, f"sqlite:///{tmp_path / 'mlflow.db'}")
    with JobContext(settings) as opened:
        yield opened


def elsewhere(store: ExperimentStore, silent_seconds: float) -> Run:
    """A run of a container whose last heartbeat is so long ago."""
    run = store.runs.start(new_run())
    heard = utc_now() - timedelta(seconds=silent_seconds)
    with writing(store.engine) as connection:
        connection.execute(
            sa.update(tables.RunAttemptRow)
            .where(tables.RunAttemptRow.run_id == run.id)
            .values(host="other-pod", pid=7, started_at=heard, heartbeat_at=heard)
        )
    return run


@contextmanager
def training(
    context: JobContext,
    run: Run,
    folder: Path,
    *,
    heartbeat_seconds: float,
    hang_seconds: float = HANG_SECONDS,
) -> Iterator[StoreSink]:
    """The sink of a process that trains a run and is in a long update."""
    config = load_config(ROOT / "configs/smoke.yaml")
    sink = StoreSink(
        StoreWriter(context.settings.database_url, folder), run.id, 1, folder,
        heartbeat_seconds=heartbeat_seconds, hang_seconds=hang_seconds,
    )  # fmt: skip
    sink.on_start(RunStart(config=config, run_dir=folder, start_steps=0, attempt=1))
    try:
        yield sink
    finally:
        sink.on_end(RunEnd(status=RunStatus.INTERRUPTED, reason="", total_steps=0))
        deliver(context.settings.database_url, folder)


def test_a_run_that_nobody_trains_is_not_waited_for(
    store: ExperimentStore, context: JobContext
) -> None:
    assert wait_for_turn(context, "run-unknown", threading.Event()) is None
    run = store.runs.start(new_run())  # by this process
    found = wait_for_turn(context, run.id, threading.Event())
    assert found is not None
    assert found.id == run.id


class Clock:
    """A clock that a test moves.

    Attributes:
        now: seconds.
        looks: how often it was read.
    """

    def __init__(self) -> None:
        self.now = 1000.0
        self.looks = 0

    def monotonic(self) -> float:
        self.looks += 1
        return self.now


def test_a_process_elsewhere_with_heartbeats_is_waited_for(
    store: ExperimentStore, context: JobContext, tmp_path: Path
) -> None:
    """It was silent for long, because its database was unreachable; then its heartbeats return."""
    run = elsewhere(store, SILENCE_SECONDS + 60)
    clock = Clock()
    looking = JobContext(context.settings, waits=Waits(look_seconds=0.1, settle_seconds=6.0))
    found: list[Run | None] = []
    stop = threading.Event()
    waiting = threading.Thread(
        target=lambda: found.append(wait_for_turn(looking, run.id, stop, clock=clock.monotonic))
    )
    waiting.start()
    assert wait_until(lambda: clock.looks >= 3, 60)
    clock.now += 4.0
    with training(context, run, tmp_path / "training", heartbeat_seconds=0.3):
        for _ in range(4):  # a heartbeat is seen between two of these
            before = store.runs.get(run.id).attempts[-1].heartbeat_at

            def beaten(before: datetime = before) -> bool:
                return store.runs.get(run.id).attempts[-1].heartbeat_at != before

            assert wait_until(beaten, 60)
            looks = clock.looks
            assert wait_until(lambda looks=looks: clock.looks >= looks + 2, 60)
            clock.now += 4.0
        assert wait_until(lambda looks=clock.looks: clock.looks >= looks + 2, 60)
        assert waiting.is_alive(), "without heartbeats it would count as dead by now"
    waiting.join(120)
    looking.disconnect()
    assert found[0] is not None
    assert [attempt.status for attempt in found[0].attempts] == ["interrupted"]


def test_a_process_elsewhere_that_stays_silent_counts_as_dead(
    store: ExperimentStore, context: JobContext
) -> None:
    run = elsewhere(store, SILENCE_SECONDS + 1)
    begun = time.monotonic()
    settling = JobContext(context.settings, waits=Waits(settle_seconds=3.0))
    assert wait_for_turn(settling, run.id, threading.Event()) is not None
    settling.disconnect()
    assert time.monotonic() - begun >= 3.0, "it has time for a heartbeat"
    assert store.runs.resume(run.id, start_steps=0).attempts[-1].attempt == 2


def test_waiting_ends_on_request_and_logs_the_process(
    store: ExperimentStore, context: JobContext, caplog: pytest.LogCaptureFixture
) -> None:
    run = elsewhere(store, 0)
    stop = threading.Event()
    threading.Timer(1.0, stop.set).start()
    with pytest.raises(TrainingInterrupted, match="waiting was ended on request"):
        wait_for_turn(context, run.id, stop)
    (said,) = [record.message for record in caplog.records if "waiting:" in record.message]
    assert "by process 7 on other-pod, last heartbeat" in said


def test_a_process_that_has_ended_its_run_may_still_write(
    store: ExperimentStore, context: JobContext
) -> None:
    """It closes its sinks and exports the policy; a faster attempt would train without MLflow."""
    run = store.runs.start(new_run())
    with subprocess.Popen(["sleep", "60"]) as ending:
        now = utc_now()
        with writing(store.engine) as connection:
            connection.execute(
                sa.update(tables.RunAttemptRow)
                .where(tables.RunAttemptRow.run_id == run.id)
                .values(pid=ending.pid, status="interrupted", ended_at=now)
            )
        begun = time.monotonic()
        threading.Timer(3.0, ending.kill).start()
        assert wait_for_turn(context, run.id, threading.Event()) is not None
        assert time.monotonic() - begun >= 3.0


def test_a_silent_process_that_was_marked_as_killed_gives_heartbeats_again(
    store: ExperimentStore, context: JobContext, tmp_path: Path
) -> None:
    """`mario store check` marks it although only its database was unreachable."""
    run = elsewhere(store, SILENCE_SECONDS + 60)
    assert not check_store(store, mark_killed=True).findings
    assert store.runs.get(run.id).status == "killed"
    with training(context, run, tmp_path / "training", heartbeat_seconds=0.3):
        deadline = time.monotonic() + 60
        while store.runs.get(run.id).status != "running":
            assert time.monotonic() < deadline
            time.sleep(0.1)
        last = store.runs.get(run.id).attempts[-1]
        assert (last.status, last.ended_at) == ("running", None)
        with pytest.raises(RunIsBusy):
            store.runs.resume(run.id, start_steps=0)
    assert store.runs.get(run.id).status == "interrupted"


def test_an_old_heartbeat_that_arrives_late_revives_no_run(store: ExperimentStore) -> None:
    """It comes from the journal of a killed process."""
    run = elsewhere(store, SILENCE_SECONDS + 60)
    assert store.runs.mark_killed(run.id, "its process is gone")
    old = utc_now() - timedelta(seconds=SILENCE_SECONDS + 30)
    store.runs.write([Heartbeat(run_id=run.id, attempt=1, total_steps=64, at=old)])
    assert store.runs.get(run.id).status == "killed"


def test_a_late_heartbeat_of_a_dead_process_of_this_machine_revives_no_run(
    store: ExperimentStore,
) -> None:
    with subprocess.Popen(["true"]) as gone:
        gone.wait()
    run = store.runs.start(new_run())
    with writing(store.engine) as connection:
        connection.execute(
            sa.update(tables.RunAttemptRow)
            .where(tables.RunAttemptRow.run_id == run.id)
            .values(pid=gone.pid)
        )
    assert store.runs.mark_killed(run.id, "its process is gone")
    store.runs.write([Heartbeat(run_id=run.id, attempt=1, total_steps=64)])
    assert store.runs.get(run.id).status == "killed"


def test_the_journal_of_a_dead_process_is_delivered_before_the_wait(
    store: ExperimentStore, context: JobContext
) -> None:
    """A pod was stopped while the database was unreachable: only its volume has the end."""
    run = elsewhere(store, 10)
    journal = Journal(context.settings.run_dir(run.id) / "journal")
    end = AttemptEnd(run_id=run.id, attempt=1, status="interrupted", end_steps=64, reason="stopped")
    journal.append(encode_line(to_record(end)))
    journal.close(empty=False)
    begun = time.monotonic()
    found = wait_for_turn(context, run.id, threading.Event())
    assert time.monotonic() - begun < SILENCE_SECONDS / 2, "not for the whole silence limit"
    assert found is not None
    assert found.attempts[-1].status == "interrupted"


def test_a_process_of_this_machine_that_hangs_is_not_waited_for(
    store: ExperimentStore, context: JobContext
) -> None:
    run = store.runs.start(new_run())
    with subprocess.Popen(["sleep", "60"]) as hung:
        try:
            with writing(store.engine) as connection:
                connection.execute(
                    sa.update(tables.RunAttemptRow)
                    .where(tables.RunAttemptRow.run_id == run.id)
                    .values(pid=hung.pid, heartbeat_at=utc_now() - timedelta(hours=2))
                )
            with pytest.raises(RunIsBusy, match=f"process {hung.pid} on this machine"):
                wait_for_turn(context, run.id, threading.Event())
        finally:
            hung.kill()


def test_training_gives_heartbeats_during_a_long_update_and_none_after_its_end(
    store: ExperimentStore, context: JobContext, tmp_path: Path
) -> None:
    run = store.runs.start(new_run())
    heard = set()
    with training(context, run, tmp_path / "training", heartbeat_seconds=0.1) as sink:
        deadline = time.monotonic() + 60
        while len(heard) < 4:
            assert time.monotonic() < deadline, heard
            heard.add(store.runs.get(run.id).attempts[-1].heartbeat_at)
            time.sleep(0.05)
    ended = store.runs.get(run.id).attempts[-1]
    assert ended.status == "interrupted"
    sink.beat()
    time.sleep(1.0)
    assert store.runs.get(run.id).attempts[-1] == ended


def test_training_that_hangs_gives_no_heartbeats(
    store: ExperimentStore, context: JobContext, tmp_path: Path
) -> None:
    run = store.runs.start(new_run())
    with training(
        context, run, tmp_path / "training", heartbeat_seconds=0.05, hang_seconds=0.2
    ) as sink:

        def heard_at() -> datetime:
            assert sink._writer.flush(60)  # all heartbeats so far
            return store.runs.get(run.id).attempts[-1].heartbeat_at

        def silent() -> bool:
            before = heard_at()
            time.sleep(1.5)
            return heard_at() == before

        assert wait_until(silent, 60)  # heartbeats, then none
