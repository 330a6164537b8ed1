"""What Prefect costs a pipeline beyond the work itself: in process, and by deployment.

    python benchmarks/flows.py [--quick]

The same short pipeline is run in turns as plain functions and as a flow, in one process that has
its own temporary server, the first turn being a warm-up; then as a deployment through a process
worker, where each run is a new process that has to import everything first. Overhead is the flow's
time beyond the plain one of the same turn; for the deployment, the flow run's time beyond its
stages. What a person waits for once is shown beside it. The deployment's server is on PostgreSQL
where the machine has one, else on SQLite.
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
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from _report import ROOT, finish, print_table, spread, target

from tests.support.full_postgres import full_postgres, programs
from tests.support.prefect_server import PrefectServer

OVERRIDES = (
    "total_steps=1024", "selection.every_steps=1000000", "evaluation.screening_units=2",
    "gate.primary=progress", "gate.max_units=4",
)  # fmt: skip

#: Runs in a child, so that the temporary server starts beside the imports, as for a person; prints
#: its figures as JSON.
CHILD = """
import json, os, sys, time
from pathlib import Path
repeats, runs, overrides = int(sys.argv[1]), Path(sys.argv[2]), json.loads(sys.argv[3])
began = time.perf_counter()
from flows.embedded_server import running
with running(runs / "prefect") as server:
    from mario.config import load_config
    from mario.jobs import pipeline as jobs
    from mario.jobs.attempts import train_attempt
    from mario.jobs.promote import promote_verdict
    from mario.jobs.runtime import Runtime
    from flows.parameters import PipelineParameters
    from flows.pipeline import run_pipeline
    imported = time.perf_counter() - began
    server.wait()
    ready = time.perf_counter() - began

    def plain(number):
        runtime = Runtime.embedded(runs / "plain")
        config = load_config("configs/smoke.yaml", overrides)
        jobs.prepare(config, runtime)
        trained = train_attempt(config, runtime, f"run-plain-{number}")
        version = jobs.register_stage(trained.run_id, runtime)
        jobs.screen_stage(config, version, runtime)
        judged = jobs.gate_stage(config, version, runtime)
        if judged.decision == "promote":
            promote_verdict(judged.verdict_id, runtime)
        jobs.summary_stage(config, trained.run_id, judged.verdict_id, runtime)

    def flow(number):
        run_pipeline(PipelineParameters(config="configs/smoke.yaml", overrides=overrides))

    os.environ["MARIO_RUNS_DIR"] = str(runs / "flow")
    turns = []
    for number in range(repeats + 1):
        turn = {}
        for name, way in (("plain", plain), ("flow", flow)):
            start, processor = time.perf_counter(), time.process_time()
            way(number)
            turn[name] = time.perf_counter() - start
            turn[name + "_processor"] = time.process_time() - processor
        turns.append(turn)
print("RESULT", json.dumps({"turns": turns[1:], "imported": imported, "ready": ready}))
"""


def in_process(repeats: int, runs: Path) -> dict[str, Any]:
    """Run the pipeline both ways in turns, in a new process."""
    path = os.pathsep.join((str(ROOT), os.environ.get("PYTHONPATH", "")))
    environment = {**os.environ, "PREFECT_LOGGING_LEVEL": "CRITICAL", "DO_NOT_TRACK": "1",
                   "PREFECT_HOME": str(runs / "prefect"), "MLFLOW_DISABLE_TELEMETRY": "true",
                   "PYTHONPATH": path}  # fmt: skip
    environment.pop("PREFECT_API_URL", None)
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", CHILD, str(repeats), str(runs),
         json.dumps(OVERRIDES)],
        cwd=ROOT, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    if not lines:
        raise SystemExit(f"failed:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
    return dict(json.loads(lines[0].removeprefix("RESULT ")))


@contextmanager
def database(folder: Path) -> Iterator[tuple[str, str]]:
    """The server's database: PostgreSQL where the machine has one."""
    if programs() is None:
        yield "SQLite", f"sqlite+aiosqlite:///{folder / 'prefect.db'}"
        return
    with full_postgres() as url:
        yield "PostgreSQL", url


