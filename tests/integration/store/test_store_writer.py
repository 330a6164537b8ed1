"""The store's writer loses, repeats and blocks nothing, through kills of either side."""

from __future__ import annotations

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
from mario.journal.format import decode_line, encode_line
from mario.store import tables
from mario.store.engine import writing
from mario.store.journal_writer import Replay, StoreWriter, from_record, replay_journals, to_record
from mario.store.records import (
    AttemptEnd,
    AttemptStart,
    CheckpointEntry,
    HealthChangeEntry,
    HealthSampleEntry,
    Heartbeat,
    SelectionEntry,
)
from mario.store.store import ExperimentStore
from tests.support.paths import ROOT
from tests.support.postgres import PostgresServer
from tests.support.serving_load import wait_until
from tests.support.store_rows import episode_row, new_run


def test_entries_are_read_from_the_journal_as_written(tmp_path: Path) -> None:
    rows = [
        episode_row("run", 3),
        HealthSampleEntry(
            run_id="run", update_index=1, attempt=1, total_steps=2, state="healthy",
            signals={"kl": float("nan"), "note": "a\nb ✓"},
        ),
        HealthChangeEntry(
            run_id="run", update_index=1, attempt=1, total_steps=2, from_state="warming",
            to_state="healthy", reasons=("one", "two"),
        ),
        AttemptEnd(run_id="run", attempt=1, status="finished", end_steps=None),
        Heartbeat(run_id="run", attempt=1, total_steps=3),
        AttemptStart(run_id="run", attempt=2, start_steps=256),
        CheckpointEntry(
            run_id="run", kind="best", total_steps=1, attempt=1, path="a/b", sha256="d" * 64,
            size_bytes=2**40,
        ),
        SelectionEntry(
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
        if isinstance(row, HealthSampleEntry):
            assert isinstance(again, HealthSampleEntry)
            assert again.signals == {"kl": "nan", "note": "a\nb ✓"}
        else:
            assert again == row
    whole = encode_line(to_record(rows[0]))
    assert all(decode_line(whole[:cut]) is None for cut in range(len(whole) - 1))


def test_numpy_scalars_are_stored_as_numbers(store: ExperimentStore, tmp_path: Path) -> None:
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


def test_every_entry_is_stored_once(store: ExperimentStore, tmp_path: Path) -> None:
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


def test_the_writers_metrics(
    postgres_server: PostgresServer, postgres_database: str, tmp_path: Path
) -> None:
    from mario.telemetry.instruments import InstrumentSet
    from mario.telemetry.store import StoreMetrics

    instruments = InstrumentSet()
    metrics = StoreMetrics(instruments, "r1")

    def value(name: str, **labels: str) -> float | None:
        return instruments.registry.get_sample_value(name, {"run": "r1", **labels})

    with ExperimentStore.open(postgres_database) as store:
        run = store.runs.start(new_run())
        with StoreWriter(postgres_database, tmp_path / "r", observer=metrics) as writer:
            writer.put([episode_row(run.id, i) for i in range(20)])
            assert writer.flush(60)
            assert value("mario_store_available") == 1
            assert value("mario_store_written_rows_total", table="episodes") == 20
            postgres_server.kill()
            try:
                writer.put([episode_row(run.id, i) for i in range(20, 50)])
                assert not writer.flush(0.0)
                assert wait_until(lambda: value("mario_store_available") == 0, 60)
                assert value("mario_store_journal_rows") == 30
            finally:
                postgres_server.start()
            assert writer.flush(60)
            assert value("mario_store_available") == 1
            assert value("mario_store_journal_rows") == 0
            assert value("mario_store_journal_replayed_rows_total") == 30
            assert value("mario_store_written_rows_total", table="episodes") == 50


def test_a_refused_entry_does_not_affect_others(store: ExperimentStore, tmp_path: Path) -> None:
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


def test_rows_of_a_resumed_run_replace_earlier_ones(store: ExperimentStore, tmp_path: Path) -> None:
    """New and existing rows, in one batch and in separate batches."""
    run = store.runs.start(new_run())
    with StoreWriter(store.url, tmp_path / "run") as writer:
        writer.put([episode_row(run.id, i, attempt=1, score=1) for i in range(40)])
        assert writer.flush(20)
        # Some rows in the middle exist already, but neither the first nor the last.
        writer.put([episode_row(run.id, i, attempt=2, score=2) for i in (90, 38, 39, 40, 91)])
        assert writer.flush(20)
        writer.put([episode_row(run.id, i, attempt=1, score=3) for i in range(50)])
        assert writer.flush(20)
        assert writer.report().refused == 0
    scores = {row.episode_index: row.score for row in store.runs.episodes(run.id)}
    expected = dict.fromkeys(range(38), 1) | dict.fromkeys((38, 39, 40, 90, 91), 2)
    assert scores == expected | dict.fromkeys(range(41, 50), 3)


def test_the_steps_that_an_attempt_resumed_from(store: ExperimentStore, tmp_path: Path) -> None:
    run = store.runs.start(new_run())
    store.runs.end(AttemptEnd(run_id=run.id, attempt=1, status="interrupted", end_steps=300))
    run = store.runs.resume(run.id, start_steps=0)
    with StoreWriter(store.url, tmp_path / "run") as writer:
        writer.put([AttemptStart(run_id=run.id, attempt=2, start_steps=256)])
    assert [attempt.start_steps for attempt in store.runs.get(run.id).attempts] == [0, 256]


def test_the_end_of_a_run_goes_through_the_writer(store: ExperimentStore, tmp_path: Path) -> None:
    run = store.runs.start(new_run())
    with StoreWriter(store.url, tmp_path / "run") as writer:
        writer.put([AttemptEnd(run_id=run.id, attempt=1, status="collapsed", end_steps=9)])
    assert store.runs.get(run.id).status == "collapsed"


_WRITER = """
import sys, time
sys.path.insert(0, {root!r})
from tests.support.store_rows import episode_row
from mario.store.journal_writer import StoreWriter
url, folder, run_id = sys.argv[1:]
writer = StoreWriter(url, folder, batch_bytes=16_384, flush_seconds=0.01)
index = 0
while True:
    writer.put([episode_row(run_id, index)])
    print(index, flush=True)
    index += 1
    time.sleep(0.0005)
"""


def test_a_killed_writers_entries_are_replayed(database_url: str, tmp_path: Path) -> None:
    """A writer is killed at two moments; after the replay every entry is stored once."""
    root = str(ROOT)
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
            # The last number may be cut; every complete one was put before it was printed.
            said = max([said, *(int(word) for word in rest[:-1])])
            replay_journals(database_url, tmp_path)
            stored = [row.episode_index for row in store.runs.episodes(run.id)]
            assert stored == list(range(len(stored)))
            assert len(stored) > said
            assert store.runs.get(run.id).status == "running"
        assert replay_journals(database_url, tmp_path) == []


def test_entries_survive_an_outage_of_postgresql(
    postgres_server: PostgresServer, postgres_database: str, tmp_path: Path
) -> None:
    """Entries are accepted during the outage and stored once afterwards."""
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


def test_a_run_that_ends_during_an_outage_loses_nothing(
    postgres_server: PostgresServer, postgres_database: str, tmp_path: Path
) -> None:
    url = postgres_database
    with ExperimentStore.open(url) as store:
        run = store.runs.start(new_run())
    postgres_server.kill()
    try:
        writer = StoreWriter(url, tmp_path / "run")
        writer.put([episode_row(run.id, i) for i in range(10)])
        writer.put([AttemptEnd(run_id=run.id, attempt=1, status="finished", end_steps=1000)])
        assert wait_until(lambda: writer.report().last_error is not None, 60)
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


AWAY = "postgresql+psycopg2://mario@127.0.0.1:1/mario"  # nobody is there


def test_the_first_writer_owns_the_journal(store: ExperimentStore, tmp_path: Path) -> None:
    run = store.runs.start(new_run())
    writer = StoreWriter(AWAY, tmp_path / run.id)
    writer.put([episode_row(run.id, 0)])
    with pytest.raises(StoreError, match="another process"):
        StoreWriter(store.url, tmp_path / run.id)
    folder = tmp_path / run.id / "journal"
    assert replay_journals(store.url, tmp_path) == [Replay(folder, busy=True)]
    assert writer.close(0.0).pending
    assert store.runs.count_episodes(run.id) == 0
    assert [replay.busy for replay in replay_journals(store.url, tmp_path)] == [False]
    assert store.runs.count_episodes(run.id) == 1


def test_replay_skips_journals_of_another_database(
    store: ExperimentStore, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The run's database was unreachable; a second run uses the embedded one."""
    run = store.runs.start(new_run())
    with StoreWriter(AWAY, tmp_path / run.id) as writer:
        writer.put([episode_row(run.id, i) for i in range(30)])
        writer.put([AttemptEnd(run_id=run.id, attempt=1, status="finished", end_steps=9)])
        assert writer.close(0.0).pending
    folder = tmp_path / run.id / "journal"
    before = {path.name: path.read_bytes() for path in folder.glob("*.jsonl")}
    another = f"sqlite:///{tmp_path}/another.db"
    with ExperimentStore.open(another) as other:
        mine = other.runs.start(new_run())
        with StoreWriter(AWAY, tmp_path / mine.id) as writer:
            writer.put([episode_row(mine.id, 0)])
            assert writer.close(0.0).pending
        caplog.clear()
        replays = {replay.folder: replay for replay in replay_journals(another, tmp_path)}
        assert replays[folder] == Replay(folder), "it is not opened"
        assert other.runs.count_episodes(mine.id) == 1
    (said,) = [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]
    assert "are skipped" in said
    assert run.id in said
    assert {path.name: path.read_bytes() for path in folder.glob("*.jsonl")} == before
    (replay,) = replay_journals(store.url, tmp_path)
    assert replay.report is not None
    assert (replay.report.delivered, replay.report.refused) == (31, 0)
    assert store.runs.count_episodes(run.id) == 30
    assert store.runs.get(run.id).status == "finished"


@pytest.mark.parametrize("kind", ["episode", "end", "sign of life", "start"])
def test_an_entry_of_an_unknown_run_waits(
    store: ExperimentStore, tmp_path: Path, kind: str
) -> None:
    """It is neither refused nor counted as delivered until the run exists."""
    new = new_run(id="run-elsewhere")
    row = {
        "episode": episode_row(new.id, 0),
        "end": AttemptEnd(run_id=new.id, attempt=1, status="finished", end_steps=9),
        "sign of life": Heartbeat(run_id=new.id, attempt=1, total_steps=1),
        "start": AttemptStart(run_id=new.id, attempt=1, start_steps=7),
    }[kind]
    with StoreWriter(store.url, tmp_path / new.id) as writer:
        writer.put([row])
        assert wait_until(lambda: writer.report().last_error is not None, 60)
        report = writer.report()
        assert (report.delivered, report.refused) == (0, 0)
        assert report.last_error is not None
        assert "does not have the run run-elsewhere" in report.last_error
        store.runs.start(new)
        assert writer.flush(60)
        assert (writer.report().delivered, writer.report().refused) == (1, 0)
    if kind == "end":
        assert store.runs.get(new.id).status == "finished"


def test_an_entry_of_an_unknown_run_does_not_block_a_known_run(
    store: ExperimentStore, tmp_path: Path
) -> None:
    """Alone it waits, as in the wrong database; it is refused once the known run's follow."""
    run = store.runs.start(new_run())
    with StoreWriter(store.url, tmp_path / run.id) as writer:
        writer.put([episode_row("no such run", 0)])
        assert wait_until(lambda: writer.report().last_error is not None, 60)
        assert writer.report().refused == 0
        writer.put([episode_row(run.id, 0)])
        assert writer.flush(60)
        assert (writer.report().delivered, writer.report().refused) == (1, 1)
    assert store.runs.count_episodes(run.id) == 1


def test_heartbeats_never_go_backwards(store: ExperimentStore, tmp_path: Path) -> None:
    from datetime import timedelta

    run = store.runs.start(new_run())
    now = run.attempts[0].heartbeat_at
    with StoreWriter(store.url, tmp_path / "run") as writer:
        for minutes in (5, 3):
            at = now + timedelta(minutes=minutes)
            writer.put([Heartbeat(run_id=run.id, attempt=1, total_steps=1, at=at)])
            assert writer.flush(20)
    assert store.runs.get(run.id).attempts[0].heartbeat_at == now + timedelta(minutes=5)
    with writing(store.engine) as connection:
        assert connection.execute(sa.select(tables.RunAttemptRow.status)).scalar_one() == "running"
