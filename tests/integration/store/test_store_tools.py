"""`mario store check`, `export` and `import-legacy`, on both engines."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import sqlalchemy as sa
from typer.testing import CliRunner

from mario.cli.main import app
from mario.errors import StoreError
from mario.store import tables
from mario.store.check import check_store
from mario.store.engine import writing
from mario.store.export import export_parquet, table_names
from mario.store.journal_writer import StoreWriter
from mario.store.legacy.importer import import_legacy
from mario.store.process_identity import SILENCE_SECONDS
from mario.store.records import AttemptEnd, HealthSampleEntry, Heartbeat, Run, utc_now
from mario.store.runs import Runs
from mario.store.store import ExperimentStore
from tests.support.postgres import PostgresServer
from tests.support.store_rows import MODEL, episode_row, new_run, registered, verdict

A, B = "a" * 64, "b" * 64


def _filled(store: ExperimentStore) -> dict[str, str]:
    """Store a run of every status; return ids by name."""
    ids = {}
    for name in ("finished", "collapsed", "interrupted", "killed", "resumed", "running"):
        run = store.runs.start(new_run(name=name))
        ids[name] = run.id
        store.runs.write([episode_row(run.id, i, env) for env in range(2) for i in range(3)])
    for name in ("finished", "collapsed", "interrupted"):
        end = AttemptEnd(run_id=ids[name], attempt=1, status=name, end_steps=9)  # type: ignore[arg-type]
        store.runs.write([end])
    with writing(store.engine) as connection:
        connection.execute(
            sa.update(tables.RunAttemptRow)
            .where(tables.RunAttemptRow.run_id.in_([ids["killed"], ids["resumed"]]))
            .values(pid=2**22 + 1)
        )
    store.runs.resume(ids["resumed"], start_steps=3)
    store.runs.write([episode_row(ids["resumed"], 3, attempt=2)])
    store.runs.write([AttemptEnd(run_id=ids["resumed"], attempt=2, status="finished", end_steps=9)])
    registered(store, 1, A)
    store.ledger.grant_alpha(MODEL, 0.05)
    store.ledger.spend_alpha(MODEL, A, 0.02)
    store.ledger.promote(MODEL, 1, verdict_id=verdict(store, (1, A), (None, B)), promoted_by="test")
    return ids


def test_check_reports_the_state_of_every_run(store: ExperimentStore, tmp_path: Path) -> None:
    ids = _filled(store)
    report = check_store(store, runs_dir=tmp_path)
    assert report.findings == ()
    assert report.sound
    read = {reading.name: reading for reading in report.runs}
    assert {name: read[name].status for name in ids} == {
        "finished": "finished",
        "collapsed": "collapsed",
        "interrupted": "interrupted",
        "killed": "killed",
        "resumed": "finished",
        "running": "running",
    }
    assert "resumed 1x after killed" in read["resumed"].text
    assert (read["resumed"].attempts, read["resumed"].episodes) == (2, 7)
    assert store.runs.get(ids["killed"]).status == "running"  # only read, not changed
    check_store(store, mark_killed=True)
    assert store.runs.get(ids["killed"]).status == "killed"
    assert store.runs.get(ids["running"]).status == "running"
    assert "every invariant holds" in report.text()


def test_a_run_that_is_resumed_during_the_check_is_not_marked_killed(
    store: ExperimentStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its process is gone when the check reads it; a launcher resumes it before the mark."""
    run = store.runs.start(new_run())
    with writing(store.engine) as connection:
        connection.execute(sa.update(tables.RunAttemptRow).values(pid=2**22 + 1))
    read = Runs.list

    def read_and_resume(self: Runs, **more: Any) -> tuple[Run, ...]:
        runs = read(self, **more)
        self.resume(run.id, start_steps=64)
        return runs

    monkeypatch.setattr(Runs, "list", read_and_resume)
    (reading,) = check_store(store, mark_killed=True).runs
    after = store.runs.get(run.id)
    assert [attempt.status for attempt in after.attempts] == ["killed", "running"]
    assert (after.status, after.status_reason) == ("running", None)
    assert (reading.status, reading.attempts) == ("running", 2)