def by_deployment(repeats: int, folder: Path) -> dict[str, Any]:
    """Run the pipeline some times through a process worker."""
    runs = folder / "deployed"
    flow_seconds, task_seconds, process_seconds = [], [], []
    with database(folder) as (kind, url):
        server = PrefectServer(folder, url)
        began = time.perf_counter()
        server.start()
        started = time.perf_counter() - began
        try:
            server.mario("flows", "setup", "--pool", "process")
            server.mario("flows", "deploy", "pipeline")
            with server.worker(runs):
                for number in range(repeats + 1):
                    submitted = time.time()
                    flow_run = server.start_run(
                        "pipeline/pipeline",
                        {"config": "configs/smoke.yaml", "overrides": list(OVERRIDES)},
                    )
                    state = server.wait(flow_run)
                    assert state["type"] == "COMPLETED", server.log()
                    if number == 0:
                        continue
                    run = server.run(flow_run)
                    time.sleep(5)  # task runs arrive as events
                    tasks = server.call(
                        "POST", "/task_runs/filter", {"flow_runs": {"id": {"any_": [flow_run]}}}
                    )
                    flow_seconds.append(run["total_run_time"])
                    task_seconds.append(sum(task["total_run_time"] for task in tasks))
                    process_seconds.append(_moment(run["start_time"]) - submitted)
        finally:
            server.stop()
    return {"database": kind, "flow": flow_seconds, "stages": task_seconds,
            "process": process_seconds, "server": started}  # fmt: skip


def _moment(text: str) -> float:
    from datetime import datetime

    return datetime.fromisoformat(text).timestamp()


def main() -> int:
    """Measure and report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one repeat, no deployment")
    quick = parser.parse_args().quick
    repeats = 1 if quick else 3
    rows: list[dict[str, Any]] = []
    targets = []
    with tempfile.TemporaryDirectory(prefix="mario-flows-") as temporary:
        folder = Path(temporary)
        both = in_process(repeats, folder / "process")
        turns = both["turns"]
        for way, name in (("plain", "plain functions"), ("flow", "flow in process")):
            rows.append(
                {"way": name,
                 "pipeline_seconds": spread([turn[way] for turn in turns]),
                 "processor_seconds": spread([turn[f"{way}_processor"] for turn in turns])}
            )  # fmt: skip
        rows[-1]["once_seconds"] = both["ready"] - both["imported"]
        rows[-1]["once"] = "temporary server, beyond the imports that it starts beside"
        overhead = statistics.median(turn["flow"] - turn["plain"] for turn in turns)
        targets.append(
            target("in process: s beyond the work itself, at most", 2.0, overhead, at_most=True)
        )
        if not quick:
            deployed = by_deployment(repeats, folder)
            rows.append(
                {"way": f"deployment, server on {deployed['database']}",
                 "pipeline_seconds": spread(deployed["flow"]),
                 "stages_seconds": spread(deployed["stages"]),
                 "once_seconds": statistics.median(deployed["process"]),
                 "once": "from asking for the run to its first line: poll, new process, imports"}
            )  # fmt: skip
            beyond = [
                whole - stages
                for whole, stages in zip(deployed["flow"], deployed["stages"], strict=True)
            ]
            targets.append(
                target("by deployment: s of a flow run beyond its stages, at most", 2.0,
                       statistics.median(beyond), at_most=True)
            )  # fmt: skip
    columns = ("pipeline_seconds", "processor_seconds", "stages_seconds", "once_seconds", "once")
    print_table("What Prefect costs a pipeline", rows, ["way", *columns])
    return finish("flows", rows, targets, quick=quick)


if __name__ == "__main__":
    raise SystemExit(main())
