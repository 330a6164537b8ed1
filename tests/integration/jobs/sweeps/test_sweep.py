"""Sweeps: each trial counts once although workers die; it is a run in the store and in MLflow."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from datetime import timedelta
from pathlib import Path
from typing import Any

import optuna
import pytest
import sqlalchemy as sa
from optuna.trial import FrozenTrial, Trial, TrialState

import mario.store.process_identity
from mario.config.sweep import load_sweep
from mario.errors import ConfigError, StoreError
from mario.jobs.context import JobContext, JobSettings, Waits
from mario.jobs.sweeps.describe import best_config, describe_best, describe_sweep
from mario.jobs.sweeps.storage import load_trials, storage_url
from mario.jobs.sweeps.study import GIVEN_BACK_ATTRIBUTE, SweepStudy
from mario.jobs.sweeps.trial import TrialTrainer
from mario.jobs.sweeps.worker import SweepWorker, run_sweep
from mario.journal.format import Journal
from mario.store import migrate, tables
from mario.store.check import check_store
from mario.store.engine import writing
from mario.store.process_identity import SILENCE_SECONDS
from mario.store.records import utc_now
from mario.store.store import ExperimentStore
from mario.tracking.mlflow_client import tracking_client
from tests.support.paths import ROOT
from tests.support.store_rows import new_run
from tests.support.sweeps import small_sweep, write_sweep


def nothing(_trial: Trial) -> None:
    """Begin a trial without a run."""


def learning_rate(trial: Trial | FrozenTrial) -> float:
    """A score that needs no training."""
    return float(trial.params["algorithm.learning_rate"])


def finish(study: SweepStudy) -> None:
    while study.next(nothing, learning_rate) == "ran":
        pass


def test_two_workers_at_once_share_the_trials(database_url: str, tmp_path: Path) -> None:
    sweep = small_sweep(tmp_path, trials=9, grace_seconds=600)  # no worker dies in this test
    errors: list[Exception] = []

    def work() -> None:
        try:
            study = SweepStudy("shared", sweep, database_url)
            while True:
                claim = study.next(nothing, lambda trial: time.sleep(0.02) or learning_rate(trial))
                if claim == "done":
                    return
        except Exception as error:
            errors.append(error)

    workers = [threading.Thread(target=work) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not errors
    trials = load_trials("shared", database_url)
    assert [trial.number for trial in trials] == list(range(9))
    assert all(trial.state == TrialState.COMPLETE for trial in trials)
    assert len({trial.params["algorithm.learning_rate"] for trial in trials}) == 9
    # The store's tables are untouched: Optuna's are in another place.
    with ExperimentStore.open(database_url) as store:
        assert check_store(store).sound


def test_the_random_trials_do_not_depend_on_the_worker(tmp_path: Path) -> None:
    proposed = []
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        url = f"sqlite:///{tmp_path / name / 'mario.db'}"
        sweep = small_sweep(tmp_path, trials=3)
        for _ in range(3):  # a worker of its own for each trial
            SweepStudy("same", sweep, url).next(nothing, learning_rate)
        proposed.append([trial.params for trial in load_trials("same", url)])
    assert proposed[0] == proposed[1]


def test_a_name_belongs_to_one_definition(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'mario.db'}"
    finish(SweepStudy("name", small_sweep(tmp_path, trials=2), url))
    with pytest.raises(ConfigError, match="another name"):
        SweepStudy("name", small_sweep(tmp_path, small={"algorithm.gamma": 0.9}), url)
    # More trials or a longer grace period do not change the definition.
    finish(SweepStudy("name", small_sweep(tmp_path, trials=4, grace_seconds=9), url))
    assert len(load_trials("name", url)) == 4
    with pytest.raises(StoreError, match="expected one of: name"):
        load_trials("no-such-sweep", url)


def test_a_trial_given_back_has_not_failed_and_keeps_its_values(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'mario.db'}"
    study = SweepStudy("given", small_sweep(tmp_path, trials=1, max_retries=0), url)
    seen = []

    def give_back(trial: Trial) -> float:
        seen.append(trial.params)
        trial.set_user_attr(GIVEN_BACK_ATTRIBUTE, trial.number)
        raise RuntimeError("given back")

    for _ in range(3):
        with pytest.raises(RuntimeError):
            study.next(nothing, give_back)
    finish(study)
    (trial,) = load_trials("given", url)
    assert trial.state == TrialState.COMPLETE
    assert seen == [trial.params] * 3


def test_a_failing_trial_is_retried_up_to_the_limit_and_keeps_its_place(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'mario.db'}"
    study = SweepStudy("failing", small_sweep(tmp_path, trials=2, max_retries=1), url)
    failed: Counter[float] = Counter()

    def fail(trial: Trial) -> float:
        failed[trial.params["algorithm.learning_rate"]] += 1
        raise RuntimeError("no")

    for _ in range(4):
        with pytest.raises(RuntimeError):
            study.next(nothing, fail)
    assert study.next(nothing, fail) == "done"
    assert list(failed.values()) == [2, 2]
    assert [trial.state for trial in load_trials("failing", url)] == [TrialState.FAIL] * 2


def test_the_trial_of_a_killed_worker_is_repeated_once(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'mario.db'}"
    path = write_sweep(tmp_path / "sweep.yaml", trials=3, grace_seconds=600)
    command = [sys.executable, "-m", "tests.support.sweeps", url, str(path)]
    died = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert died.returncode == -signal.SIGKILL, died.stderr
    study = SweepStudy("killed", load_sweep(path), url)
    claims = [study.next(nothing, learning_rate) for _ in range(4)]
    assert claims == ["ran", "ran", "wait", "wait"]  # it could still be alive
    engine = sa.create_engine(storage_url(url))
    with engine.begin() as connection:  # pretend a longer silence
        silent = "UPDATE trial_heartbeats SET heartbeat = datetime(heartbeat, '-601 seconds')"
        connection.execute(sa.text(silent))
    engine.dispose()
    assert [study.next(nothing, learning_rate) for _ in range(2)] == ["ran", "done"]
    trials = load_trials("killed", url)
    assert [trial.state for trial in trials] == [TrialState.COMPLETE] * 3
    taken_up = [trial for trial in trials if trial.system_attrs.get("retry_history")]
    assert [trial.system_attrs["retry_history"] for trial in taken_up] == [[0]]
    assert taken_up[0].user_attrs["values"] in died.stdout


def test_a_trial_whose_worker_died_before_its_first_heartbeat_is_repeated(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'mario.db'}"
    path = write_sweep(tmp_path / "sweep.yaml", trials=2)
    command = [sys.executable, "-m", "tests.support.sweeps", url, str(path), "unclaimed"]
    died = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert died.returncode == -signal.SIGKILL, died.stderr
    study = SweepStudy("killed", load_sweep(path), url)
    assert [study.next(nothing, learning_rate) for _ in range(3)] == ["ran", "ran", "done"]
    trials = load_trials("killed", url)
    assert [trial.state for trial in trials] == [TrialState.COMPLETE] * 2
    assert [trial.system_attrs.get("retry_history") for trial in trials] == [[0], None]


def test_the_trial_of_a_worker_that_was_killed_on_another_machine_is_not_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Optuna counts it as dead long before the store does: its run is waited for, not failed."""
    runs, small = tmp_path / "runs", {"sinks.mlflow": False, "total_steps": 1024}
    path = write_sweep(tmp_path / "sweep.yaml", trials=2, small=small)
    command = [sys.executable, "-m", "tests.support.sweeps", str(runs), str(path), "elsewhere"]
    died = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert died.returncode == -signal.SIGKILL, died.stderr
    # Shorter than in production, but longer than the 3 s of grace of the sweep.
    monkeypatch.setattr(mario.store.process_identity, "SILENCE_SECONDS", 10.0)
    context = JobContext(JobSettings.embedded(runs), waits=Waits(settle_seconds=4.0))
    assert run_sweep("killed", load_sweep(path), context).finished
    trials = load_trials("killed", context.settings.database_url)
    assert [trial.state for trial in trials].count(TrialState.COMPLETE) == 2
    _, trained = runs_below(context.store, "killed")
    assert sorted([attempt.status for attempt in run.attempts] for run in trained) == [
        ["finished"],
        ["killed", "finished"],
    ]


