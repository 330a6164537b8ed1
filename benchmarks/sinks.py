"""What recording everything costs training: all sinks on against all sinks off, in one run.

    python benchmarks/sinks.py [--quick]

One real training run (the recipe of `make demo`) with the store on a real PostgreSQL, a real MLflow
server, Prometheus, TensorBoard and Weights & Biases (offline). Segments of a few updates with the
sinks on and off take turns; at the end of an "on" segment the journals are synced, as before a
checkpoint, and everything that is still on its way to a server is waited for, so that no "off"
segment pays for it. Three measures. Two are medians of paired ratios: steps a second, and the
processor time of this process, PostgreSQL, MLflow and the recorders' own processes together, those
that ended meanwhile included. Pairs differ by far more than what is measured, so each median has
its 95% bootstrap interval (`median_95`) beside it. The third is counted, not compared: the
processor time of the sinks' calls in the training's thread, of all other threads that Python has
started, and of all other processes, idle or not, as a share of the rest. It hardly scatters, and
sees all but what recording slows without running: caches and cores that are shared.
The metrics page is read after each update of an "on" segment, more often than a Prometheus would.
At the end it is looked up in each recorder's own files or server that it did record.
Database and MLflow run on the same cores as training; where they have machines of their own, the
cost is smaller.
Run it alone: on a machine that others use too, the paired measures show how torch's threads wait
for each other.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import psutil

from benchmarks._report import Row, finish, median_interval, print_table, spread, target
from mario.config.experiment import load_config
from mario.jobs.context import JobContext, JobSettings
from mario.jobs.sinks import open_sinks
from mario.store import migrate
from mario.store.records import NewRun
from mario.tracking.mlflow_client import tracking_client
from mario.tracking.prometheus import PrometheusSink
from mario.training.collapse_detector import Health, HealthSample
from mario.training.episodes import TrainingEpisode
from mario.training.sinks import Progress, RunEnd, RunStart, SinkSet, TrainingSink
from mario.training.trainer import train
from tests.support.mlflow_server import MlflowServer
from tests.support.postgres import PostgresServer

ROOT = Path(__file__).resolve().parents[1]
GOAL_SHARE = 0.03
WARM_UPDATES = 3


@dataclass(frozen=True)
class Moment:
    """What was spent so far: s of the clock, of processors, of those that record; and steps."""

    at: float
    processor_seconds: float
    recorders_seconds: float
    steps: int


@dataclass(frozen=True)
class Turn:
    """What a turn came to."""

    on: bool
    steps_per_second: float
    processor_microseconds_per_step: float
    processor_seconds: float
    recorders_seconds: float


class Turns(TrainingSink):
    """Hands everything on while its turn is on, and measures each turn."""

    def __init__(
        self, sinks: Sequence[TrainingSink], updates: int, pairs: int, roots: Sequence[int],
        stop: threading.Event,
    ) -> None:  # fmt: skip
        self.sinks = SinkSet(sinks)
        self._writers = [sink._writer for sink in sinks if hasattr(sink, "_writer")]
        self._pages = [sink for sink in sinks if isinstance(sink, PrometheusSink)]
        self._updates, self._pairs, self._stop = updates, pairs, stop
        self._processes = [psutil.Process(pid) for pid in roots]
        self._left, self.on = WARM_UPDATES, True
        # Off, on, on, off, …: what drifts over the run hits both alike.
        orders = ((False, True), (True, False))
        self._order = [on for pair in range(pairs) for on in orders[pair % 2]]
        self.episodes, self.scrapes = 0, 0
        self.turns: list[Turn] = []
        self._begun: Moment | None = None
        self._calls_seconds = 0.0

    def on_start(self, start: RunStart) -> None:
        """Hand it on."""
        self.sinks.on_start(start)

    def on_episodes(self, episodes: Sequence[TrainingEpisode]) -> None:
        """Hand it on while it is on."""
        if self.on:
            with self._counted():
                self.sinks.on_episodes(episodes)
            self.episodes += len(episodes)

    def on_health(self, sample: HealthSample, health: Health) -> None:
        """Hand it on while it is on."""
        if self.on:
            with self._counted():
                self.sinks.on_health(sample, health)

    def on_progress(self, progress: Progress) -> None:
        """Hand it on while it is on, and end the turn when it is over."""
        if self.on:
            with self._counted():
                self.sinks.on_progress(progress)
            self._scrape()
        self._left -= 1
        if self._left > 0:
            return
        if self.on:
            with self._counted():
                assert self.sinks.flush(), "the journals cannot be synced"  # as before a checkpoint
                self._drain()
        now = self._now(progress.total_steps)
        if self._begun is not None:
            steps = now.steps - self._begun.steps
            spent = now.processor_seconds - self._begun.processor_seconds
            self.turns.append(
                Turn(
                    self.on,
                    steps / (now.at - self._begun.at),
                    spent / steps * 1e6,
                    spent,
                    now.recorders_seconds - self._begun.recorders_seconds,
                )
            )
        if len(self.turns) == len(self._order):
            self._stop.set()
            return
        self.on, self._left = self._order[len(self.turns)], self._updates
        self._begun = self._now(progress.total_steps)

    def on_end(self, end: RunEnd) -> None:
        """Hand it on."""
        self.sinks.on_end(end)

    def _scrape(self) -> None:
        for sink in self._pages:
            assert sink._page is not None, "the metrics page did not open"
            with urllib.request.urlopen(sink._page.url, timeout=5) as answer:
                assert b"mario_training_steps_total" in answer.read()
            self.scrapes += 1

    def _drain(self) -> None:
        for writer in self._writers:
            if hasattr(writer, "report"):
                assert writer.flush(60), writer.report()
            else:
                writer.flush()

    @contextmanager
    def _counted(self) -> Iterator[None]:
        """Count the training thread's processor time in here as the recorders'."""
        began = time.thread_time()
        yield
        self._calls_seconds += time.thread_time() - began

    def _now(self, steps: int) -> Moment:
        own = time.process_time()
        other = self._other_processes_seconds()
        # What this process spent outside of the training's thread and torch's: threads that Python
        # knows, those that ended meanwhile included.
        threads = own - sum(self._training_threads_seconds())
        recorders = self._calls_seconds + threads + other
        return Moment(time.perf_counter(), own + other, recorders, steps)

    def _training_threads_seconds(self) -> Iterator[float]:
        recording = {thread.native_id for thread in threading.enumerate()}
        recording.discard(threading.get_native_id())
        for task in Path("/proc/self/task").iterdir():
            if int(task.name) not in recording:
                with suppress(FileNotFoundError):  # it has just ended
                    yield int((task / "schedstat").read_text().split()[0]) / 1e9

    def _other_processes_seconds(self) -> float:
        own = self._processes[0]
        found = {process.pid: process
                 for root in self._processes
                 for process in [root, *root.children(recursive=True)]
                 if process != own}  # fmt: skip
        # What a process has spent stays counted by its parent when it has ended.
        ended = own.cpu_times()
        total: float = ended.children_user + ended.children_system
        for process in found.values():
            with suppress(psutil.NoSuchProcess):
                times = process.cpu_times()
                total += times.user + times.system + times.children_user + times.children_system
        return total


def pairs_of(turns: Sequence[Turn], value: Callable[[Turn], float]) -> list[float]:
    """For each pair of turns, the value with the sinks on over the value with them off."""
    ratios = []
    for first, second in zip(turns[::2], turns[1::2], strict=True):
        on, off = (first, second) if first.on else (second, first)
        ratios.append(value(on) / value(off))
    return ratios


def counted_share(turns: Sequence[Turn], *, on: bool) -> float:
    """The recorders' processor time as a share of the rest's, over all turns on or all off."""
    chosen = [turn for turn in turns if turn.on is on]
    recorders = sum(turn.recorders_seconds for turn in chosen)
    return recorders / (sum(turn.processor_seconds for turn in chosen) - recorders)


def check_recorded(run_dir: Path, tracking_uri: str, mlflow_run_id: str) -> None:
    """See that MLflow, TensorBoard and Weights & Biases hold the run: none was cheap by idling."""
    client = tracking_client(tracking_uri)
    history = client.get_metric_history(mlflow_run_id, "health/mean_return")
    assert len(history) >= WARM_UPDATES, history
    kept = (("tensorboard", "events.out.*"), ("wandb", "offline-run-*/run-*.wandb"))
    for folder, pattern in kept:
        (file,) = (run_dir / folder).glob(pattern)
        assert file.stat().st_size > 1_000, file


def measure(updates: int, pairs: int) -> tuple[list[Row], list[dict[str, Any]]]:
    """Train with everything on and off in turns."""
    config = load_config(
        ROOT / "configs" / "demo.yaml",
        ("total_steps=1000000000", "selection.units=0", "checkpoint.every_steps=1000000000",
         "sinks.mlflow=true", "sinks.prometheus=true", "sinks.tensorboard=true",
         "sinks.wandb=offline", "collapse.action=warn"),
    )  # fmt: skip
    postgres = PostgresServer()
    with tempfile.TemporaryDirectory() as folder:
        mlflow = MlflowServer(Path(folder) / "mlflow")
        try:
            mlflow.start()
            settings = JobSettings(
                Path(folder), postgres.url(postgres.create_database()), mlflow.uri
            )
            migrate.upgrade(settings.database_url)
            with JobContext(settings) as context:
                store = context.store
                run = store.runs.start(
                    NewRun(name="benchmark", task=config.task, algorithm="ppo",
                           config=config.model_dump(mode="json"), config_hash="c" * 64)
                )  # fmt: skip
                stop = threading.Event()
                run_dir = settings.run_dir(run.id)
                run_dir.mkdir(parents=True)
                sinks = open_sinks(config, context, run, run_dir)
                assert len(sinks) == 5, "store, MLflow, Prometheus, TensorBoard, W&B"
                roots = [psutil.Process().pid, postgres.pid]
                turns = Turns(sinks, updates, pairs, roots, stop)
                train(config, run_dir, sinks=[turns], stop=stop)
                failures = turns.sinks.failures
                assert failures == [0] * len(sinks), failures
                episodes = store.runs.count_episodes(run.id)
                assert episodes == turns.episodes > 0, (episodes, turns.episodes)
                assert turns.scrapes > 0
                check_recorded(run_dir, mlflow.uri, str(store.runs.get(run.id).mlflow_run_id))
        finally:
            mlflow.kill()
            postgres.stop()
    rows: list[Row] = []
    for on in (False, True):
        chosen = [turn for turn in turns.turns if turn.on is on]
        rows.append({
            "sinks": "all on" if on else "all off", "turns": len(chosen), "updates": updates,
            "steps_per_second": spread([turn.steps_per_second for turn in chosen]),
            "processor_microseconds_per_step": spread(
                [turn.processor_microseconds_per_step for turn in chosen]
            ),
            "recorders_share": round(counted_share(turns.turns, on=on), 4),
            "episodes_stored": episodes if on else 0,
        })  # fmt: skip
    rate = pairs_of(turns.turns, lambda turn: turn.steps_per_second)
    spent = pairs_of(turns.turns, lambda turn: turn.processor_microseconds_per_step)
    rows.append({"sinks": "cost, share of the rate", "turns": len(rate),
                 "steps_per_second": spread([1 - ratio for ratio in rate]),
                 "median_95": median_interval([1 - ratio for ratio in rate])})  # fmt: skip
    rows.append({"sinks": "cost, share of processor time", "turns": len(spent),
                 "processor_microseconds_per_step": spread([r - 1 for r in spent]),
                 "median_95": median_interval([r - 1 for r in spent])})  # fmt: skip
    targets = [
        target("share of training's rate that all sinks cost, median of pairs", GOAL_SHARE,
               1 - statistics.median(rate), at_most=True),
        target("share of processor time that all sinks and their servers add, median of pairs",
               GOAL_SHARE, statistics.median(spent) - 1, at_most=True),
        target("share of processor time that sinks, their threads and servers take, counted",
               GOAL_SHARE, counted_share(turns.turns, on=True), at_most=True),
    ]  # fmt: skip
    return rows, targets


def main() -> int:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="end within a minute")
    quick = parser.parse_args().quick
    rows, targets = measure(1, 2) if quick else measure(2, 60)
    print_table(
        "Training with all sinks, and without any", rows,
        ("sinks", "turns", "updates", "steps_per_second", "processor_microseconds_per_step",
         "recorders_share", "median_95", "episodes_stored"),
    )  # fmt: skip
    return finish("sinks", rows, targets, quick=quick)


if __name__ == "__main__":
    sys.exit(main())
