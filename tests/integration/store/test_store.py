"""The store on SQLite and PostgreSQL: migrations, writing and reading, constraints."""

from __future__ import annotations

import dataclasses
import math
import os
import socket
import subprocess
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext

from mario.config.experiment import SEED_BOUND
from mario.errors import RunIsBusy, StoreError
from mario.store import migrate, tables
from mario.store.check import run_is_alive
from mario.store.engine import (
    StoreConstraintError,
    StoreUnavailableError,
    make_engine,
    redact,
    writing,
)
from mario.store.process_identity import SILENCE_SECONDS, process_began
from mario.store.records import (
    AttemptEnd,
    CheckpointEntry,
    HealthChangeEntry,
    HealthSampleEntry,
    Heartbeat,
    SelectionEntry,
    utc_now,
)
from mario.store.runs import flatten
from mario.store.store import ExperimentStore
from tests.support.postgres import PostgresServer
from tests.support.store_rows import (
    MODEL,
    episode_row,
    evaluation_key,
    evaluation_record,
    new_run,
    registered,
    verdict,
)

A, B = "a" * 64, "b" * 64


# -- migrations -----------------------------------------------------------------------------


def test_migrations_create_exactly_the_declared_tables(database_url: str) -> None:
    engine = make_engine(database_url)
    with engine.connect() as connection:
        differences = compare_metadata(MigrationContext.configure(connection), tables.Base.metadata)
    engine.dispose()
    assert differences == []


def test_a_downgrade_removes_everything_and_an_upgrade_works_again(database_url: str) -> None:
    with ExperimentStore.open(database_url) as store:
        run = store.runs.start(new_run())
        store.runs.write([episode_row(run.id, 0)])
        registered(store, 1, A)
        store.ledger.promote(MODEL, 1, verdict_id=None, promoted_by="test")
    assert migrate.downgrade(database_url, "base") is None
    engine = make_engine(database_url)
    assert sa.inspect(engine).get_table_names() in ([], ["alembic_version"])
    assert migrate.current_revision(engine) is None
    engine.dispose()
    with pytest.raises(StoreError, match="mario store upgrade"):
        ExperimentStore.open(database_url, create=False)
    assert migrate.upgrade(database_url) == migrate.head_revision()


def test_four_concurrent_upgrades(postgres_server: PostgresServer, tmp_path: Path) -> None:
    urls = [
        postgres_server.url(postgres_server.create_database()),
        f"sqlite:///{tmp_path}/new/mario.db",
    ]
    for url in urls:
        with ThreadPoolExecutor(4) as pool:
            revisions = list(pool.map(migrate.upgrade, [url] * 4))
        assert revisions == [migrate.head_revision()] * 4


def test_a_newer_database_is_refused(database_url: str) -> None:
    engine = make_engine(database_url)
    with writing(engine) as connection:
        connection.execute(sa.text("UPDATE alembic_version SET version_num = '9999'"))
    engine.dispose()
    with pytest.raises(StoreError, match="9999"):
        ExperimentStore.open(database_url)


# -- bad databases: one line with the remedy ------------------------------------------------


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("postgresql+psycopg2://mario:secret@127.0.0.1:1/mario", "cannot reach"),
        ("postgresql://mario:secret@localhost/mario", "postgresql+psycopg2"),
        ("mysql://mario:secret@localhost/mario", "expected sqlite"),
        ("nonsense", "cannot be read"),
        ("sqlite://", "expected a file"),
        ("sqlite:////proc/nowhere/mario.db", "cannot create the folder"),
    ],
)
def test_bad_urls_give_one_line_without_the_password(url: str, words: str) -> None:
    with pytest.raises(StoreError, match=words.replace("+", r"\+")) as caught:
        ExperimentStore.open(url)
    message = str(caught.value)
    assert "\n" not in message
    assert "secret" not in message
    assert caught.value.exit_code == 2


def test_a_missing_file_is_not_created_for_readers(tmp_path: Path) -> None:
    path = tmp_path / "mario.db"
    with pytest.raises(StoreError, match="there is no database"):
        ExperimentStore.open(f"sqlite:///{path}", create=False)
    assert not path.exists()