def test_the_run_of_a_sweep_is_alive_while_any_worker_gives_heartbeats(
    store: ExperimentStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process that began it has ended, and on another machine it could not be checked."""
    run = store.runs.start(new_run(algorithm="sweep"))
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    attempt = tables.RunAttemptRow

    def heard(seconds_ago: float) -> str:
        at = utc_now() - timedelta(seconds=seconds_ago)
        with writing(store.engine) as connection:
            connection.execute(sa.update(attempt).values(pid=gone.pid, heartbeat_at=at))
        (reading,) = check_store(store).runs
        return reading.status

    assert heard(10) == "running"
    assert heard(SILENCE_SECONDS + 1) == "killed"
    monkeypatch.setattr(socket, "gethostname", lambda: "elsewhere")
    assert heard(10) == "running"
    assert heard(SILENCE_SECONDS + 1) == "killed"
    assert store.runs.get(run.id).status == "running", "that was only looking"


@pytest.mark.slow
def test_a_sweep_that_another_machine_works_on_is_alive(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its worker cannot be checked here, and trains one trial for longer than the silence limit."""
    silence = 10.0
    monkeypatch.setattr(mario.store.process_identity, "SILENCE_SECONDS", silence)
    runs = tmp_path / "runs"
    path = write_sweep(
        tmp_path / "sweep.yaml", small={"sinks.mlflow": False, "total_steps": 10_000_000}
    )
    command = [sys.executable, "-m", "tests.support.sweeps", str(runs), str(path)]
    context = JobContext(JobSettings.embedded(runs))
    with (tmp_path / "log").open("w+") as log:
        other = subprocess.Popen([*command, "alive-elsewhere"], cwd=ROOT, stdout=log, stderr=log)
    try:
        store = context.store
        _wait_for_a_checkpoint(store, context, other)
        time.sleep(1.2 * silence)
        # A worker of this machine joins, as before each of its trials.
        worker = SweepWorker("alive", load_sweep(path), context)
        with worker.study.alone():
            worker.parent.keep()
        parent, _ = runs_below(store, "alive")
        assert [attempt.host for attempt in parent.attempts] == ["pod-a"], "no worker took it over"
        report = check_store(store, mark_killed=True)
        assert {reading.status for reading in report.runs} == {"running"}, report.text()
        assert other.poll() is None
        other.terminate()
        assert other.wait(120) == 0, (tmp_path / "log").read_text()
        time.sleep(1.2 * silence)
        report = check_store(store, mark_killed=True)
        found = {reading.run_id: reading.status for reading in report.runs}
        assert found.pop(parent.id) == "killed", "no worker is left"
        assert set(found.values()) == {"interrupted"}
        with worker.study.alone():
            worker.parent.keep()
        assert store.runs.get(parent.id).status == "running", "a worker of this machine resumes it"
    finally:
        other.kill()
        other.wait()


def runs_below(store: ExperimentStore, name: str) -> tuple[Any, list[Any]]:
    runs = store.runs.list()
    (parent,) = [run for run in runs if run.name == name]
    return parent, [run for run in runs if run.parent_run_id == parent.id]


def test_trials_are_runs_of_the_store_and_children_in_mlflow(
    context: JobContext, tmp_path: Path
) -> None:
    sweep = small_sweep(tmp_path, trials=2)
    told: list[str] = []
    # The first worker is stopped during its first trial and gives it back.
    stop = threading.Event()
    worker = SweepWorker("small", sweep, context, stop=stop, on_trial=told.append)
    study = worker.study.study
    threading.Thread(target=_stop_in_a_trial, args=(study, stop), daemon=True).start()
    assert not worker.run().finished
    assert "given back" in told[-1]
    work = run_sweep("small", sweep, context, on_trial=told.append)
    assert work.finished
    assert work.trials == 2
    store = context.store
    parent, children = runs_below(store, "small")
    assert (parent.status, parent.algorithm) == ("finished", "sweep")
    assert len(children) == 2
    assert all(run.status == "finished" for run in children)
    assert sorted(len(run.attempts) for run in children) == [1, 2]
    assert check_store(store, runs_dir=context.settings.runs_dir).sound
    client = tracking_client(context.settings.tracking_uri)
    for run in children:
        tracked = client.get_run(run.mlflow_run_id).data
        assert tracked.tags["mlflow.parentRunId"] == parent.mlflow_run_id
        assert tracked.tags["mario.trial_state"] == "finished"
    assert client.get_run(parent.mlflow_run_id).data.metrics["sweep/trials"] == 2
    assert "2 complete" in describe_sweep("small", context)
    best = describe_best("small", context)
    assert "mario register run-" in best
    assert best_config("small", context).algorithm.name == "ppo"


def test_a_trial_that_is_stopped_before_it_trains_is_given_back(
    context: JobContext, tmp_path: Path
) -> None:
    """The worker is stopped while it waits for the journal of the trial."""
    sweep = small_sweep(tmp_path, trials=1)
    stop = threading.Event()

    told: list[str] = []

    class Held(TrialTrainer):
        def train(self, trial: Trial, parent_run_id: str | None) -> float:
            threading.Timer(0.5, stop.set).start()
            journal = Journal(context.settings.run_dir(trial.user_attrs["run_id"]) / "journal")
            try:
                return super().train(trial, parent_run_id)
            finally:
                journal.close(empty=False)

    worker = SweepWorker("small", sweep, context, stop=stop, on_trial=told.append)
    worker.trainer = Held("small", sweep, context, stop=stop, on_trial=told.append)
    assert not worker.run().finished
    assert "given back" in told[-1]
    work = run_sweep("small", sweep, context, on_trial=told.append)
    assert (work.finished, work.trials) == (True, 1)
    store = context.store
    _, (run,) = runs_below(store, "small")
    assert [attempt.status for attempt in run.attempts] == ["interrupted", "finished"]


def _stop_in_a_trial(study: optuna.Study, stop: threading.Event) -> None:
    while not any(trial.intermediate_values for trial in study.get_trials(deepcopy=False)):
        time.sleep(0.05)
    stop.set()


def test_a_hopeless_trial_is_pruned(context: JobContext, tmp_path: Path) -> None:
    sweep = small_sweep(
        tmp_path, trials=2, small={"sinks.mlflow": False},
        pruner={"name": "median", "startup_trials": 1},
    )  # fmt: skip
    study = SweepStudy("pruned", sweep, context.settings.database_url)

    def unbeatable(trial: Trial) -> float:
        for step in (128, 256, 384, 512):
            trial.report(2.0, step)
        return 2.0

    study.next(nothing, unbeatable)
    told: list[str] = []
    assert run_sweep("pruned", sweep, context, on_trial=told.append).finished
    assert "pruned at 128 steps" in told[0]
    assert "1 complete, 1 pruned" in describe_sweep("pruned", context)
    store = context.store
    (run,) = runs_below(store, "pruned")[1]
    assert run.status == "interrupted"
    assert (run.status_reason or "").startswith("pruned")


def test_hyperband_gives_most_trials_few_steps(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'mario.db'}"
    sweep = small_sweep(tmp_path, trials=12, pruner={"name": "hyperband", "reduction_factor": 2})
    study = SweepStudy("bands", sweep, url)

    def climb(trial: Trial) -> float:
        for step in (128, 256, 384, 512):
            trial.report(learning_rate(trial), step)
            if step < 512 and trial.should_prune():
                raise optuna.TrialPruned
        return learning_rate(trial)

    while study.next(nothing, climb) == "ran":
        pass
    trials = load_trials("bands", url)
    assert len(trials) == 12
    states = Counter(trial.state for trial in trials)
    assert states.keys() == {TrialState.COMPLETE, TrialState.PRUNED}
    best = max(trials, key=learning_rate)
    assert best.state == TrialState.COMPLETE


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_twelve_trials_by_two_workers_of_which_one_is_killed(
    postgres_database: str, tmp_path: Path
) -> None:
    context = JobContext(
        JobSettings(
            tmp_path / "runs", postgres_database, f"sqlite:///{tmp_path / 'runs' / 'mlflow.db'}"
        )
    )
    path = write_sweep(
        tmp_path / "sweep.yaml", trials=12, small={"total_steps": 2048}, grace_seconds=15,
        pruner={"name": "median", "startup_trials": 4},
    )  # fmt: skip
    migrate.upgrade(context.settings.database_url)
    environment = {
        **os.environ,
        "MARIO_RUNS_DIR": str(context.settings.runs_dir),
        "MARIO_DATABASE_URL": context.settings.database_url,
        "MLFLOW_TRACKING_URI": context.settings.tracking_uri,
    }
    command = [
        sys.executable,
        "-m",
        "mario.cli",
        "sweep",
        "run",
        "twelve",
        "--config",
        str(path),
    ]
    logs = [(tmp_path / f"worker-{number}.log").open("w+") for number in (0, 1)]
    workers = [
        subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log) for log in logs
    ]
    try:
        store = context.store
        killed_run = _wait_for_a_checkpoint(store, context, workers[0])
        workers[0].kill()
        workers[0].wait()
        assert workers[1].wait(timeout=900) == 0, logs[1].name
        parent, children = runs_below(store, "twelve")
        trials = load_trials("twelve", context.settings.database_url)
        # No trial is lost: twelve are complete. None is doubled: twelve runs, twelve proposals.
        assert Counter(trial.state for trial in trials).keys() <= {
            TrialState.COMPLETE, TrialState.PRUNED,
        }  # fmt: skip
        assert len(trials) == len(children) == 12
        assert {trial.user_attrs["run_id"] for trial in trials} == {run.id for run in children}
        assert len({str(trial.params) for trial in trials}) == 12
        # The trial of the killed worker is one run with two attempts and the episodes of both.
        attempts = {run.id: [a.status for a in run.attempts] for run in children}
        assert attempts.pop(killed_run)[0] == "killed"
        assert all(len(each) == 1 for each in attempts.values())
        assert parent.status == "finished"
        assert check_store(store, runs_dir=context.settings.runs_dir).sound
        client = tracking_client(context.settings.tracking_uri)
        experiment = client.get_experiment_by_name("mario-1-1").experiment_id
        below = client.search_runs(
            [experiment], f"tags.`mlflow.parentRunId` = '{parent.mlflow_run_id}'"
        )
        assert len(below) == 12
    finally:
        for worker, log in zip(workers, logs, strict=True):
            worker.kill()
            worker.wait()
            log.close()


def _wait_for_a_checkpoint(
    store: ExperimentStore, context: JobContext, worker: subprocess.Popen[Any]
) -> str:
    """Wait until a worker has a checkpoint of a run that has not ended; returns the run's id."""
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline:
        assert worker.poll() is None
        for run in store.runs.list(status="running"):
            mine = run.attempts[-1].pid == worker.pid and run.algorithm != "sweep"
            if mine and any((context.settings.run_dir(run.id) / "checkpoints").glob("[!.]*")):
                return run.id
        time.sleep(0.1)
    raise AssertionError("no trial got as far as a checkpoint")
