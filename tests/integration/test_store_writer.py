"""The writer: nothing lost, nothing twice, nothing waits; through kills of either side."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import sqlalchemy as sa

from mario.errors import StoreError
from mario.journal import Journal, decode_line, encode_line
from mario.journal_writer import DeliveryUnavailableError, JournaledWriter
from mario.store import models
from mario.store.engine import make_engine, writing
from mario.store.records import (
    AttemptStartRow,
    CheckpointRow,
    HealthChangeRow,
    HealthSampleRow,
    HeartbeatRow,
    RunEndRow,
    SelectionRow,
)
from mario.store.store import ExperimentStore
from mario.store.writer import StoreWriter, from_record, replay_journals, to_record
from tests.support.postgres import PostgresServer
from tests.support.processes import free_port
from tests.support.store_rows import episode_row, new_run


def test_rows_survive_the_journal(tmp_path: Path) -> None:
    rows = [
        episode_row("run", 3),
        HealthSampleRow(
            run_id="run", update_index=1, attempt=1, total_steps=2, state="healthy",
            signals={"kl": float("nan"), "note": "a\nb ✓"},
        ),
        HealthChangeRow(
            run_id="run", update_index=1, attempt=1, total_steps=2, from_state="warming",
            to_state="healthy", reasons=("one", "two"),
        ),
        RunEndRow(run_id="run", attempt=1, status="finished", end_steps=None),
        HeartbeatRow(run_id="run", attempt=1, total_steps=3),
        AttemptStartRow(run_id="run", attempt=2, start_steps=256),
        CheckpointRow(
            run_id="run", kind="best", total_steps=1, attempt=1, path="a/b", sha256="d" * 64,
            size_bytes=2**40,
        ),
        SelectionRow(
            run_id="run", total_steps=1, attempt=1, score=0.4, best_score=0.5, is_best=False,
            details={"clear_rate": 0.25}, seconds=2.5,
        ),
    ]  # fmt: skip
    for row in rows:
        line = encode_line(to_record(row))
        assert line.endswith(b"\n")
        assert line.count(b"\n") == 1
        record = decode_line(line[:-1])
        assert record is not None
        again = from_record(record)
        if isinstance(row, HealthSampleRow):
            assert isinstance(again, HealthSampleRow)
            assert again.signals == {"kl": "nan", "note": "a\nb ✓"}
        else:
            assert again == row
    whole = encode_line(to_record(rows[0]))
    assert all(decode_line(whole[:cut]) is None for cut in range(len(whole) - 1))


def test_numpy_numbers_are_numbers(store: ExperimentStore, tmp_path: Path) -> None:
    run = store.runs.start(new_run())
    row = episode_row(
        run.id, 0, x_px=np.int32(7), shaped_return=np.float32(0.5), flag=np.bool_(True)
    )
    with StoreWriter(store.url, tmp_path / "run") as writer:
        writer.put([row])
        assert writer.flush(20)
    store.runs.write([episode_row(run.id, 1, x_px=np.int32(8))])
    first, second = store.runs.episodes(run.id)
    assert (first.x_px, first.shaped_return, first.flag, second.x_px) == (7, 0.5, True, 8)


def test_everything_arrives_once(store: ExperimentStore, tmp_path: Path) -> None:
    run = store.runs.start(new_run())
    rows = [episode_row(run.id, i, env) for i in range(500) for env in range(4)]
    writer = StoreWriter(store.url, tmp_path / "run")
    for start in range(0, len(rows), 17):
        writer.put(rows[start : start + 17])
    writer.put(rows[:100])
    report = writer.close(30)
    assert (report.accepted, report.delivered, report.pending) == (2100, 2100, False)
    assert (report.refused, report.lost, report.torn) == (0, 0, 0)
    assert sorted(store.runs.episodes(run.id), key=lambda r: (r.episode_index, r.env_index)) == rows
    assert list((tmp_path / "run" / "journal").glob("*.jsonl")) == []


def test_the_metrics_say_how_the_writer_fares(
    postgres_server: PostgresServer, postgres_database: str, tmp_path: Path
) -> None:
    from mario.telemetry_export import Instruments, StoreMetrics

    instruments = Instruments()
    metrics = StoreMetrics(instruments, "r1")

    def value(name: str, **labels: str) -> float | None:
        return instruments.registry.get_sample_value(name, {"run": "r1", **labels})

    with ExperimentStore.open(postgres_database) as store:
        run = store.runs.start(new_run())
        with StoreWriter(postgres_database, tmp_path / "r", observer=metrics) as writer:
            writer.put([episode_row(run.id, i) for i in range(20)])
            assert writer.flush(20)
            assert value("mario_store_available") == 1
            assert value("mario_store_written_rows_total", table="episodes") == 20
            postgres_server.kill()
            try:
                writer.put([episode_row(run.id, i) for i in range(20, 50)])
                assert not writer.flush(1.0)
                assert value("mario_store_available") == 0
                assert value("mario_store_journal_rows") == 30
            finally:
                postgres_server.start()
            assert writer.flush(60)
            assert value("mario_store_available") == 1
            assert value("mario_store_journal_rows") == 0
            assert value("mario_store_journal_replayed_rows_total") == 30
            assert value("mario_store_written_rows_total", table="episodes") == 50


def test_a_refused_row_harms_no_other(store: ExperimentStore, tmp_path: Path) -> None:
    run = store.runs.start(new_run())
    rows = [episode_row(run.id, i) for i in range(50)]
    rows[23] = episode_row("no such run", 23)
    rows[31] = episode_row(run.id, 31, seed=2**64)
    with StoreWriter(store.url, tmp_path / "run") as writer:
        writer.put(rows)
        assert writer.flush(30)
        assert writer.report().refused == 2
    assert store.runs.count_episodes(run.id) == 48
    refused = (tmp_path / "run" / "journal" / "refused.jsonl").read_bytes().splitlines()
    kept = [decode_line(line) for line in refused]
    assert [record and record["record"]["episode_index"] for record in kept] == [23, 31]


def test_rows_of_a_resumed_run_replace_those_before(store: ExperimentStore, tmp_path: Path) -> None:
    """New rows and rows that are there already, in one batch and in batches of their own."""
    run = store.runs.start(new_run())
    with StoreWriter(store.url, tmp_path / "run") as writer:
        writer.put([episode_row(run.id, i, attempt=1, score=1) for i in range(40)])
        assert writer.flush(20)
        # Neither the first nor the last of them is there; some in the middle are.
        writer.put([episode_row(run.id, i, attempt=2, score=2) for i in (90, 38, 39, 40, 91)])
        assert writer.flush(20)
        writer.put([episode_row(run.id, i, attempt=1, score=3) for i in range(50)])
        assert writer.flush(20)
        assert writer.report().refused == 0
    scores = {row.episode_index: row.score for row in store.runs.episodes(run.id)}
    expected = dict.fromkeys(range(38), 1) | dict.fromkeys((38, 39, 40, 90, 91), 2)
    assert scores == expected | dict.fromkeys(range(41, 50), 3)


def test_where_an_attempt_went_on_from(store: ExperimentStore, tmp_path: Path) -> None:
    run = store.runs.start(new_run())
    store.runs.end(RunEndRow(run_id=run.id, attempt=1, status="interrupted", end_steps=300))
    run = store.runs.resume(run.id, start_steps=0)
    with StoreWriter(store.url, tmp_path / "run") as writer:
        writer.put([AttemptStartRow(run_id=run.id, attempt=2, start_steps=256)])
    assert [attempt.start_steps for attempt in store.runs.get(run.id).attempts] == [0, 256]


def test_the_end_of_a_run_goes_through_the_writer(store: ExperimentStore, tmp_path: Path) -> None:
    run = store.runs.start(new_run())
    with StoreWriter(store.url, tmp_path / "run") as writer:
        writer.put([RunEndRow(run_id=run.id, attempt=1, status="collapsed", end_steps=9)])
    assert store.runs.get(run.id).status == "collapsed"


_WRITER = """
import sys, time
sys.path.insert(0, {root!r})
from tests.support.store_rows import episode_row
from mario.store.writer import StoreWriter
url, folder, run_id = sys.argv[1:]
writer = StoreWriter(url, folder, batch_bytes=16_384, flush_seconds=0.01)
index = 0
while True:
    writer.put([episode_row(run_id, index)])
    print(index, flush=True)
    index += 1
    time.sleep(0.0005)
