"""What fanning an evaluation out costs: units on Dask workers beside the same units in one process.

    python benchmarks/evaluation_distributed.py [--quick]

400 units of level 1-1 with a policy of fixed odds (tests/support), played by one thread in this
process, as a worker plays them, and on clusters of 1, 2 and 4 workers on this machine. The overhead
of a unit is what one worker takes longer than one thread, by unit: packing, scheduling, sending
records back, the unequal ends of tasks. Starting a cluster is shown apart, since a scheduler that
runs costs it once. Every configuration's records are compared with the first one's.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from _report import ROOT, Row, cores, finish, print_table, spread, target

from mario.evaluation.protocol import play_units
from mario.evaluation.records import EpisodeRecord
from mario.jobs.dask_engine import DaskEngine
from mario.jobs.evaluate import units_of
from mario.jobs.policies import LoadedPolicy, policy_from_artefact

ENVIRONMENTS = 8
WORKERS = (1, 2, 4)
Units = Sequence[tuple[str, int]]


def by_unit(records: Sequence[EpisodeRecord]) -> list[EpisodeRecord]:
    """Sort records, since engines end them in different orders."""
    return sorted(records, key=lambda record: record.unit)


def timed(play: Callable[[], Sequence[EpisodeRecord]]) -> tuple[float, list[EpisodeRecord]]:
    """Play once; seconds and records."""
    started = time.perf_counter()
    records = play()
    return time.perf_counter() - started, by_unit(records)


def one_thread(loaded: LoadedPolicy, units: Units) -> list[EpisodeRecord]:
    """Play in this process as a worker does: one thread."""
    return list(
        play_units(
            loaded.policy, units, policy_digest=loaded.digest, environments=ENVIRONMENTS, threads=1
        )
    )


def nothing(number: int) -> int:
    """Do nothing, as a task."""
    return number


def empty_tasks(engine: DaskEngine, count: int) -> float:
    """Milliseconds a task that does nothing takes from being handed in to its answer."""
    client = engine._connected()
    started = time.perf_counter()
    client.gather(client.map(nothing, range(count), pure=False))
    return 1000 * (time.perf_counter() - started) / count


def main() -> int:
    """Measure, print, write; the exit status says whether the targets are met."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="few units, one repeat, no file")
    quick = parser.parse_args().quick
    sys.path.insert(0, str(ROOT))
    from tests.support.policies import GOOD, write_odds_policy

    count, repeats = (32, 1) if quick else (400, 3)
    units = units_of(("1-1",), "screening", "", count)
    with tempfile.TemporaryDirectory() as folder:
        write_odds_policy(Path(folder) / "policy", GOOD)
        loaded = policy_from_artefact(Path(folder) / "policy")
        rows, equal = measure(loaded, units, repeats)
    print_table(
        f"{count} units, {repeats} repeats, {cores()} cores",
        rows,
        ["engine", "workers", "seconds", "units_per_second", "overhead_ms_a_unit",
         "overhead_share", "empty_task_ms", "start_seconds"],
    )  # fmt: skip
    one_worker = next(row for row in rows if row["workers"] == 1)
    return finish(
        "evaluation_distributed",
        rows,
        [
            target("configurations with the very same records", len(rows), equal),
            target("overhead of one Dask worker, share of a unit's own time", 0.15,
                   one_worker["overhead_share"], at_most=True),
        ],
        quick=quick,
    )  # fmt: skip


def measure(loaded: LoadedPolicy, units: Units, repeats: int) -> tuple[list[Row], int]:
    """Play by every configuration; rows, and how many gave the first one's records."""
    one_thread(loaded, units[:8])  # caches and pages
    seconds, expected = [], []
    for _ in range(repeats):
        taken, expected = timed(lambda: one_thread(loaded, units))
        seconds.append(taken)
    base = spread(seconds)["median"]
    rows: list[Row] = [
        {"engine": "one thread, no Dask", "workers": None, "seconds": spread(seconds),
         "units_per_second": round(len(units) / base, 2)}
    ]  # fmt: skip
    equal = 1
    for workers in WORKERS:
        with DaskEngine(workers=workers) as engine:
            started = time.perf_counter()
            engine.start()
            start_seconds = time.perf_counter() - started
            play = lambda engine=engine: list(  # noqa: E731
                engine.play(loaded, units, environments=ENVIRONMENTS, console="native")
            )
            list(engine.play(loaded, units[:8], environments=1, console="native"))  # imports
            results = [timed(play) for _ in range(repeats)]
            empty = empty_tasks(engine, 200)
        median = spread([taken for taken, _ in results])["median"]
        # Workers beyond the cores share them: they cannot be faster than the cores are.
        busy = min(workers, cores())
        overhead = (median * busy - base) / len(units)
        rows.append(
            {"engine": "dask", "workers": workers,
             "seconds": spread([taken for taken, _ in results]),
             "units_per_second": round(len(units) / median, 2),
             "overhead_ms_a_unit": round(1000 * overhead, 2),
             "overhead_share": round(overhead / (base / len(units)), 4),
             "empty_task_ms": round(empty, 3), "start_seconds": round(start_seconds, 2)}
        )  # fmt: skip
        equal += all(records == expected for _, records in results)
    return rows, equal


if __name__ == "__main__":
    sys.exit(main())