def test_a_run_with_a_heartbeat_during_the_check_is_not_marked_killed(
    store: ExperimentStore,
) -> None:
    """On another machine only the heartbeat shows that the process is alive."""
    run = store.runs.start(new_run())
    long_ago = utc_now() - timedelta(seconds=2 * SILENCE_SECONDS)
    with writing(store.engine) as connection:
        connection.execute(
            sa.update(tables.RunAttemptRow).values(host="another", heartbeat_at=long_ago)
        )
    seen = store.runs.get(run.id).attempts[-1]
    late = utc_now() - timedelta(seconds=1.5 * SILENCE_SECONDS)  # out of its journal
    store.runs.write([Heartbeat(run_id=run.id, attempt=1, total_steps=1, at=late)])
    assert not store.runs.mark_killed(run.id, "its process is gone", seen=seen)
    assert store.runs.get(run.id).status == "running"
    seen = store.runs.get(run.id).attempts[-1]
    assert store.runs.mark_killed(run.id, "its process is gone", seen=seen)
    run = store.runs.get(run.id)
    assert (run.status, run.ended_at, run.attempts[-1].status) == ("killed", late, "killed")


def test_check_finds_violated_invariants(store: ExperimentStore, tmp_path: Path) -> None:
    _filled(store)
    run = store.runs.start(new_run(name="gap"))
    store.runs.write([episode_row(run.id, i) for i in (0, 1, 3)])
    store.versions.begin(MODEL, "half", digest=B)
    with writing(store.engine) as connection:
        connection.execute(sa.update(tables.EvaluationEpisodeRow).values(episode_score=0.99))
        connection.execute(
            sa.update(tables.RegisteredVersionRow)
            .where(tables.RegisteredVersionRow.version == 1)
            .values(state="broken")
        )
    for run_id in (run.id, "run-x"):
        writer = StoreWriter(f"sqlite:///{tmp_path}/nowhere.db", tmp_path / run_id)
        writer.put([episode_row(run_id, 0)])
        assert writer.close(0.2).pending
    report = check_store(store, runs_dir=tmp_path)
    assert not report.sound
    text = report.text()
    for words in (
        "environment 0: 3 episodes up to number 3",
        "episode_score=0.99",
        "names v1, which is broken",
        "is pending",
        f"{run.id}/journal holds records that are not delivered yet: the run's next start",
        "run-x/journal holds records that are not delivered yet, of run run-x, which is not in",
    ):
        assert words in text
    assert "invariants are broken" in text


def test_export_is_complete_and_exact(store: ExperimentStore, tmp_path: Path) -> None:
    ids = _filled(store)
    store.runs.write(
        [HealthSampleEntry(run_id=ids["finished"], update_index=0, attempt=1, total_steps=1,
                         state="healthy", signals={"kl": float("nan")})]
    )  # fmt: skip
    counts = export_parquet(store, tmp_path / "out")
    assert set(counts) == set(table_names())
    assert counts["episodes"] == 37
    for name, count in counts.items():
        assert pq.read_table(tmp_path / "out" / f"{name}.parquet").num_rows == count
    episodes = pq.read_table(tmp_path / "out" / "episodes.parquet").to_pandas()
    first = episodes[(episodes.run_id == ids["finished"]) & (episodes.env_index == 0)].iloc[0]
    assert first.seed == np.uint64(2**64 - 1)
    expected = next(store.runs.episodes(ids["finished"]))
    assert first.ended_at.to_pydatetime() == expected.ended_at
    assert first.shaped_return == expected.shaped_return
    promotions = pq.read_table(tmp_path / "out" / "promotions.parquet").to_pylist()
    assert promotions[0]["digest"] == A
    samples = pq.read_table(tmp_path / "out" / "health_samples.parquet").to_pylist()
    assert json.loads(samples[0]["signals"]) == {"kl": "nan"}
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(
        f"{name}.parquet" for name in counts
    )
    assert export_parquet(store, tmp_path / "out", tables=["runs"]) == {"runs": 6}
    with pytest.raises(StoreError, match="unknown tables"):
        export_parquet(store, tmp_path / "out", tables=["rums"])
    with pytest.raises(StoreError, match="cannot export"):
        export_parquet(store, Path("/proc/nowhere"))