"""


def test_kill_9_in_the_middle_and_replay(database_url: str, tmp_path: Path) -> None:
    """A writer is killed at two moments; every row it had put is there once after replay."""
    root = str(Path(__file__).parents[2])
    with ExperimentStore.open(database_url) as store:
        for number, rows_before_kill in enumerate((1, 400)):
            run = store.runs.start(new_run())
            folder = tmp_path / f"run-{number}"
            process = subprocess.Popen(
                [sys.executable, "-c", _WRITER.format(root=root), database_url, folder, run.id],
                stdout=subprocess.PIPE,
                text=True,
            )
            assert process.stdout is not None
            said = -1
            for line in process.stdout:
                said = int(line)
                if said >= rows_before_kill:
                    break
            os.kill(process.pid, signal.SIGKILL)
            rest = process.stdout.read().split()
            process.wait()
            # The last number may itself be cut; every complete one was put before it was said.
            said = max([said, *(int(word) for word in rest[:-1])])
            replay_journals(database_url, tmp_path)
            stored = [row.episode_index for row in store.runs.episodes(run.id)]
            assert stored == list(range(len(stored)))
            assert len(stored) > said
            assert store.runs.get(run.id).status == "running"
        assert replay_journals(database_url, tmp_path) == []


def test_postgresql_is_killed_and_comes_back(
    postgres_server: PostgresServer, postgres_database: str, tmp_path: Path
) -> None:
    """While it is away rows are taken all the same; when it is back they arrive, each once."""
    url = postgres_database
    with ExperimentStore.open(url) as store:
        run = store.runs.start(new_run())
        writer = StoreWriter(url, tmp_path / "run", flush_seconds=0.05)
        rows = [episode_row(run.id, i) for i in range(2000)]
        for number in range(2):
            writer.put(rows[number * 1000 : number * 1000 + 500])
            postgres_server.kill()
            for row in rows[number * 1000 + 500 : number * 1000 + 1000]:
                writer.put([row])
            assert not writer.flush(0.3)
            assert writer.report().pending
            postgres_server.start()
        assert writer.flush(60)
        assert not writer.close().pending
        assert list(store.runs.episodes(run.id)) == rows


def test_a_run_that_ends_while_the_database_is_away_loses_nothing(
    postgres_server: PostgresServer, postgres_database: str, tmp_path: Path
) -> None:
    url = postgres_database
    with ExperimentStore.open(url) as store:
        run = store.runs.start(new_run())
    postgres_server.kill()
    try:
        writer = StoreWriter(url, tmp_path / "run")
        writer.put([episode_row(run.id, i) for i in range(10)])
        writer.put([RunEndRow(run_id=run.id, attempt=1, status="finished", end_steps=1000)])
        report = writer.close(0.5)
    finally:
        postgres_server.start()
    assert report.pending
    assert report.last_error is not None
    assert "cannot reach" in report.last_error
    (replay,) = replay_journals(url, tmp_path)
    assert replay.report is not None
    assert (replay.report.delivered, replay.report.pending) == (11, False)
    with ExperimentStore.open(url) as store:
        assert store.runs.get(run.id).status == "finished"
        assert store.runs.count_episodes(run.id) == 10


def test_the_first_writer_owns_the_journal(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/mario.db"
    with StoreWriter(url, tmp_path / "run"):
        with pytest.raises(StoreError, match="another process"):
            StoreWriter(url, tmp_path / "run")
        writer_is_busy = replay_journals(url, tmp_path)
    assert all(replay.busy for replay in writer_is_busy)


# -- the journal alone ----------------------------------------------------------------------


def test_torn_lines_are_skipped(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.append(b"".join(encode_line({"n": n}) for n in range(3)))
    journal.close(empty=False)
    path = tmp_path / "00000001.jsonl"
    data = path.read_bytes()
    lines = data.splitlines(keepends=True)
    path.write_bytes(lines[0] + b"garbage in the middle\n" + lines[1] + lines[2][:-9])
    again = Journal(tmp_path)
    again.append(encode_line({"n": 9}))
    seen = []
    while True:
        records, position = again.read()
        again.forget(position)
        if not records:
            break
        seen += [record["n"] for record in records]
    assert seen == [0, 1, 9]
    assert again.torn_lines == 2
    again.close(empty=True)


def test_the_journal_stays_small_when_it_is_read(tmp_path: Path) -> None:
    journal = Journal(tmp_path, segment_bytes=10_000)
    seen = 0
    for number in range(200):
        journal.append(b"".join(encode_line({"n": number, "x": "y" * 90}) for _ in range(20)))
        records, position = journal.read()
        journal.forget(position)
        seen += len(records)
        assert sum(path.stat().st_size for path in tmp_path.glob("*.jsonl")) < 20_000
    assert seen == 4000
    journal.close(empty=True)
    assert list(tmp_path.glob("*.jsonl")) == []


def test_a_record_longer_than_the_buffer(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.append(encode_line({"text": "x" * 10_000}) + encode_line({"n": 1}))
    records, position = journal.read(100)
    assert len(records[0]["text"]) == 10_000
    journal.forget(position)
    journal.close(empty=False)


@pytest.fixture
def synced(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files and folders that were brought to the disk, in order."""
    names: list[str] = []
    original = os.fsync

    def spy(descriptor: int) -> None:
        names.append(Path(f"/proc/self/fd/{descriptor}").readlink().name)
        original(descriptor)

    monkeypatch.setattr(os, "fsync", spy)
    return names