def test_a_file_that_is_not_a_database(tmp_path: Path) -> None:
    path = tmp_path / "mario.db"
    path.write_bytes(b"this is a text, not a database" * 100)
    with pytest.raises(StoreError, match="not a SQLite database"):
        ExperimentStore.open(f"sqlite:///{path}")


def test_a_server_without_the_database(postgres_server: PostgresServer) -> None:
    with pytest.raises(StoreError, match="no such database"):
        ExperimentStore.open(postgres_server.url("nowhere"))


def test_an_empty_server_database_asks_for_an_upgrade(postgres_server: PostgresServer) -> None:
    with pytest.raises(StoreError, match="mario store upgrade"):
        ExperimentStore.open(postgres_server.url(postgres_server.create_database()))


def test_redact_hides_the_password() -> None:
    assert redact("postgresql+psycopg2://u:pw@h:5432/d") == "postgresql+psycopg2://u:***@h:5432/d"


# -- runs -----------------------------------------------------------------------------------


def test_a_run_is_read_as_it_was_stored(store: ExperimentStore) -> None:
    run = store.runs.start(
        new_run(hardware={"cores": 2, "ratio": math.nan}, git_commit="f" * 40, git_diff="+x\n")
    )
    again = store.runs.get(run.id)
    assert again == run
    assert again.config["ppo"] == {"gamma": 0.95, "n_steps": 128}
    assert again.hardware == {"cores": 2, "ratio": "nan"}
    assert (again.status, again.ended_at, len(again.attempts)) == ("running", None, 1)
    assert again.attempts[0].pid == os.getpid()
    assert again.attempts[0].host == socket.gethostname()
    assert again.started_at.tzinfo is UTC
    assert store.runs.hyperparameters(run.id) == flatten(again.config)
    assert store.runs.list(task="1-1")[0].id == run.id
    assert store.runs.list(task="2-1") == ()


def test_an_episode_is_stored_once(store: ExperimentStore) -> None:
    run = store.runs.start(new_run())
    rows = [episode_row(run.id, i, env) for env in range(3) for i in range(5)]
    store.runs.write(rows)
    store.runs.write(list(reversed(rows)))
    store.runs.write([rows[0], rows[0]])
    assert list(store.runs.episodes(run.id)) == rows
    assert store.runs.count_episodes(run.id) == 15


def test_the_later_attempts_rows_replace_the_earlier_ones(store: ExperimentStore) -> None:
    run = store.runs.start(new_run())
    first = episode_row(run.id, 0, shaped_return=1.0)
    second = episode_row(run.id, 0, shaped_return=2.0, attempt=2)
    store.runs.write([first])
    store.runs.write([second, first])
    store.runs.write([first])
    assert [row.shaped_return for row in store.runs.episodes(run.id)] == [2.0]


