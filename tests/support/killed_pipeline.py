"""Run the stages after training in a process that kills itself at a named moment.

    python -m tests.support.killed_pipeline RUNS_DIR MOMENT

A policy of known skill stands where training would have left its export. The moment is the name of
a call of `MOMENTS`; just before that call happens, the process dies by SIGKILL, as from the kernel
or a power cut. The moment `never` lets the pipeline end.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

from mario.config.experiment import ExperimentConfig, parse_config
from mario.config.gate import GateRule
from mario.jobs import pipeline as stages
from mario.jobs.context import JobContext, JobSettings
from mario.jobs.promote import promote_verdict
from mario.jobs.register import ARTEFACT_FOLDER
from tests.support.policies import GOOD, write_odds_policy
from tests.support.store_rows import run_of

RUN_ID = "run-of-the-test"
#: Moment → (module, class or None, function) before whose call the process dies.
MOMENTS: dict[str, tuple[str, str, str]] = {
    "version announced, nothing uploaded": ("mlflow.tracking", "MlflowClient", "log_artifacts"),
    "uploaded, no version in MLflow": ("mlflow.tracking", "MlflowClient", "create_model_version"),
    "version in MLflow, not complete in the store": (
        "mario.store.versions", "Versions", "complete"),
    "units played, not fed to the gate": ("mario.evaluation.gate", "SequentialGate", "feed"),
    "gate decided, no verdict stored": (
        "mario.store.evaluations", "Evaluations", "record_verdict"),
    "verdict stored, not promoted": ("mario.store.ledger", "Ledger", "promote"),
    "in the ledger, alias not moved": (
        "mlflow.tracking", "MlflowClient", "set_registered_model_alias"),
}  # fmt: skip


def arm(moment: str) -> None:
    """Replace the function of a moment by one that kills the process."""
    import importlib

    module, owner, name = MOMENTS[moment]
    target: Any = getattr(importlib.import_module(module), owner)
    original = getattr(target, name)

    def die(*arguments: Any, **options: Any) -> Any:
        # The alias of the challenger moves before the one of the champion.
        if name == "set_registered_model_alias" and "champion" not in arguments:
            return original(*arguments, **options)
        os.kill(os.getpid(), signal.SIGKILL)

    setattr(target, name, die)


def config() -> ExperimentConfig:
    """A short experiment, which is not trained."""
    gate = GateRule(primary="progress", alpha=0.4, max_units=100, min_units=8)
    return parse_config(
        {
            "name": "killed",
            "total_steps": 4096,
            "game": {"actions": "complex"},
            "evaluation": {"screening_units": 4},
            "gate": gate.model_dump(),
        },
        "test",
    )


def main() -> None:
    """Run the stages."""
    context, moment = JobContext(JobSettings.embedded(sys.argv[1])), sys.argv[2]
    experiment = config()
    for repair in stages.prepare(experiment, context):
        print("repaired:", repair)
    folder = context.settings.run_dir(RUN_ID) / ARTEFACT_FOLDER
    if not folder.exists():
        write_odds_policy(Path(folder), GOOD)
        context.store.runs.start(run_of(experiment, RUN_ID))
    if moment != "never":
        arm(moment)
    version = stages.register_stage(RUN_ID, context)
    judged = stages.gate_stage(experiment, version, context)
    assert judged.decision in ("promote", "same"), judged.lines
    assert judged.verdict_id is not None
    promote_verdict(judged.verdict_id, context)
    print("done")


if __name__ == "__main__":
    main()