def test_sync_brings_full_segments_and_their_names_to_the_disk(
    tmp_path: Path, synced: list[str]
) -> None:
    journal = Journal(tmp_path / "run" / "journal", segment_bytes=1_000)
    for number in range(5):
        journal.append(encode_line({"n": number, "x": "y" * 500}))
    assert synced == [], "taking rows waits for no disk"
    journal.sync()
    segments = sorted(path.name for path in journal.folder.glob("*.jsonl"))
    assert len(segments) == 3
    assert synced == [*segments, "journal", "run"]
    synced.clear()
    journal.sync()
    assert synced == segments[-1:], "what is there is not brought again"
    journal.close(empty=True)


def test_what_was_delivered_need_not_reach_the_disk(tmp_path: Path, synced: list[str]) -> None:
    journal = Journal(tmp_path, segment_bytes=1_000)
    for number in range(5):
        journal.append(encode_line({"n": number, "x": "y" * 500}))
    for _ in range(3):
        journal.forget(journal.read()[1])
    assert len(list(tmp_path.glob("*.jsonl"))) == 1
    journal.sync()
    assert synced[0] == "00000003.jsonl"
    journal.close(empty=True)


def test_sync_tries_again_what_the_disk_did_not_take(
    tmp_path: Path, synced: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = Journal(tmp_path, segment_bytes=1_000)
    for number in range(5):
        journal.append(encode_line({"n": number, "x": "y" * 500}))

    def fails(descriptor: int) -> None:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as broken:
        broken.setattr(os, "fsync", fails)
        with pytest.raises(OSError, match="Input/output"):
            journal.sync()
    journal.sync()
    assert synced[:3] == ["00000001.jsonl", "00000002.jsonl", "00000003.jsonl"]
    journal.close(empty=True)


def test_what_sqlite_has_committed_survives_a_power_cut(tmp_path: Path) -> None:
    """A journal forgets its rows then."""
    engine = make_engine(f"sqlite:///{tmp_path}/mario.db")
    with engine.connect() as connection:
        (level,) = connection.exec_driver_sql("PRAGMA synchronous").one()
    assert level == 2, "FULL"
    engine.dispose()


def test_a_full_disk_keeps_records_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk takes half a line and then nothing; later it has room again."""
    got: list[int] = []
    away = True

    def deliver(records: object) -> None:
        if away:
            raise DeliveryUnavailableError("away")
        got.extend(record["n"] for record in records)  # type: ignore[attr-defined]

    writer = JournaledWriter(tmp_path, deliver, name="test", flush_seconds=0.01)
    writer.put([{"n": 0}])
    original = Journal.append
    torn: list[bytes] = []

    def full(self: Journal, lines: bytes) -> None:
        if not torn:
            torn.append(lines)
            original(self, lines[:10])
            self._torn_end = True
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Journal, "append", full)
    writer.put([{"n": 1}])
    writer.put([{"n": 2}])
    monkeypatch.setattr(Journal, "append", original)
    writer.put([{"n": 3}])
    away = False
    assert writer.flush(20)
    report = writer.close()
    assert sorted(got) == [0, 1, 2, 3]
    assert (report.lost, report.torn, report.pending) == (0, 1, False)


def test_sync_says_whether_rows_are_safe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A checkpoint may build on rows only when a kill cannot take them back."""
    got: list[int] = []
    away = True

    def deliver(records: object) -> None:
        if away:
            raise DeliveryUnavailableError("away")
        got.extend(record["n"] for record in records)  # type: ignore[attr-defined]

    writer = JournaledWriter(tmp_path, deliver, name="test", flush_seconds=0.01)
    writer.put([{"n": 0}])
    assert writer.sync()
    original = Journal.append

    def full(self: Journal, lines: bytes) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Journal, "append", full)
    writer.put([{"n": 1}, {"n": 2}])
    assert not writer.sync()
    monkeypatch.setattr(Journal, "append", original)
    assert writer.sync()
    on_disk = b"".join(path.read_bytes() for path in sorted(tmp_path.glob("*.jsonl")))
    records = [decode_line(line) for line in on_disk.splitlines() if line]
    assert [record and record["n"] for record in records] == [0, 1, 2]
    away = False
    assert writer.flush(20)
    assert sorted(set(got)) == [0, 1, 2]
    assert writer.close().lost == 0


