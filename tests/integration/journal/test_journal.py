"""The journal and its writer: torn lines, synchronisation with the disk, full disks."""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from mario.journal.format import Journal, Record, decode_line, encode_line
from mario.journal.writer import (
    FIRST_RETRY_SECONDS,
    DeliveryRefusedError,
    DeliveryUnavailableError,
    JournaledWriter,
)
from mario.store.engine import make_engine
from mario.store.journal_writer import StoreWriter
from tests.support.processes import free_port
from tests.support.store_rows import episode_row


class Numbers:
    """A receiver that collects the numbers of records; unreachable while ``away`` is set."""

    def __init__(self) -> None:
        self.got: list[int] = []
        self.away = True

    def __call__(self, records: Sequence[Record]) -> None:
        if self.away:
            raise DeliveryUnavailableError("away")
        self.got.extend(record["n"] for record in records)


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


def test_a_torn_line_counts_once_however_often_it_is_read(tmp_path: Path) -> None:
    """Each retry reads the batch again while the receiver is unreachable."""
    (tmp_path / "00000001.jsonl").write_bytes(
        encode_line({"n": 0}) + b"torn\n" + encode_line({"n": 1})
    )
    (tmp_path / "00000002.jsonl").write_bytes(b"torn, and nothing after it\n")
    journal = Journal(tmp_path)
    for _ in range(3):
        records, position = journal.read()
        assert [record["n"] for record in records] == [0, 1]
    assert journal.torn_lines == 0, "they are not deleted yet"
    assert journal.forget(position) == 1
    assert journal.forget(position) == 0
    for _ in range(3):
        records, position = journal.read()
        assert records == []
    assert journal.forget(position) == 1
    assert journal.torn_lines == 2
    journal.close(empty=True)


def test_a_torn_line_is_logged_once_as_an_error(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "00000001.jsonl").write_bytes(encode_line({"n": 0}) + b"torn\n")
    tries: list[int] = []

    def deliver(records: object) -> None:
        tries.append(1)
        if len(tries) < 3:
            raise DeliveryUnavailableError("away")

    with JournaledWriter(tmp_path, deliver, name="test", flush_seconds=0.01) as writer:
        assert writer.flush(20)
        assert writer.report().torn == 1
    (said,) = errors(caplog)
    assert "1 lines of the journal" in said
    assert str(tmp_path) in said


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


def full(self: Journal, lines: bytes) -> None:
    """Fail like an append to a full disk."""
    raise OSError(28, "No space left on device")


