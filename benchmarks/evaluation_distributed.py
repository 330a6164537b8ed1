"""What fanning an evaluation out costs: units on Dask workers beside the same units in one process.

    python benchmarks/evaluation_distributed.py [--quick]

400 units of level 1-1 with a policy of fixed odds (tests/support), played by one thread in this
process, as a worker plays them, and on clusters of 1, 2 and 4 workers on this machine, in turn, so
that a busy moment meets them all. Wall-clock on a machine busy with other work says little, so the
overhead of a unit is processor time: that of the workers, the scheduler and the launching process,
less that of the one thread. It is shown and has no goal: what matters is whether a cluster is worth
it for units of a length, and that is for the reader. Starting a cluster is shown apart, since a
scheduler that runs costs it once. The goal is that every repeat of every configuration gives the
very same records.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

from _report import ROOT, Row, cores, finish, print_table, spread, target

from mario.evaluation.protocol import play_units
from mario.evaluation.records import EpisodeRecord
from mario.evaluation.seeds import units_of
from mario.jobs.engines.dask import DaskEngine
from mario.jobs.policies import LoadedPolicy, policy_from_artefact

ENVIRONMENTS = 8
WORKERS = (1, 2, 4)
Units = Sequence[tuple[str, int]]


class Series:
    """Repeats of one configuration."""

    def __init__(self, play: Callable[[], list[EpisodeRecord]], engine: DaskEngine | None) -> None:
        self.play, self.engine = play, engine
        self.wall: list[float] = []
        self.processor: list[float] = []
        self.records: list[list[EpisodeRecord]] = []

    def used(self) -> float:
        """Seconds of processor time so far, of this process and of the workers."""
        workers = self.engine._connected().run(time.process_time) if self.engine else {}
        return time.process_time() + sum(workers.values())

    def repeat(self) -> None:
        """Play once."""
        used, started = self.used(), time.perf_counter()
        records = self.play()
        self.wall.append(time.perf_counter() - started)
        self.processor.append(self.used() - used)
        # Engines end units in different orders.
        self.records.append(sorted(records, key=lambda record: record.unit))


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
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="few units, one repeat, no file")
    quick = parser.parse_args().quick
    sys.path.insert(0, str(ROOT))
    from tests.support.policies import GOOD, write_odds_policy

    count, repeats = (64, 1) if quick else (400, 3)
    units = units_of(("1-1",), "screening", "", count)
    with tempfile.TemporaryDirectory() as folder:
        write_odds_policy(Path(folder) / "policy", GOOD)
        rows, equal = measure(policy_from_artefact(Path(folder) / "policy"), units, repeats)
    print_table(
        f"{count} units, {repeats} repeats, {cores()} cores",
        rows,
        ["engine", "workers", "seconds", "processor_seconds", "overhead_ms_a_unit",
         "overhead_share", "empty_task_ms", "start_seconds"],
    )  # fmt: skip
    return finish(
        "evaluation_distributed",
        rows,
        [target("configurations with the very same records", len(rows), equal)],
        quick=quick,
    )


def measure(loaded: LoadedPolicy, units: Units, repeats: int) -> tuple[list[Row], int]:
    """Play by every configuration; rows, and how many gave the first one's records."""

    def one_thread() -> list[EpisodeRecord]:
        played = play_units(
            loaded.policy, units, policy_digest=loaded.digest, environments=ENVIRONMENTS, threads=1
        )
        return list(played)

    def on(engine: DaskEngine) -> Callable[[], list[EpisodeRecord]]:
        return lambda: list(engine.play(loaded, units, environments=ENVIRONMENTS, console="native"))

    with ExitStack() as stack:
        base = Series(one_thread, None)
        series, starts = [], []
        for workers in WORKERS:
            engine = stack.enter_context(DaskEngine(workers=workers))
            started = time.perf_counter()
            engine.start()
            starts.append(round(time.perf_counter() - started, 2))
            # Every worker imports and opens what it needs before anything is timed.
            list(engine.play(loaded, units[: 8 * workers], environments=1, console="native"))
            series.append(Series(on(engine), engine))
        list(play_units(loaded.policy, units[:8], policy_digest=loaded.digest))
        for _ in range(repeats):
            for each in (base, *series):
                each.repeat()
        empty = [round(empty_tasks(each.engine, 200), 3) for each in series if each.engine]
    own = spread(base.processor)["median"] / len(units)
    rows: list[Row] = [
        {"engine": "one thread, no Dask", "workers": 0, "seconds": spread(base.wall),
         "processor_seconds": spread(base.processor)}
    ]  # fmt: skip
    equal = int(all(records == base.records[0] for records in base.records))
    for index, each in enumerate(series):
        overhead = spread(each.processor)["median"] / len(units) - own
        rows.append(
            {"engine": "dask", "workers": WORKERS[index], "seconds": spread(each.wall),
             "processor_seconds": spread(each.processor),
             "overhead_ms_a_unit": round(1000 * overhead, 2),
             "overhead_share": round(overhead / own, 4),
             "empty_task_ms": empty[index], "start_seconds": starts[index]}
        )  # fmt: skip
        equal += all(records == base.records[0] for records in each.records)
    return rows, equal


if __name__ == "__main__":
    sys.exit(main())