# -- import-legacy --------------------------------------------------------------------------

_LEGACY = """
CREATE TABLE experiments (id SERIAL PRIMARY KEY, name VARCHAR(255), algorithm VARCHAR(50),
    description TEXT, config JSONB, status VARCHAR(20), created_at TIMESTAMP,
    completed_at TIMESTAMP);
CREATE TABLE hyperparameters (id SERIAL PRIMARY KEY, experiment_id INTEGER, param_name VARCHAR(100),
    param_value TEXT);
CREATE TABLE episodes (id SERIAL PRIMARY KEY, experiment_id INTEGER, episode_number INTEGER,
    total_reward DOUBLE PRECISION, length INTEGER, max_x_pos INTEGER, score BIGINT,
    flag_get BOOLEAN, world INTEGER, stage INTEGER, epsilon REAL, created_at TIMESTAMP);
CREATE TABLE training_metrics (id SERIAL PRIMARY KEY, experiment_id INTEGER, timestep BIGINT,
    metric_name VARCHAR(100), metric_value DOUBLE PRECISION, created_at TIMESTAMP);
INSERT INTO experiments VALUES
    (1, 'ppo_v3', 'PPO', 'ten hours', '{"lr": 3e-5, "env": {"skip": 1}}', 'completed',
     '2025-11-01 10:00:00', '2025-11-01 20:00:00'),
    (2, 'dqn', 'DQN', NULL, NULL, 'running', '2025-10-01 10:00:00', NULL);
INSERT INTO hyperparameters (experiment_id, param_name, param_value) VALUES
    (1, 'learning_rate', '3e-5'), (1, 'gamma', '0.99'), (2, 'buffer', '100000');
INSERT INTO episodes (experiment_id, episode_number, total_reward, length, max_x_pos, score,
    flag_get, world, stage, epsilon, created_at)
    SELECT e, n, n * 1.5, 100 + n, 1000 + n, 5000000000, n % 10 = 0, 1, 1, 0.1,
    TIMESTAMP '2025-11-01 10:00:00' + n * INTERVAL '1 minute'
    FROM generate_series(1, 2) AS e, generate_series(1, 60) AS n;
INSERT INTO episodes (experiment_id, episode_number, total_reward) VALUES (7, 1, 'NaN'), (7, 1, 3);
INSERT INTO training_metrics (experiment_id, timestep, metric_name, metric_value, created_at)
    SELECT 1, t * 1000, m, t / 7.0, '2025-11-01 10:00:00'
    FROM generate_series(1, 5) AS t, unnest(ARRAY['loss', 'entropy']) AS m;
"""


