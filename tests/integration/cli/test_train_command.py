"""One real `mario train`: its output, its rows in the store, its lineage in MLflow.

Once embedded, once with a real PostgreSQL and a real MLflow server.
"""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from mario.config.experiment import load_config
from mario.evaluation.seeds import unit_seed
from mario.jobs.context import JobSettings
from mario.policy.artefact import load_artefact
from mario.store.records import Run
from mario.store.store import ExperimentStore
from mario.tracking.mlflow_client import tracking_client
from mario.training.checkpoint import STATE_FILE
from tests.support.chaos import Trainer
from tests.support.delivered import deliver_all
from tests.support.mlflow_server import MlflowServer
from tests.support.postgres import PostgresServer
from tests.support.training_runs import small_config

pytestmark = pytest.mark.timeout(900)

SELECTIONS = (320, 640)
COMMITTED, CHANGED = "gamma: 0.95\n", "gamma: 0.9\n"


@dataclass(frozen=True)
class Trained:
    """A run that `mario train` finished.

    Attributes:
        trainer: the process that it was.
        commit: the commit that its code was at.
        run: what the store has of it.
    """

    trainer: Trainer
    commit: str
    run: Run

    @property
    def mlflow_run(self) -> Any:
        """The run in MLflow."""
        assert self.run.mlflow_run_id is not None
        return tracking_client(self.trainer.settings.tracking_uri).get_run(self.run.mlflow_run_id)


def changed_repository(folder: Path) -> tuple[Path, str]:
    """Make a repository with one commit and one uncommitted change; returns folder and commit."""

    def git(*arguments: str) -> str:
        command = ["git", "-c", "user.name=t", "-c", "user.email=t@localhost", *arguments]
        return subprocess.run(
            command, cwd=folder, check=True, capture_output=True, text=True
        ).stdout.strip()

    folder.mkdir()
    (folder / "experiment.yaml").write_text(COMMITTED)
    git("init", "--quiet")
    git("add", "experiment.yaml")
    git("commit", "--quiet", "--message", "first")
    (folder / "experiment.yaml").write_text(CHANGED)
    return folder, git("rev-parse", "HEAD")


@pytest.fixture(
    scope="module", params=["embedded", pytest.param("servers", marks=pytest.mark.slow)]
)
def trained(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Trained]:
    folder = tmp_path_factory.mktemp(request.param)
    with ExitStack() as stack:
        settings = JobSettings.embedded(folder / "runs")
        if request.param == "servers":
            postgres: PostgresServer = request.getfixturevalue("postgres_server")
            mlflow = MlflowServer(folder / "mlflow")
            stack.callback(mlflow.kill)
            mlflow.start()
            url = postgres.url(postgres.create_database())
            settings = JobSettings(folder / "runs", url, mlflow.uri)
        config = folder / "small.yaml"
        config.write_text(
            small_config(
                selection={"every_steps": 320, "units": 3},
                evaluation={"action_selection": "sample"},
            ).to_yaml()
        )
        repository, commit = changed_repository(folder / "repository")
        trainer = Trainer(
            config, settings, folder / "train.log",
            environment={"GIT_DIR": str(repository / ".git"), "GIT_WORK_TREE": str(repository)},
        )  # fmt: skip
        stack.callback(trainer.stop)
        upgraded = trainer.mario("store", "upgrade")
        assert upgraded.returncode == 0, upgraded.stderr
        trainer.ensure_running()
        trainer.wait_for_run()
        assert trainer.finish() == 0, trainer.tail()
        deliver_all(settings)  # a new MLflow may be slow to accept its records
        with ExperimentStore.open(settings.database_url) as store:
            run = store.runs.get(trainer.run_id)
        yield Trained(trainer, commit, run)


