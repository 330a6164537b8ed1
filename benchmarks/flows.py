"""What Prefect costs a pipeline beyond the work itself: in process, and by deployment.

    python benchmarks/flows.py [--quick]

In process: the same short pipeline in turns as plain functions and as a flow, in one process that
has its own temporary server; overhead is the flow's time beyond the plain one of the same turn.

By deployment: a process worker gives every run a new process, so what it is compared with is the
plain pipeline in a new process. The run's time is taken apart by the moments of its states: asked
for → claimed by the worker (how often a worker asks is a setting, so it is shown and not counted) →
running (a new process has imported what it needs) → ended; and within that, the stages. Overhead is
claimed → ended beyond the plain process, and running → ended beyond the stages. The server is on
PostgreSQL where the machine has one, else on SQLite.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from _flows_child import CONFIG, OVERRIDES
from _report import ROOT, finish, print_table, spread, target

from tests.support.full_postgres import full_postgres, programs
from tests.support.prefect_server import PrefectServer

#: Tasks of a pipeline that keeps the champion: prepare, train, register, screen, gate, summary.
_STAGES = 6


def child(home: Path, *arguments: str) -> str:
    """Run `_flows_child.py` in a new process; returns what it printed."""
    environment = {**os.environ, "PREFECT_LOGGING_LEVEL": "CRITICAL", "DO_NOT_TRACK": "1",
                   "PREFECT_HOME": str(home), "MLFLOW_DISABLE_TELEMETRY": "true"}  # fmt: skip
    for name in ("PREFECT_API_URL", "MARIO_DATABASE_URL", "MLFLOW_TRACKING_URI"):
        environment.pop(name, None)
    script = ROOT / "benchmarks" / "_flows_child.py"
    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(script), *arguments],
        cwd=ROOT, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        raise SystemExit(
            f"{arguments[0]} ended with {done.returncode}; expected 0:\n"
            f"{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
        )
    return done.stdout


def in_process(repeats: int, folder: Path) -> dict[str, Any]:
    """Run the pipeline both ways in turns, in a new process."""
    printed = child(folder / "prefect", "turns", str(folder), str(repeats))
    (line,) = [each for each in printed.splitlines() if each.startswith("RESULT ")]
    return dict(json.loads(line.removeprefix("RESULT ")))


@contextmanager
def database(folder: Path) -> Iterator[tuple[str, str]]:
    """The server's database: PostgreSQL where the machine has one."""
    if programs() is None:
        yield "SQLite", f"sqlite+aiosqlite:///{folder / 'prefect.db'}"
        return
    with full_postgres() as url:
        yield "PostgreSQL", url


def by_deployment(repeats: int, folder: Path) -> tuple[str, list[dict[str, float]]]:
    """Run the pipeline through a process worker, in turns with the plain one in a new process.

    Returns:
        The server's database, and for each run, in s: `plain`, `claimed` (asked for to claimed),
        `process` (to running), `flow` (to ended), `stages` (of it).
    """
    runs: list[dict[str, float]] = []
    with database(folder) as (kind, url):
        server = PrefectServer(folder, url)
        server.start()
        try:
            server.mario("flows", "setup", "--pool", "process")
            server.mario("flows", "deploy", "pipeline")
            with server.worker(folder / "deployed"):
                for _ in range(repeats + 1):
                    start = time.perf_counter()
                    child(folder / "none", "plain", str(folder / "plain"))
                    wall = time.perf_counter() - start
                    runs.append({"plain": wall, **deployed_run(server)})
        finally:
            server.stop()
    return kind, runs[1:]