def test_sync_says_no_for_good_once_rows_were_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A run resumed from a checkpoint after them would never tell them again."""
    monkeypatch.setattr("mario.journal_writer.OVERFLOW_LINES", 3)

    def full(self: Journal, lines: bytes) -> None:
        raise OSError(28, "No space left on device")

    url = f"postgresql+psycopg2://mario@127.0.0.1:{free_port()}/mario"  # nobody is there
    writer = StoreWriter(url, tmp_path, flush_seconds=0.01)
    with monkeypatch.context() as disk:
        disk.setattr(Journal, "append", full)
        for number in range(3):
            writer.put([episode_row("run-1", number)])
        assert not errors(caplog), "nothing is lost yet"
        for number in range(3, 8):
            writer.put([episode_row("run-1", number)])
        assert not writer.sync()
    assert not writer.sync(), "there is room again, the rows are gone all the same"
    assert writer.close(0.1).lost == 5
    (said,) = errors(caplog)
    assert "records are lost" in said
    assert "No space left" in said


def test_reports_that_are_lost_are_no_reason_to_write_no_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """MLflow is an optional recorder: once the disk has room again, training is as safe as ever."""
    monkeypatch.setattr("mario.journal_writer.OVERFLOW_LINES", 1)

    def away(records: object) -> None:
        raise DeliveryUnavailableError("away")

    def full(self: Journal, lines: bytes) -> None:
        raise OSError(28, "No space left on device")

    writer = JournaledWriter(tmp_path, away, name="test", flush_seconds=0.01)
    with monkeypatch.context() as disk:
        disk.setattr(Journal, "append", full)
        writer.put([{"n": 0}, {"n": 1}])
        assert not writer.sync()
    assert writer.sync()
    assert writer.close(0.1).lost == 1


def errors(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.levelno == logging.ERROR]


def test_a_receiver_that_raises_anything_stops_nothing(tmp_path: Path) -> None:
    calls: list[int] = []

    def deliver(records: object) -> None:
        calls.append(1)
        if len(calls) == 1:
            raise ZeroDivisionError

    from mario import journal_writer as module

    before = module.LAST_RETRY_SECONDS
    module.LAST_RETRY_SECONDS = 0.05
    try:
        with JournaledWriter(tmp_path, deliver, name="test", flush_seconds=0.01) as writer:
            writer.put([{"n": 0}])
            assert writer.flush(20)
    finally:
        module.LAST_RETRY_SECONDS = before
    assert len(calls) == 2


def test_heartbeats_never_go_backwards(store: ExperimentStore, tmp_path: Path) -> None:
    from datetime import timedelta

    run = store.runs.start(new_run())
    now = run.attempts[0].heartbeat_at
    with StoreWriter(store.url, tmp_path / "run") as writer:
        for minutes in (5, 3):
            at = now + timedelta(minutes=minutes)
            writer.put([HeartbeatRow(run_id=run.id, attempt=1, total_steps=1, at=at)])
            assert writer.flush(20)
    assert store.runs.get(run.id).attempts[0].heartbeat_at == now + timedelta(minutes=5)
    with writing(store.engine) as connection:
        assert connection.execute(sa.select(models.RunAttempt.status)).scalar_one() == "running"


def test_refused_lines_are_json(tmp_path: Path) -> None:
    line = encode_line({"text": "ü", "number": np.int64(3)})
    assert json.loads(line.split(b" ", 1)[1]) == {"text": "ü", "number": 3}
