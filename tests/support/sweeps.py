"""Small sweeps for tests, a worker that dies during a trial, and one on another machine.

python -m tests.support.sweeps DATABASE_URL SWEEP_YAML [unclaimed]
python -m tests.support.sweeps RUNS_FOLDER SWEEP_YAML elsewhere
python -m tests.support.sweeps RUNS_FOLDER SWEEP_YAML alive-elsewhere
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
import time
from pathlib import Path
from typing import Any

import yaml
from optuna.trial import Trial

from mario.config.sweep import Sweep, load_sweep
from mario.jobs.context import JobContext, JobSettings, Waits
from mario.jobs.stop_signals import stopping_on_signals
from mario.jobs.sweeps.study import SweepStudy
from mario.jobs.sweeps.worker import SweepWorker, run_sweep
from tests.support.paths import ROOT

#: Trials of a second or two: a tiny network, short episodes, no metrics page.
SMALL: dict[str, Any] = {
    "total_steps": 512,
    "environments": 2,
    "selection.every_steps": 128,
    "selection.units": 1,
    "checkpoint.every_steps": 128,
    "algorithm.n_steps": 32,
    "algorithm.batch_size": 32,
    "network.threads": 1,
    "network.features": "tiny",
    "game.max_steps": 40,
    "sinks.prometheus": False,
    "collapse.action": "warn",
}
SPACE: dict[str, Any] = {
    "algorithm.learning_rate": {"kind": "float", "low": 5e-5, "high": 2e-3, "log": True},
    "algorithm.n_epochs": {"kind": "int", "low": 1, "high": 2},
    "algorithm.batch_size": {"kind": "categorical", "choices": [16, 32]},
}
EXPERIMENT = ROOT / "configs" / "smoke.yaml"


def write_sweep(path: Path, *, small: dict[str, Any] | None = None, **changes: Any) -> Path:
    """Write a sweep's YAML: `small` changes the experiment, `changes` the sweep."""
    values: dict[str, Any] = {
        "experiment": str(EXPERIMENT),
        "overrides": SMALL | (small or {}),
        "trials": 5,
        "space": SPACE,
        "sampler": {"startup_trials": 3, "seed": 7},
        "pruner": {"name": "none"},
        "heartbeat_seconds": 1,
        "grace_seconds": 3,
    }
    path.write_text(yaml.safe_dump(values | changes))
    return path


def small_sweep(folder: Path, **changes: Any) -> Sweep:
    """A sweep in memory."""
    return load_sweep(write_sweep(folder / "sweep.yaml", **changes))


def die_elsewhere(runs: Path, sweep: Sweep) -> None:
    """Train a trial under another host name, as in a container, and die during it."""
    socket.gethostname = lambda: "pod-a"
    worker = SweepWorker("killed", sweep, JobContext(JobSettings.embedded(runs)))

    def kill() -> None:
        study = worker.study.study
        while not any(trial.intermediate_values for trial in study.get_trials(deepcopy=False)):
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=kill, daemon=True).start()
    worker.run()


def live_elsewhere(runs: Path, sweep: Sweep) -> None:
    """Work on a sweep under another host name, as in a container, until stopped."""
    socket.gethostname = lambda: "pod-a"
    context = JobContext(JobSettings.embedded(runs), waits=Waits(heartbeat_seconds=0.5))
    stop = threading.Event()
    with stopping_on_signals(stop):
        run_sweep("alive", sweep, context, stop=stop)


def main() -> None:
    """Claim a trial, print its number, and die by SIGKILL; with `unclaimed`, before the claim."""
    if sys.argv[3:] == ["elsewhere"]:
        die_elsewhere(Path(sys.argv[1]), load_sweep(sys.argv[2]))
    if sys.argv[3:] == ["alive-elsewhere"]:
        live_elsewhere(Path(sys.argv[1]), load_sweep(sys.argv[2]))
        return

    def die(trial: Trial) -> float:
        print(trial.number, trial.user_attrs["values"], flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
        return 0.0

    study = SweepStudy("killed", load_sweep(sys.argv[2]), sys.argv[1])
    if sys.argv[3:] == ["unclaimed"]:
        with study.alone():
            study.study.ask()  # as a worker does before its first heartbeat
            os.kill(os.getpid(), signal.SIGKILL)
    study.next(lambda trial: None, die)


if __name__ == "__main__":
    main()