def deployed_run(server: PrefectServer) -> dict[str, float]:
    """Run the deployment once; what each part of it took, in s."""
    asked = time.time()
    flow_run = server.start_run(
        "pipeline/pipeline", {"config": CONFIG, "overrides": list(OVERRIDES), "next_seed": False}
    )
    state = server.wait(flow_run)
    if state["type"] != "COMPLETED":
        raise SystemExit(
            f"got a flow run that ended as {state}; expected Completed\n{server.log()}"
        )
    moments = {
        each["type"]: datetime.fromisoformat(each["timestamp"]).timestamp()
        for each in server.states(flow_run)
    }
    deadline = time.monotonic() + 120  # task runs arrive as events, some time later
    while True:
        tasks = server.call(
            "POST", "/task_runs/filter", {"flow_runs": {"id": {"any_": [flow_run]}}}
        )
        ended = [task for task in tasks if task["state"]["type"] == "COMPLETED"]
        if len(ended) >= _STAGES:
            break
        if time.monotonic() > deadline:
            raise SystemExit(f"got {len(ended)} ended stages; expected {_STAGES}\n{server.log()}")
        time.sleep(0.2)
    return {
        "claimed": moments["PENDING"] - asked,
        "process": moments["RUNNING"] - moments["PENDING"],
        "flow": moments["COMPLETED"] - moments["RUNNING"],
        "stages": sum(task["total_run_time"] for task in ended),
    }


def main() -> int:
    """Measure and report."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one repeat, no deployment, no file")
    quick = parser.parse_args().quick
    repeats = 1 if quick else 5
    rows: list[dict[str, Any]] = []
    targets = []
    with tempfile.TemporaryDirectory(prefix="mario-flows-") as temporary:
        both = in_process(repeats, Path(temporary) / "process")
        turns = both["turns"]
        for way, name in (("plain", "plain functions"), ("flow", "flow in process")):
            rows.append(
                {"way": name,
                 "seconds": spread([turn[way] for turn in turns]),
                 "processor_seconds": spread([turn[f"{way}_processor"] for turn in turns])}
            )  # fmt: skip
        beyond = [turn["flow"] - turn["plain"] for turn in turns]
        rows[-1]["beyond_seconds"] = spread(beyond)
        rows.append(
            {"way": "once a process: temporary server, beyond the imports that it starts beside",
             "seconds": both["ready"] - both["imported"]}
        )  # fmt: skip
        targets.append(
            target("in process: s beyond the same pipeline as functions, at most", 2.0,
                   statistics.median(beyond), at_most=True)
        )  # fmt: skip
        if not quick:
            folder = Path(temporary) / "deployment"
            folder.mkdir()
            kind, runs = by_deployment(repeats, folder)
            more_rows, more_targets = deployment_rows(kind, runs)
            rows += more_rows
            targets += more_targets
    print_table("What Prefect costs a pipeline", rows,
                ["way", "seconds", "processor_seconds", "beyond_seconds"])  # fmt: skip
    return finish("flows", rows, targets, quick=quick)


def deployment_rows(
    kind: str, runs: list[dict[str, float]]
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Rows and targets of the runs by deployment."""
    whole = [run["process"] + run["flow"] for run in runs]
    beyond_plain = [all_ - run["plain"] for all_, run in zip(whole, runs, strict=True)]
    beyond_stages = [run["flow"] - run["stages"] for run in runs]

    def part(name: str) -> dict[str, float]:
        return spread([run[name] for run in runs])

    rows: list[dict[str, Any]] = [
        {"way": "plain functions in a new process", "seconds": part("plain")},
        {"way": f"deployment, server on {kind}: claimed to ended", "seconds": spread(whole),
         "beyond_seconds": spread(beyond_plain)},
        {"way": "  of it: new process with its imports", "seconds": part("process")},
        {"way": "  of it: running to ended", "seconds": part("flow"),
         "beyond_seconds": spread(beyond_stages)},
        {"way": "  before it: asked for to claimed, a worker asks every 10 s",
         "seconds": part("claimed")},
    ]  # fmt: skip
    targets = [
        target("by deployment: s beyond the same pipeline in a new process, at most", 2.0,
               statistics.median(beyond_plain), at_most=True),
        target("by deployment: s of a flow run beyond its stages, at most", 2.0,
               statistics.median(beyond_stages), at_most=True),
    ]  # fmt: skip
    return rows, targets


if __name__ == "__main__":
    raise SystemExit(main())
