"""The processes of `benchmarks/flows.py`: the same short pipeline as functions and as a flow.

    python benchmarks/_flows_child.py turns RUNS REPEATS    both ways in turns; prints RESULT {json}
    python benchmarks/_flows_child.py plain RUNS            once as functions, as a new process does

Nothing heavy is imported at the top: starting the server beside the imports is what is measured.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

CONFIG = "configs/smoke.yaml"
#: One thread: two that wait for each other on a busy machine measure the machine, not the flow.
OVERRIDES = (
    "network.threads=1", "selection.every_steps=1000000", "evaluation.screening_units=2",
    "gate.primary=progress", "gate.max_units=4",
)  # fmt: skip


def plain(runs: Path) -> None:
    """The pipeline as plain functions: the stages that `flows/pipeline.py` launches."""
    from uuid import uuid4

    from mario.config.experiment import load_config
    from mario.jobs import pipeline as jobs
    from mario.jobs.attempts import train_attempt
    from mario.jobs.context import JobContext, JobSettings
    from mario.jobs.promote import promote_verdict

    context = JobContext(JobSettings.embedded(runs))
    config = load_config(CONFIG, OVERRIDES)
    jobs.prepare(config, context)
    trained = train_attempt(config, context, f"run-{uuid4().hex}")
    version = jobs.register_stage(trained.run_id, context)
    jobs.screen_stage(config, version, context)
    judged = jobs.gate_stage(config, version, context)
    if judged.decision == "promote":
        promote_verdict(judged.verdict_id, context)
    jobs.summary_stage(config, trained.run_id, judged.verdict_id, context)


def turns(runs: Path, repeats: int) -> None:
    """Both ways in turns; the first turn is a warm-up that is not shown."""
    began = time.perf_counter()
    from flows.embedded_server import running

    with running(runs / "prefect") as server:
        from flows.pipeline import PipelineParameters, run_pipeline

        imported = time.perf_counter() - began
        server.wait()
        ready = time.perf_counter() - began
        os.environ["MARIO_RUNS_DIR"] = str(runs / "flow")
        parameters = PipelineParameters(config=CONFIG, overrides=OVERRIDES)
        ways: dict[str, Callable[[], object]] = {
            "plain": lambda: plain(runs / "plain"),
            "flow": lambda: run_pipeline(parameters),
        }
        seconds: list[dict[str, float]] = []
        for _ in range(repeats + 1):
            turn = {}
            for name, run in ways.items():
                start, processor = time.perf_counter(), time.process_time()
                run()
                turn[name] = time.perf_counter() - start
                turn[f"{name}_processor"] = time.process_time() - processor
            seconds.append(turn)
    result = {"turns": seconds[1:], "imported": imported, "ready": ready}
    print("RESULT", json.dumps(result), flush=True)


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    if sys.argv[1] == "turns":
        turns(Path(sys.argv[2]), int(sys.argv[3]))
    else:
        plain(Path(sys.argv[2]))