def test_the_older_project_is_imported_completely(
    store: ExperimentStore, postgres_server: PostgresServer
) -> None:
    name = postgres_server.create_database()
    postgres_server.execute(_LEGACY, name)
    source = postgres_server.url(name)
    report = import_legacy(source, store, label="old")
    assert (report.runs, report.orphans) == (3, 1)
    assert (report.hyperparameters, report.episodes, report.metrics) == (3, 122, 10)
    assert report.missing_tables == ()
    first = store.runs.get("legacy-old-1")
    assert (first.name, first.algorithm, first.status) == ("ppo_v3", "ppo", "finished")
    assert first.started_at == datetime(2025, 11, 1, 10, tzinfo=UTC)
    assert first.ended_at == datetime(2025, 11, 1, 20, tzinfo=UTC)
    assert first.imported
    assert first.extra is not None
    assert first.extra["description"] == "ten hours"
    assert store.runs.hyperparameters("legacy-old-1") == {
        "lr": "3e-05", "env.skip": "1", "learning_rate": "3e-5", "gamma": "0.99",
    }  # fmt: skip
    assert store.runs.get("legacy-old-2").status == "interrupted"
    assert store.runs.get("legacy-old-7").name == "experiment 7"
    assert [store.runs.count_episodes(f"legacy-old-{n}") for n in (1, 2, 7)] == [60, 60, 2]
    with store.engine.connect() as connection:
        rows = connection.execute(
            sa.select(tables.EpisodeRow)
            .where(tables.EpisodeRow.run_id == "legacy-old-1")
            .order_by(tables.EpisodeRow.episode_index)
        ).all()
    row = rows[9]
    assert (row.episode_index, row.shaped_return, row.length_steps) == (9, 15.0, 110)
    assert (row.furthest_x_px, row.level, row.flag, row.end_reason) == (1010, "1-1", True, "flag")
    assert row.score is None  # five thousand million fit no score of this game, but are not lost
    assert (row.extra["score"], row.extra["epsilon"]) == (5_000_000_000, pytest.approx(0.1))
    samples = store.runs.health_samples("legacy-old-1")
    assert len(samples) == 5
    assert samples[0].signals == {"loss": 1 / 7, "entropy": 1 / 7}
    # A second import adds nothing, and the source is unchanged.
    assert import_legacy(source, store, label="old") == report
    assert store.runs.count_episodes("legacy-old-1") == 60
    assert check_store(store).sound
    with pytest.raises(StoreError, match="imported"):
        store.runs.resume("legacy-old-1", start_steps=0)


def test_other_layouts_of_the_older_tables(store: ExperimentStore, tmp_path: Path) -> None:
    """Wide hyperparameters and metrics, text configs, other names, missing tables."""
    path = tmp_path / "old.db"
    engine = sa.create_engine(f"sqlite:///{path}")
    with engine.begin() as connection:
        for statement in (
            "CREATE TABLE experiments (experiment_id TEXT, experiment_name TEXT, algo TEXT, "
            "config TEXT, start_time TEXT)",
            "CREATE TABLE hyperparameters (experiment_id TEXT, lr REAL, gamma REAL)",
            "CREATE TABLE episodes (experiment_id TEXT, episode INT, env_id INT, reward REAL)",
            "CREATE TABLE training_metrics (experiment_id TEXT, step INT, loss REAL, kl REAL)",
            "INSERT INTO experiments VALUES ('x', 'speed', 'ppo', 'not json', '2025-01-01')",
            "INSERT INTO hyperparameters VALUES ('x', 0.1, 0.9)",
            "INSERT INTO episodes VALUES ('x', 1, 0, 1.0), ('x', 1, 1, 2.0), ('x', 2, 1, 3.0)",
            "INSERT INTO training_metrics VALUES ('x', 5, 0.5, 0.1), ('x', 5, 0.6, 0.2)",
        ):
            connection.exec_driver_sql(statement)
    engine.dispose()
    report = import_legacy(f"sqlite:///{path}", store)
    assert (report.runs, report.episodes, report.metrics) == (1, 3, 2)
    run = store.runs.get("legacy-old-x")
    assert run.config == {"text": "not json"}
    assert store.runs.hyperparameters(run.id) == {"text": "not json", "lr": "0.1", "gamma": "0.9"}
    assert [s.signals["loss"] for s in store.runs.health_samples(run.id)] == [0.5, 0.6]
    with store.engine.connect() as connection:
        keys = connection.execute(
            sa.select(tables.EpisodeRow.env_index, tables.EpisodeRow.episode_index).order_by(
                tables.EpisodeRow.env_index, tables.EpisodeRow.episode_index
            )
        ).all()
    assert [tuple(key) for key in keys] == [(0, 0), (1, 0), (1, 1)]