def test_one_readable_line_for_each_evaluation(trained: Trained) -> None:
    lines = [line for line in trained.trainer.tail().splitlines() if "selection" in line]
    with ExperimentStore.open(trained.trainer.settings.database_url) as store:
        stored = store.runs.selections(trained.run.id)
    assert [row.total_steps for row in stored] == list(SELECTIONS)
    assert len(lines) == len(SELECTIONS)
    for line, row in zip(lines, stored, strict=True):
        match = re.fullmatch(
            r"selection at (\d+) steps: score (0\.\d{3}), furthest x (\d+) px, "
            r"cleared (\d+)% of 3 units( \(best so far\))?",
            line,
        )
        assert match is not None, line
        assert int(match[1]) == row.total_steps
        assert float(match[2]) == pytest.approx(row.score, abs=0.0005)
        assert int(match[3]) == pytest.approx(row.details["mean_furthest_px"], abs=0.5)
        assert int(match[4]) == round(100 * row.details["clear_rate"])
        assert (match[5] is not None) == row.is_best


def test_the_store_has_the_provenance_of_the_run(trained: Trained) -> None:
    run = trained.run
    assert run.git_commit == trained.commit
    assert run.git_diff is not None
    assert f"-{COMMITTED}+{CHANGED}".strip() in run.git_diff
    assert run.library_versions["python"] == platform.python_version()
    for package in ("torch", "stable-baselines3", "numpy", "gym-super-mario-bros", "sqlalchemy"):
        assert run.library_versions[package] == version(package)
    hardware = run.hardware
    assert hardware["machine"] == platform.machine()
    assert hardware["cores"] == os.cpu_count()
    assert hardware["processor"]
    kilobytes = re.search(r"MemTotal:\s+(\d+) kB", Path("/proc/meminfo").read_text())
    assert kilobytes is not None
    assert hardware["memory_bytes"] == 1024 * int(kilobytes[1])
    config = load_config(trained.trainer.folder / "config.yaml")
    assert run.config == config.model_dump(mode="json")
    assert run.config_hash == config.content_hash()
    assert run.status == "finished"


def test_mlflow_has_the_data_of_training_and_selection(trained: Trained) -> None:
    found = {
        given.tags[0].value: given.dataset for given in trained.mlflow_run.inputs.dataset_inputs
    }
    assert found.keys() == {"training", "selection"}
    training, selection = (json.loads(found[name].profile) for name in ("training", "selection"))
    assert (training["levels"], training["seed"], training["environments"]) == (["1-1"], "3", 4)
    assert selection["protocol"] == "mario-eval-v1"
    seeds = [str(unit_seed("selection", "", "1-1", index)) for index in range(3)]
    assert selection["units"] == [["1-1", seed] for seed in seeds]
    assert all("gym-super-mario-bros" in dataset.source for dataset in found.values())


def test_mlflow_links_an_unregistered_run_to_its_policy(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow.artifacts import download_artifacts

    settings, run = trained.trainer.settings, trained.mlflow_run
    kept = load_artefact(trained.trainer.folder / "policy")
    assert run.data.tags["mario.digest"] == kept.digest
    assert run.data.tags["mario.policy"] == str(kept.folder.resolve())
    client = tracking_client(settings.tracking_uri)
    assert client.search_registered_models() == []

    # From the run to its model, and from the model to the run.
    (output,) = run.outputs.model_outputs
    assert output.step == kept.manifest.training_steps
    model = client.get_logged_model(output.model_id)
    assert (model.source_run_id, str(model.status)) == (run.info.run_id, "READY")
    assert model.tags["mario.digest"] == kept.digest
    assert model.tags["mario.run_id"] == trained.run.id
    assert model.tags["mario.git_commit"] == trained.commit
    monkeypatch.setenv("MLFLOW_TRACKING_URI", settings.tracking_uri)  # as a person would
    fetched = download_artifacts(f"models:/{output.model_id}", dst_path=str(tmp_path))
    assert load_artefact(fetched).digest == kept.digest
    assert not (Path(fetched) / "model.zip").exists()  # a pickle is not uploaded

    # And to the checkpoint that it was exported from.
    best = Path(run.data.tags["mario.best_checkpoint"])
    assert best.parent == (trained.trainer.folder / "best").resolve()
    digest, _, _ = (best / STATE_FILE).read_bytes().partition(b"\n")
    assert run.data.tags["mario.best_checkpoint_sha256"] == digest.decode()
    assert int(run.data.tags["mario.best_steps"]) == output.step
