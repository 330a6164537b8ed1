"""Test the flows `sweep` and `evaluate-on-dask` on a real Prefect server."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import ValidationError

from mario.errors import ConfigError, FlowError
from mario.jobs.context import JobContext
from mario.jobs.sweeps.storage import load_trials
from mario.store.store import ExperimentStore
from tests.support.prefect_server import PrefectServer, prefect_server, reporting_to
from tests.support.sweeps import write_sweep


def test_parameters_of_sweeps_and_clusters_are_validated() -> None:
    from flows.distributed_evaluation import DaskEvaluationParameters, task_runner
    from flows.sweep import SweepParameters, worker_command

    with pytest.raises(ValidationError):
        SweepParameters(name="Not A Name")
    with pytest.raises(ConfigError, match="workers of its own"):
        task_runner(DaskEvaluationParameters(scheduler="tcp://10.0.0.5:8786", workers=2))
    assert task_runner(DaskEvaluationParameters(scheduler="tcp://10.0.0.5:8786")).address
    assert task_runner(DaskEvaluationParameters(workers=3)).cluster_kwargs["n_workers"] == 3
    command = worker_command(SweepParameters(name="wide", overrides=("trials=80",)))
    assert command == [
        sys.executable, "-m", "flows.child_process", str(os.getpid()), "mario.cli", "sweep", "run",
        "wide", "--config", "configs/sweeps/ppo_1-1.yaml", "--set", "trials=80",
    ]  # fmt: skip


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrefectServer]:
    """A server on PostgreSQL to which flows that this process calls report."""
    with prefect_server(tmp_path_factory.mktemp("prefect")) as made, reporting_to(made):
        yield made


@pytest.fixture
def context(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> JobContext:
    monkeypatch.setenv("MARIO_RUNS_DIR", str(tmp_path / "runs"))
    for name in ("MARIO_DATABASE_URL", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    return JobContext.open()


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.usefixtures("server")
def test_a_sweep_runs_two_workers(context: JobContext, tmp_path: Path) -> None:
    from flows.sweep import SweepParameters, sweep

    path = write_sweep(tmp_path / "sweep.yaml", trials=3, grace_seconds=30)
    said = sweep(SweepParameters(name="flow", file=str(path), workers=2))
    assert "best trial" in said
    trials = load_trials("flow", context.settings.database_url)
    assert [trial.state.name for trial in trials] == ["COMPLETE"] * 3


def test_the_error_of_a_failed_worker_has_its_last_output(
    context: JobContext, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    from flows.sweep import SweepParameters, run_worker

    missing = str(tmp_path / "there-is-none.yaml")
    with pytest.raises(FlowError, match=r"with 2; expected 0; its last output: .*there-is-none"):
        run_worker(SweepParameters(name="broken", file=missing), threading.Event())
    assert "there-is-none" in capfd.readouterr().out, "the output is forwarded"


def test_the_output_of_a_worker_is_forwarded_and_its_last_lines_kept(
    capsys: pytest.CaptureFixture[str],
) -> None:
    from flows.sweep import WorkerOutput

    with tempfile.TemporaryFile(buffering=0) as file:
        output = WorkerOutput(file)
        file.write(b"one\ntw")
        output.forward()
        assert capsys.readouterr().out == "one\n"
        file.write(
            b"o\n\n" + b"".join(b"line %d\n" % number for number in range(9)) + b"unfini\xff"
        )
        output.forward(ended=True)
        said = capsys.readouterr().out.splitlines()
    assert said == ["two", *(f"line {number}" for number in range(9)), "unfini\ufffd"]
    assert list(output.last) == ["line 5", "line 6", "line 7", "line 8", "unfini\ufffd"]


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.usefixtures("server")
def test_a_sweep_fails_with_the_output_of_its_failed_workers(
    context: JobContext, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from flows import sweep as module

    said = "import sys; print('the reason'); sys.exit(7)"
    monkeypatch.setattr(module, "worker_command", lambda _: [sys.executable, "-c", said])
    monkeypatch.setattr(module, "RETRY_DELAYS_SECONDS", ())
    path = write_sweep(tmp_path / "sweep.yaml", trials=3)
    parameters = module.SweepParameters(name="failing", file=str(path), workers=2)
    state = module.sweep(parameters, return_state=True)
    assert state.is_failed()
    assert "every worker of sweep failing failed" in state.message
    assert "exited with 7; expected 0; its last output: the reason" in state.message


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_workers_of_a_killed_flow_run_exit(context: JobContext, tmp_path: Path) -> None:
    path = write_sweep(tmp_path / "sweep.yaml", trials=2, small={"total_steps": 10_000_000})
    code = (
        "import threading; from flows.sweep import SweepParameters, run_worker; "
        f"run_worker(SweepParameters(name='left', file={str(path)!r}), threading.Event())"
    )
    with (tmp_path / "log").open("wb") as log:
        flow_run = subprocess.Popen([sys.executable, "-c", code], stdout=log, stderr=log)
    try:
        trial, worker = wait_for_a_trial(context, flow_run)
    finally:
        flow_run.kill()
        flow_run.wait()
    deadline = time.monotonic() + 90
    while Path(f"/proc/{worker}").exists():
        assert time.monotonic() < deadline, (tmp_path / "log").read_text()
        time.sleep(0.1)
    store = context.store
    assert store.runs.get(trial).status == "interrupted", "the worker returned its trial"


def wait_for_a_trial(context: JobContext, flow_run: subprocess.Popen[bytes]) -> tuple[str, int]:
    """Wait for a trial with a checkpoint; returns its run and the process that trains it."""
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline:
        assert flow_run.poll() is None
        if context.settings.runs_dir.exists():
            store = context.store
            for run in store.runs.list(status="running"):
                if any((context.settings.run_dir(run.id) / "checkpoints").glob("[!.]*")):
                    return run.id, run.attempts[-1].pid
        time.sleep(0.2)
    raise AssertionError("no trial got as far as a checkpoint")


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.usefixtures("server")
def test_an_evaluation_on_a_dask_cluster_of_the_flow(context: JobContext, tmp_path: Path) -> None:
    from flows import distributed_evaluation as fan_out
    from mario.evaluation.seeds import units_of
    from mario.jobs.evaluate import evaluate_stored, evaluation_key
    from mario.jobs.policies import policy_from_artefact
    from mario.jobs.register import register_run
    from tests.support.killed_pipeline import RUN_ID, config
    from tests.support.policies import GOOD, write_odds_policy
    from tests.support.store_rows import run_of

    folder = context.settings.run_dir(RUN_ID) / "policy"
    write_odds_policy(folder, GOOD)
    store = context.store
    store.runs.start(run_of(config(), RUN_ID))
    version = register_run(RUN_ID, context).version
    line = fan_out.evaluate_on_dask(
        fan_out.DaskEvaluationParameters(policy=str(version), units=12, workers=2)
    )
    assert "12 units" in line
    loaded = policy_from_artefact(folder)
    units = units_of(("1-1",), "screening", "", 12)
    key = evaluation_key(loaded, "screening", "", ("1-1",))
    store = context.store
    there = evaluate_stored(loaded, units, key, store).records  # nothing is left to play
    (evaluation,) = store.evaluations.list()
    assert evaluation.finished_units == 12
    with ExperimentStore.open(f"sqlite:///{tmp_path / 'here.db'}") as store:
        assert evaluate_stored(loaded, units, key, store).records == there