_LONG = "ppo_super_mario_bros_world_1_stage_1_frame_skip_4_speedrun_reward_"
_CHANGING = (
    "CREATE TABLE experiments (id TEXT, name TEXT, status TEXT, created_at TEXT)",
    "CREATE TABLE episodes (id INTEGER PRIMARY KEY, experiment_id TEXT, episode_number INT, "
    "total_reward REAL, flag_get TEXT)",
    "CREATE TABLE training_metrics (id INTEGER PRIMARY KEY, experiment_id TEXT, step INT, "
    "metric_name TEXT, metric_value REAL, phase TEXT)",
    f"INSERT INTO experiments VALUES ('{_LONG}v1', 'a', 'completed', '2024-01-01'), "
    f"('{_LONG}v2', 'b', 'completed', '2024-01-02'), ('s', 'c', 'running', '2024-01-02')",
    "INSERT INTO episodes (experiment_id, episode_number, total_reward, flag_get) VALUES "
    f"('{_LONG}v1', 1, 10, 'False'), ('{_LONG}v2', 1, 99, 'True'), ('s', 1, 1, 'False'), "
    "('s', 2, 2, 'f'), ('s', 3, 3, '1')",
    "INSERT INTO training_metrics (experiment_id, step, metric_name, metric_value, phase) VALUES "
    "('s', 10, 'loss', 1, 'train'), ('s', 10, 'loss', 2, 'eval'), ('s', 10, 'kl', NULL, NULL)",
)


def _execute(path: Path, *statements: str) -> str:
    """Change an SQLite database; return its URL."""
    engine = sa.create_engine(f"sqlite:///{path}")
    with engine.begin() as connection:
        for statement in statements:
            connection.exec_driver_sql(statement)
    engine.dispose()
    return f"sqlite:///{path}"


def _returns(store: ExperimentStore, name: str) -> list[float]:
    (run_id,) = (run.id for run in store.runs.list() if run.name == name)
    episode = tables.EpisodeRow
    statement = sa.select(episode.shaped_return).where(episode.run_id == run_id)
    with store.engine.connect() as connection:
        return list(connection.scalars(statement.order_by(episode.episode_index)))


def test_a_source_that_grows_is_imported_completely(store: ExperimentStore, tmp_path: Path) -> None:
    """Long names, booleans as text, repeated episodes and metrics; then again with new rows."""
    source = _execute(tmp_path / "old.db", *_CHANGING)
    report = import_legacy(source, store)
    assert (report.runs, report.episodes, report.metrics) == (3, 5, 3)
    assert (_returns(store, "a"), _returns(store, "b")) == ([10], [99])
    assert all(len(run.id) <= 64 for run in store.runs.list())
    with store.engine.connect() as connection:
        flags = connection.execute(
            sa.select(tables.EpisodeRow.flag, tables.EpisodeRow.end_reason).order_by(
                tables.EpisodeRow.shaped_return
            )
        ).all()
    truth = [False, False, True, False, True]
    assert [tuple(row) for row in flags] == [(t, "flag" if t else "unknown") for t in truth]
    loss = {"loss": 1.0, "loss.phase": "train", "loss#2": 2.0, "loss#2.phase": "eval", "kl": None}
    (sample,) = store.runs.health_samples("legacy-old-s")
    assert sample.signals == loss
    assert store.runs.get("legacy-old-s").status == "interrupted"
    _execute(
        tmp_path / "old.db",
        "INSERT INTO episodes (experiment_id, episode_number, total_reward) VALUES ('s', 2, 22)",
        "UPDATE experiments SET status = 'completed' WHERE id = 's'",
        "INSERT INTO training_metrics (experiment_id, step, metric_name, metric_value, phase) "
        "VALUES ('s', 10, 'loss', 3, 'eval'), ('s', 20, 'loss', 4, 'eval')",
    )
    for _ in range(2):
        report = import_legacy(source, store)
        assert (report.runs, report.episodes, report.metrics) == (3, 6, 5)
        assert _returns(store, "c") == [1, 2, 3, 22]
        first, second = store.runs.health_samples("legacy-old-s")
        assert first.signals == loss | {"loss#3": 3.0, "loss#3.phase": "eval"}
        assert (second.total_steps, second.signals) == (20, {"loss": 4.0, "loss.phase": "eval"})
        assert store.runs.get("legacy-old-s").status == "finished"
    assert check_store(store).sound