@pytest.fixture
def synced(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the synced files and folders, in order."""
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
    assert synced == [], "an append waits for no disk"
    journal.sync()
    segments = sorted(path.name for path in journal.folder.glob("*.jsonl"))
    assert len(segments) == 3
    assert synced == [*segments, "journal", "run"]
    synced.clear()
    journal.sync()
    assert synced == segments[-1:], "a synced segment is not synced again"
    journal.close(empty=True)


def test_sync_skips_delivered_segments(tmp_path: Path, synced: list[str]) -> None:
    journal = Journal(tmp_path, segment_bytes=1_000)
    for number in range(5):
        journal.append(encode_line({"n": number, "x": "y" * 500}))
    for _ in range(3):
        journal.forget(journal.read()[1])
    assert len(list(tmp_path.glob("*.jsonl"))) == 1
    journal.sync()
    assert synced[0] == "00000003.jsonl"
    journal.close(empty=True)


def test_sync_retries_after_a_disk_error(
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


def test_sqlite_commits_survive_a_power_cut(tmp_path: Path) -> None:
    """The journal deletes committed rows."""
    engine = make_engine(f"sqlite:///{tmp_path}/mario.db")
    with engine.connect() as connection:
        (level,) = connection.exec_driver_sql("PRAGMA synchronous").one()
    assert level == 2, "FULL"
    engine.dispose()


def test_a_full_disk_keeps_records_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk takes half a line and then nothing; later it has space again."""
    receiver = Numbers()
    got = receiver.got
    writer = JournaledWriter(tmp_path, receiver, name="test", flush_seconds=0.01)
    writer.put([{"n": 0}])
    original = Journal.append
    torn: list[bytes] = []

    def half(self: Journal, lines: bytes) -> None:
        if not torn:
            torn.append(lines)
            original(self, lines[:10])
            self._torn_end = True
        full(self, lines)

    monkeypatch.setattr(Journal, "append", half)
    writer.put([{"n": 1}])
    writer.put([{"n": 2}])
    monkeypatch.setattr(Journal, "append", original)
    writer.put([{"n": 3}])
    time.sleep(3 * FIRST_RETRY_SECONDS)  # it reads the torn line several times meanwhile
    receiver.away = False
    assert writer.flush(20)
    report = writer.close()
    assert got == [0, 1, 2, 3]
    assert (report.lost, report.torn, report.pending) == (0, 1, False)


def test_records_kept_in_memory_are_delivered_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The newer value of a tag that is set twice must come last."""
    receiver = Numbers()
    got = receiver.got
    writer = JournaledWriter(tmp_path, receiver, name="test", flush_seconds=0.01)
    with monkeypatch.context() as disk:
        disk.setattr(Journal, "append", full)
        writer.put([{"n": 1}])
        writer.put([{"n": 2}])
    writer.put([{"n": 3}])
    receiver.away = False
    assert writer.flush(20)
    writer.close()
    assert got == [1, 2, 3]


def test_journaled_records_are_delivered_before_those_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk has space and is full again just after the writer saw the end of its journal."""
    got: list[int] = []
    disk_is_full = threading.Event()
    append, forget = Journal.append, Journal.forget
    moments = [1]

    def append_if_there_is_space(self: Journal, lines: bytes) -> None:
        (full if disk_is_full.is_set() else append)(self, lines)

    def forget_and_put(self: Journal, position: tuple[int, int]) -> int:
        torn = forget(self, position)
        if disk_is_full.is_set() and moments:
            moments.clear()
            disk_is_full.clear()
            writer.put([{"n": 2}])
            disk_is_full.set()
            writer.put([{"n": 3}])
        return torn

    monkeypatch.setattr(Journal, "append", append_if_there_is_space)
    monkeypatch.setattr(Journal, "forget", forget_and_put)
    writer = JournaledWriter(
        tmp_path,
        lambda records: got.extend(record["n"] for record in records),
        name="test",
        flush_seconds=0.01,
    )
    assert writer.flush(20)
    disk_is_full.set()
    writer.put([{"n": 1}])
    assert writer.flush(20)
    assert not moments
    writer.close()
    # Records kept in memory may come twice, but never late.
    assert list(dict.fromkeys(got)) == [1, 2, 3]


def test_a_closed_writer_leaves_the_journal_to_the_next(tmp_path: Path) -> None:
    """Its thread hangs in the receiver, and returns while another process reads the journal."""
    (tmp_path / "00000001.jsonl").write_bytes(encode_line({"n": 0}))
    reached, answer = threading.Event(), threading.Event()

    def hangs(records: Sequence[Record]) -> None:
        if records[0]["n"] == 1:
            reached.set()
            answer.wait(60)
            raise DeliveryRefusedError("no", records[:1])

    writer = JournaledWriter(tmp_path, hangs, name="test", flush_seconds=0.01)
    writer.put([{"n": 1}])
    assert reached.wait(20)
    assert writer.close(0.0).pending
    other = Journal(tmp_path)
    answer.set()
    writer._thread.join(20)
    assert not writer._thread.is_alive()
    assert (tmp_path / "00000001.jsonl").exists(), "the other process reads it"
    assert other.read()[0] == [{"n": 0}]
    assert not (tmp_path / "refused.jsonl").exists(), "the next owner has it refused"
    assert writer.report().refused == 0
    other.close(empty=False)


def test_a_refused_record_is_kept_once_although_its_batch_is_retried(tmp_path: Path) -> None:
    tries: list[int] = []

    def deliver(records: Sequence[Record]) -> None:
        if any(record["n"] == 0 for record in records):
            raise DeliveryRefusedError("no")
        tries.append(1)
        if len(tries) < 3:
            raise DeliveryUnavailableError("away")

    with JournaledWriter(tmp_path, deliver, name="test", flush_seconds=0.01) as writer:
        writer.put([{"n": n} for n in range(4)])
        assert writer.flush(20)
        report = writer.report()
    assert (report.delivered, report.refused) == (3, 1)
    assert len((tmp_path / "refused.jsonl").read_bytes().splitlines()) == 1


def test_sync_tells_whether_rows_are_durable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A checkpoint may rely on rows only when a kill cannot lose them."""
    receiver = Numbers()
    got = receiver.got
    writer = JournaledWriter(tmp_path, receiver, name="test", flush_seconds=0.01)
    writer.put([{"n": 0}])
    assert writer.sync()
    with monkeypatch.context() as disk:
        disk.setattr(Journal, "append", full)
        writer.put([{"n": 1}, {"n": 2}])
        assert not writer.sync()
    assert writer.sync()
    on_disk = b"".join(path.read_bytes() for path in sorted(tmp_path.glob("*.jsonl")))
    records = [decode_line(line) for line in on_disk.splitlines() if line]
    assert [record and record["n"] for record in records] == [0, 1, 2]
    receiver.away = False
    assert writer.flush(20)
    assert sorted(set(got)) == [0, 1, 2]
    assert writer.close().lost == 0


def test_sync_stays_false_once_rows_were_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A run resumed from a later checkpoint would never write them again."""
    monkeypatch.setattr("mario.journal.writer.OVERFLOW_LINES", 3)
    url = f"postgresql+psycopg2://mario@127.0.0.1:{free_port()}/mario"  # no server
    writer = StoreWriter(url, tmp_path, flush_seconds=0.01)
    with monkeypatch.context() as disk:
        disk.setattr(Journal, "append", full)
        for number in range(3):
            writer.put([episode_row("run-1", number)])
        assert not errors(caplog), "nothing is lost yet"
        for number in range(3, 8):
            writer.put([episode_row("run-1", number)])
        assert not writer.sync()
    assert not writer.sync(), "the disk has space again, but the rows are lost"
    assert writer.close(0.1).lost == 5
    (said,) = errors(caplog)
    assert "records are lost" in said
    assert "No space left" in said


def test_lost_tracking_records_do_not_prevent_checkpoints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """MLflow is optional: once the disk has space again, checkpoints are safe."""
    monkeypatch.setattr("mario.journal.writer.OVERFLOW_LINES", 1)

    def away(records: object) -> None:
        raise DeliveryUnavailableError("away")

    writer = JournaledWriter(tmp_path, away, name="test", flush_seconds=0.01)
    with monkeypatch.context() as disk:
        disk.setattr(Journal, "append", full)
        writer.put([{"n": 0}, {"n": 1}])
        assert not writer.sync()
    assert writer.sync()
    assert writer.close(0.1).lost == 1


def errors(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.levelno == logging.ERROR]


def test_any_exception_of_the_receiver_is_retried(tmp_path: Path) -> None:
    calls: list[int] = []

    def deliver(records: object) -> None:
        calls.append(1)
        if len(calls) == 1:
            raise ZeroDivisionError

    from mario.journal import writer as module

    before = module.LAST_RETRY_SECONDS
    module.LAST_RETRY_SECONDS = 0.05
    try:
        with JournaledWriter(tmp_path, deliver, name="test", flush_seconds=0.01) as writer:
            writer.put([{"n": 0}])
            assert writer.flush(20)
    finally:
        module.LAST_RETRY_SECONDS = before
    assert len(calls) == 2


def test_lines_are_json(tmp_path: Path) -> None:
    line = encode_line({"text": "ü", "number": np.int64(3)})
    assert json.loads(line.split(b" ", 1)[1]) == {"text": "ü", "number": 3}