def test_episodes_are_read_in_pages(
    store: ExperimentStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mario.store.runs._PAGE_ROWS", 4)
    run = store.runs.start(new_run())
    rows = [episode_row(run.id, i, env) for env in range(3) for i in range(4)]
    store.runs.write(rows)
    assert list(store.runs.episodes(run.id)) == rows


def test_health_and_checkpoints_are_read_as_stored(store: ExperimentStore) -> None:
    run = store.runs.start(new_run())
    now = datetime.now(UTC)
    sample = HealthSampleEntry(
        run_id=run.id, update_index=3, attempt=1, total_steps=512, state="warning",
        signals={"entropy": 0.2, "kl": math.inf, "value_loss": math.nan, "per_env": [1, 2]}, at=now,
    )  # fmt: skip
    change = HealthChangeEntry(
        run_id=run.id, update_index=3, attempt=1, total_steps=512, from_state="healthy",
        to_state="warning", reasons=("entropy 0.2 below 0.3",), at=now,
    )  # fmt: skip
    saved = CheckpointEntry(
        run_id=run.id, kind="best", total_steps=512, attempt=1, path="run/checkpoints/512",
        sha256="d" * 64, size_bytes=1 << 33, at=now,
    )  # fmt: skip
    judged = SelectionEntry(
        run_id=run.id, total_steps=512, attempt=1, score=0.4, best_score=0.4, is_best=True,
        details={"clear_rate": 0.25}, seconds=2.5, at=now,
    )  # fmt: skip
    store.runs.write([sample, change, saved, judged])
    (got,) = store.runs.health_samples(run.id)
    assert got.signals == {"entropy": 0.2, "kl": "inf", "value_loss": "nan", "per_env": [1, 2]}
    assert store.runs.health_changes(run.id) == (change,)
    assert store.runs.checkpoints(run.id) == (saved,)
    assert store.runs.checkpoints(run.id, "last") == ()
    assert store.runs.selections(run.id) == (judged,)
    lie = dataclasses.replace(judged, total_steps=1_024, score=0.3)
    with pytest.raises(StoreError, match="is_best"):
        store.runs.write([lie])


def test_a_reserved_seed_is_the_smallest_free_one(store: ExperimentStore) -> None:
    store.runs.start(new_run(id="by-hand", config={"seed": 4}))
    store.runs.start(new_run(id="elsewhere", task="1-2", config={"seed": 3}))
    assert store.runs.reserve_seed("first", "1-1", 3) == 3
    assert store.runs.reserve_seed("second", "1-1", 3) == 5, "3 is taken, 4 was trained by hand"
    assert store.runs.reserve_seed("first", "1-1", 7) == 3, "a run's next attempt keeps its seed"
    assert store.runs.reserve_seed("third", "1-2", SEED_BOUND - 1) == SEED_BOUND - 1
    with pytest.raises(StoreError, match="no free seed"):
        store.runs.reserve_seed("fourth", "1-2", SEED_BOUND - 1)


def test_concurrent_runs_reserve_different_seeds(database_url: str) -> None:
    def take(number: int) -> int:
        with ExperimentStore(database_url) as own:
            return own.runs.reserve_seed(f"run-{number}", "1-1", 0)

    with ThreadPoolExecutor(6) as pool:
        assert sorted(pool.map(take, range(12))) == list(range(12))


def test_a_killed_run_is_resumed_and_finished(store: ExperimentStore) -> None:
    run = store.runs.start(new_run())
    with writing(store.engine) as connection:  # as if another process had started it and died
        connection.execute(sa.update(tables.RunAttemptRow).values(pid=2**22 + 1))
    resumed = store.runs.resume(run.id, start_steps=300)
    assert [a.status for a in resumed.attempts] == ["killed", "running"]
    assert resumed.status == "running"
    # The first attempt's end arrives late, from its journal: the run stays running.
    store.runs.write([AttemptEnd(run_id=run.id, attempt=1, status="failed", end_steps=200)])
    assert store.runs.get(run.id).status == "running"
    store.runs.write([Heartbeat(run_id=run.id, attempt=2, total_steps=400)])
    end = AttemptEnd(run_id=run.id, attempt=2, status="finished", end_steps=1000)
    store.runs.write([end])
    store.runs.write([end])
    done = store.runs.get(run.id)
    assert done.status == "finished"
    assert [(a.status, a.end_steps) for a in done.attempts] == [("failed", 200), ("finished", 1000)]


def test_a_run_whose_process_is_alive_is_not_resumed(store: ExperimentStore) -> None:
    run = store.runs.start(new_run())
    with writing(store.engine) as connection:
        connection.execute(sa.update(tables.RunAttemptRow).values(pid=os.getppid()))
    with pytest.raises(StoreError, match=f"process {os.getppid()}"):
        store.runs.resume(run.id, start_steps=0)


def move_attempt(store: ExperimentStore, run_id: str, **values: object) -> None:
    """Change a run's attempts as if another process had started them."""
    with writing(store.engine) as connection:
        connection.execute(
            sa.update(tables.RunAttemptRow)
            .where(tables.RunAttemptRow.run_id == run_id)
            .values(**values)
        )


def test_a_run_on_another_machine_is_busy_while_it_has_heartbeats(
    store: ExperimentStore,
) -> None:
    """Its process number means nothing here, even if it equals this process' number."""
    run = store.runs.start(new_run())
    move_attempt(store, run.id, host="other-pod", pid=os.getpid())
    assert run_is_alive(store.runs.get(run.id))
    with pytest.raises(RunIsBusy, match="on other-pod, last heartbeat"):
        store.runs.resume(run.id, start_steps=0)
    assert [a.status for a in store.runs.get(run.id).attempts] == ["running"]
    silent = utc_now() - timedelta(seconds=SILENCE_SECONDS + 1)
    move_attempt(store, run.id, heartbeat_at=silent, started_at=silent)
    assert not run_is_alive(store.runs.get(run.id))
    resumed = store.runs.resume(run.id, start_steps=0)
    assert [a.status for a in resumed.attempts] == ["killed", "running"]


def test_a_reused_process_number_does_not_keep_a_run_busy(store: ExperimentStore) -> None:
    """The process that has the number now started after the attempt."""
    with subprocess.Popen(["sleep", "60"]) as stranger:
        try:
            run = store.runs.start(new_run())
            began = process_began(stranger.pid)
            assert began is not None
            assert abs((utc_now() - began).total_seconds()) < 30
            move_attempt(store, run.id, pid=stranger.pid, started_at=began - timedelta(days=1))
            with pytest.raises(RunIsBusy):  # a recent heartbeat: the clock may have been corrected
                store.runs.resume(run.id, start_steps=0)
            move_attempt(store, run.id, heartbeat_at=began - timedelta(hours=1))
            assert not run_is_alive(store.runs.get(run.id))
            resumed = store.runs.resume(run.id, start_steps=0)
            assert [a.status for a in resumed.attempts] == ["killed", "running"]
        finally:
            stranger.kill()


def test_a_run_with_a_living_process_stays_busy_without_heartbeats(store: ExperimentStore) -> None:
    """The database was unreachable, or an update takes an hour: its process still runs."""
    with subprocess.Popen(["sleep", "60"]) as trainer:
        try:
            run = store.runs.start(new_run())
            # It started now, like the attempt; both are silent because the clock was put forward.
            move_attempt(
                store, run.id, pid=trainer.pid, heartbeat_at=utc_now() - timedelta(hours=1)
            )
            with pytest.raises(RunIsBusy, match=f"process {trainer.pid} on this machine"):
                store.runs.resume(run.id, start_steps=0)
        finally:
            trainer.kill()


def test_unknown_runs_raise(store: ExperimentStore) -> None:
    for call in (
        lambda: store.runs.get("nothing"),
        lambda: store.runs.resume("nothing", start_steps=0),
        lambda: store.runs.set_mlflow_run("nothing", "x"),
    ):
        with pytest.raises(StoreError, match="'nothing'"):
            call()


@pytest.mark.parametrize("text", ["tab\tand\\N", "new\nline\r\\n", "ü✓ '\"", "\\."])
def test_any_text_and_number_is_read_as_stored(store: ExperimentStore, text: str) -> None:
    run = store.runs.start(new_run())
    row = episode_row(run.id, 0, end_reason=text, shaped_return=1e-300, seed=0, total_steps=2**62)
    store.runs.write([row])
    assert list(store.runs.episodes(run.id)) == [row]
    sample = HealthSampleEntry(
        run_id=run.id, update_index=1, attempt=1, total_steps=1, state="healthy",
        signals={text: [text, {"x": None}]},
    )  # fmt: skip
    store.runs.write([sample])
    assert store.runs.health_samples(run.id) == (sample,)


# -- what the database itself refuses -------------------------------------------------------


def _refused(store: ExperimentStore, statement: sa.Executable) -> None:
    with pytest.raises(StoreConstraintError), writing(store.engine) as connection:
        connection.execute(statement)


def test_the_database_refuses_invalid_rows(store: ExperimentStore) -> None:
    run = store.runs.start(new_run())
    with pytest.raises(StoreConstraintError):
        store.runs.start(new_run(id=run.id))
    with pytest.raises(StoreConstraintError):
        store.runs.start(new_run(parent_run_id="nobody"))
    with pytest.raises(StoreConstraintError):
        store.runs.write([episode_row("no such run", 0)])
    with pytest.raises(StoreConstraintError):
        store.runs.write([episode_row(run.id, -1)])
    with pytest.raises(StoreConstraintError, match="2\\*\\*64"):
        store.runs.write([episode_row(run.id, 1, seed=2**64)])
    with pytest.raises(StoreConstraintError, match="naive"):
        store.runs.write([episode_row(run.id, 1, ended_at=datetime(2026, 1, 1))])
    with pytest.raises(StoreConstraintError):
        store.runs.write([episode_row(run.id, 1, y_px=None)])
    _refused(store, sa.update(tables.RunRow).values(status="dreaming"))
    _refused(store, sa.update(tables.RunRow).values(status="finished"))  # without an end
    assert store.runs.count_episodes(run.id) == 0


def test_a_verdict_needs_evaluations_of_its_policies(store: ExperimentStore) -> None:
    registered(store, 1, A)
    good = verdict(store, (1, A), (None, B))
    row = store.evaluations.verdict(good)
    columns = {
        "id": "v", "model": MODEL, "challenger_digest": A, "champion_digest": B, "gate": "g",
        "decision": "promote", "detail": {}, "created_at": datetime.now(UTC),
        "challenger_evaluation_id": row.challenger_evaluation_id,
        "champion_evaluation_id": row.champion_evaluation_id,
    }  # fmt: skip
    for change in (
        {"challenger_evaluation_id": "none"},
        {"champion_evaluation_id": None},
        {"challenger_digest": "c" * 64},
        {"champion_evaluation_id": row.challenger_evaluation_id},
        {"decision": "maybe"},
        {"model": "unknown model"},
    ):
        _refused(store, sa.insert(tables.VerdictRow).values(**(columns | change)))
    with writing(store.engine) as connection:
        connection.execute(sa.insert(tables.VerdictRow).values(**columns))


@pytest.mark.parametrize("table", ["verdicts", "promotions", "alpha_entries"])
def test_append_only(store: ExperimentStore, table: str) -> None:
    registered(store, 1, A)
    verdict_id = verdict(store, (1, A), (None, B))
    store.ledger.grant_alpha(MODEL, 0.05)
    store.ledger.promote(MODEL, 1, verdict_id=verdict_id, promoted_by="test")
    target = tables.Base.metadata.tables[table]
    _refused(store, sa.update(target).values(model="mario-2-1"))
    _refused(store, sa.delete(target))
    if store.engine.dialect.name == "postgresql":
        _refused(store, sa.text(f"TRUNCATE {table} CASCADE"))
    else:
        _refused(store, sa.text(f"INSERT OR REPLACE INTO {table} SELECT * FROM {table}"))


# -- evaluations ----------------------------------------------------------------------------


def test_an_evaluation_is_resumed(store: ExperimentStore) -> None:
    first = store.evaluations.open(evaluation_key(A), planned_units=4, policy_label="v1")
    seeds = [2**62 + i for i in range(4)]
    records = [evaluation_record(A, seed) for seed in seeds]
    assert store.evaluations.add(first.id, records[:2]) == 2
    store.evaluations.finish(first.id, "interrupted")
    again = store.evaluations.open(evaluation_key(A), planned_units=8)
    assert (again.id, again.status, again.ended_at) == (first.id, "running", None)
    assert (again.planned_units, again.finished_units) == (8, 2)
    assert store.evaluations.add(first.id, records) == 2
    assert store.evaluations.add(first.id, records) == 0
    assert store.evaluations.records(first.id) == tuple(records)
    assert store.evaluations.open(evaluation_key(A, "x"), planned_units=1).id != first.id


def test_an_evaluation_accepts_only_its_own_units(store: ExperimentStore) -> None:
    evaluation = store.evaluations.open(evaluation_key(A), planned_units=4)
    record = evaluation_record(A, 7)
    store.evaluations.add(evaluation.id, [record])
    for stranger, words in (
        (evaluation_record(B, 8), "of policy"),
        (evaluation_record(A, 8, level="1-2"), "of level"),
        (evaluation_record(A, 7, trajectory_hash="e" * 64), "has another result"),
    ):
        with pytest.raises(StoreError, match=words):
            store.evaluations.add(evaluation.id, [stranger])
    assert store.evaluations.records(evaluation.id) == (record,)


def test_a_locked_sqlite_database_is_unavailable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mario.store.engine.SQLITE_BUSY_TIMEOUT_SECONDS", 0.1)
    url = f"sqlite:///{tmp_path / 'mario.db'}"
    with ExperimentStore.open(url) as store:
        run = store.runs.start(new_run())
        with (
            writing(store.engine),
            ExperimentStore.open(url, create=False) as other,
            pytest.raises(StoreUnavailableError, match="locked"),
        ):
            other.runs.write([episode_row(run.id, 0)])