def test_rows_without_a_key_are_identified_by_their_content(
    store: ExperimentStore, tmp_path: Path
) -> None:
    source = _execute(
        tmp_path / "old.db",
        "CREATE TABLE episodes (experiment_id TEXT, episode INT, reward REAL)",
        "CREATE TABLE training_metrics (experiment_id TEXT, step INT, loss REAL)",
        "CREATE TABLE hyperparameters (experiment_id TEXT, name TEXT, value TEXT, unit TEXT)",
        "INSERT INTO episodes VALUES ('x', 1, 1.5), ('x', 1, 1.5), ('x', 3, 3.0)",
        "INSERT INTO training_metrics VALUES ('x', 5, 0.5), ('x', 5, 0.5), ('x', 6, 9e999)",
        "INSERT INTO hyperparameters VALUES ('x', 'lr', '1', 'm'), ('x', 'lr', '2', 'm')",
    )
    import_legacy(source, store)
    assert store.runs.hyperparameters("legacy-old-x") == {
        "lr": "1", "lr#2": "2", "lr.unit": "m"
    }  # fmt: skip
    _execute(
        tmp_path / "old.db",
        "INSERT INTO episodes VALUES ('x', 1, 1.5), ('x', 2, 2.0)",
        "INSERT INTO training_metrics VALUES ('x', 5, 0.5), ('x', 5, 0.25)",
    )
    for _ in range(2):
        assert import_legacy(source, store).episodes == 5
        assert sorted(_returns(store, "experiment x")) == [1.5, 1.5, 1.5, 2.0, 3.0]
        losses = [sample.signals["loss"] for sample in store.runs.health_samples("legacy-old-x")]
        assert losses == [0.5, 0.5, "inf", 0.5, 0.25]


def test_two_databases_of_one_name_need_a_label(store: ExperimentStore, tmp_path: Path) -> None:
    urls = []
    for folder, year in (("one", 2023), ("two", 2024)):
        (tmp_path / folder).mkdir()
        urls.append(
            _execute(
                tmp_path / folder / "old.db",
                "CREATE TABLE experiments (id INTEGER PRIMARY KEY, name TEXT, created_at TEXT)",
                f"INSERT INTO experiments VALUES (1, '{folder}', '{year}-01-01')",
            )
        )
    import_legacy(urls[0], store)
    with pytest.raises(StoreError, match=r"another experiment has already.*--label"):
        import_legacy(urls[1], store)
    result = CliRunner().invoke(
        app, ["store", "import-legacy", urls[1], "--label", "second"],
        env={"MARIO_DATABASE_URL": store.engine.url.render_as_string(hide_password=False)},
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert {run.id: run.name for run in store.runs.list()} == {
        "legacy-old-1": "one", "legacy-second-1": "two"
    }  # fmt: skip


def test_invalid_sources_are_refused(store: ExperimentStore, tmp_path: Path) -> None:
    sa.create_engine(f"sqlite:///{tmp_path}/empty.db").connect().close()
    with pytest.raises(StoreError, match="neither a table experiments nor episodes"):
        import_legacy(f"sqlite:///{tmp_path}/empty.db", store)
    with pytest.raises(StoreError, match="there is no database"):
        import_legacy(f"sqlite:///{tmp_path}/nowhere.db", store)
    with pytest.raises(StoreError, match="cannot reach"):
        import_legacy("postgresql+psycopg2://u:pw@127.0.0.1:1/old", store)
