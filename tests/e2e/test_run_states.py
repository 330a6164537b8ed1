"""However a run ends, `mario store check` and MLflow say what it was; real processes."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from mario.jobs.context import JobSettings
from mario.store.store import ExperimentStore
from mario.tracking.mlflow_client import tracking_client
from tests.support.chaos import Trainer
from tests.support.training_runs import PPO, small_config

#: What a run that is told to end may take.
END_SECONDS = 10

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


@pytest.fixture
def settings(tmp_path: Path) -> JobSettings:
    return JobSettings.embedded(tmp_path / "runs")


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "states.yaml"
    path.write_text(small_config(name="states", collapse={"action": "stop"}).to_yaml())
    return path


def tracked(settings: JobSettings, run_id: str) -> tuple[str, str]:
    """MLflow's own status of a run, and the exact word in its tag."""
    with ExperimentStore.open(settings.database_url) as store:
        mlflow_run = store.runs.get(run_id).mlflow_run_id
    assert mlflow_run is not None
    run = tracking_client(settings.tracking_uri).get_run(mlflow_run)
    return run.info.status, run.data.tags["mario.status"]


def test_every_end_reads_as_what_it_was(
    settings: JobSettings, config: Path, tmp_path: Path
) -> None:
    def trainer(name: str, *changes: str) -> Trainer:
        found = Trainer(config, settings, tmp_path / f"{name}.log", *changes)
        found.ensure_running()
        found.wait_for_run()
        return found

    finished = trainer("finished")
    assert finished.finish() == 0, finished.tail()

    endless = ("total_steps=100000000", "selection.units=0")
    interrupted = trainer("interrupted", *endless)
    interrupted.wait_for_checkpoints(1)
    interrupted.ask_to_end()
    asked = time.monotonic()
    assert interrupted.finish() == 130, interrupted.tail()
    assert time.monotonic() - asked < END_SECONDS
    assert f"go on with: mario train --resume {interrupted.run_id}" in interrupted.tail()

    killed = trainer("killed", *endless)
    killed.wait_for_checkpoints(1)
    killed.kill()

    collapsed = trainer("collapsed", "algorithm.learning_rate=0.5", "total_steps=6400")
    # These weights are ruined beyond export; the run is a collapse all the same.
    assert collapsed.finish() == 3, collapsed.tail()

    resumed = trainer("resumed", f"algorithm.n_epochs={PPO['n_epochs'] * 20}")
    resumed.wait_for_checkpoints(1)
    resumed.kill()
    resumed.ensure_running()
    assert resumed.finish() == 0, resumed.tail()

    check = finished.mario("store", "check", "--replay")
    assert check.returncode == 0, check.stdout + check.stderr
    assert "every invariant holds" in check.stdout
    lines = {line.split()[0]: line for line in check.stdout.splitlines() if "run-" in line}
    assert "  finished, " in lines[finished.run_id]
    assert "  interrupted" in lines[interrupted.run_id]
    assert "  killed (its process is gone)" in lines[killed.run_id] or (
        "  killed, " in lines[killed.run_id]
    )
    assert "  collapsed (" in lines[collapsed.run_id]
    assert "  finished, resumed 1x after killed, " in lines[resumed.run_id]

    assert tracked(settings, finished.run_id) == ("FINISHED", "finished")
    assert tracked(settings, interrupted.run_id) == ("KILLED", "interrupted")
    assert tracked(settings, killed.run_id) == ("KILLED", "killed")
    assert tracked(settings, collapsed.run_id)[0] == "FAILED"
    assert tracked(settings, collapsed.run_id)[1] in ("collapsed", "diverged")
    assert tracked(settings, resumed.run_id) == ("FINISHED", "finished")

    # What killed it is known; going on with it is one command, and MLflow then says so.
    interrupted.ensure_running()
    interrupted.wait_for_checkpoints(1)
    interrupted.ask_to_end()
    assert interrupted.finish() == 130, interrupted.tail()
    with ExperimentStore.open(settings.database_url) as store:
        attempts = store.runs.get(interrupted.run_id).attempts
        assert [attempt.status for attempt in attempts] == ["interrupted", "interrupted"]
        assert attempts[1].start_steps == attempts[0].end_steps
