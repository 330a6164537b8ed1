"""A run is told to end while PostgreSQL, MLflow and W&B hang: it ends in time, nothing is lost.

A server that is dead refuses connections at once; one that hangs takes them and never answers,
which is what makes a program wait. Real servers, made to hang by SIGSTOP to all their processes.
"""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from mario.config.experiment import ExperimentConfig
from mario.jobs.context import JobSettings
from mario.store.store import ExperimentStore
from mario.tracking.mlflow_client import tracking_client
from mario.training.checkpoint import list_checkpoints, read_checkpoint
from mario.training.run_folder import CHECKPOINTS_FOLDER
from tests.support.chaos import ROOT, Trainer
from tests.support.mlflow_server import MlflowServer
from tests.support.postgres import PostgresServer
from tests.support.training_runs import DQN, PPO, small_config

#: What a run that is told to end may take, whatever its servers do.
END_SECONDS = 10

SINKS = {"mlflow": True, "prometheus": True, "tensorboard": True, "wandb": "online"}

#: `mario`, but that training waits in its first update until a file is there.
HELD = """
import os, time
from pathlib import Path
from mario.cli.main import main
from mario.cli.terminal import TrainingDisplay

show = TrainingDisplay.progress

def progress(self, progress):
    show(self, progress)
    while not Path(os.environ["HELD_UNTIL"]).exists():
        time.sleep(0.05)

TrainingDisplay.progress = progress
main()
"""

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


class HeldTrainer(Trainer):
    """A trainer that goes on with its second update when it is let."""

    def ensure_running(self) -> None:
        command = [sys.executable, "-c", HELD, "train", "--config", str(self._config)]
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                command, cwd=ROOT, env=self.environment, stdout=log, stderr=log,
                start_new_session=True,
            )  # fmt: skip


class Servers:
    """Both servers of the full stack, which hang and go on together."""

    def __init__(self, postgres: PostgresServer, mlflow: MlflowServer) -> None:
        self._both = (postgres, mlflow)

    def hang(self) -> None:
        for server in self._both:
            server.hang()

    def go_on(self) -> None:
        for server in self._both:
            server.go_on()


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as opened:
        yield opened


def tracked_run(settings: JobSettings, run_id: str) -> str:
    """Wait until the MLflow run is known, so that connections to both servers stand."""
    deadline = time.monotonic() + 120
    while True:
        with ExperimentStore.open(settings.database_url) as store:
            known = store.runs.get(run_id).mlflow_run_id
        if known is not None:
            return known
        assert time.monotonic() < deadline, "MLflow was never told of the run"
        time.sleep(0.2)


def end_while_they_hang(trainer: Trainer, servers: Servers) -> float:
    """Let the servers hang, train on, send SIGTERM; the seconds until the process was gone."""
    servers.hang()
    trainer.wait_for_checkpoints(2)  # training goes on without them
    trainer.ask_to_end()
    asked = time.monotonic()
    code = trainer.finish()
    seconds = time.monotonic() - asked
    servers.go_on()
    assert code == 130, trainer.tail()
    return seconds


def told_by_the_checkpoint(trainer: Trainer) -> tuple[list[int], int, int]:
    """What must have been recorded: episodes of each environment, updates, agent steps."""
    newest = list_checkpoints(trainer.folder / CHECKPOINTS_FOLDER)[0]
    content = read_checkpoint(newest)
    values: Any = content.values
    episodes = [int(count) for count in content.arrays["env_episodes"]]
    return episodes, values["trainer"]["update"], values["counters"]["num_timesteps"]


def prepare(
    config: ExperimentConfig,
    postgres_server: PostgresServer,
    stack: ExitStack,
    tmp_path: Path,
    kind: type[Trainer] = Trainer,
) -> tuple[Trainer, Servers, MlflowServer]:
    """Both servers with a database, and the trainer, which is not started yet."""
    # Weights & Biases is not to be had here: a socket that never answers is what hangs for it.
    never = stack.enter_context(socket.socket())
    never.bind(("127.0.0.1", 0))
    never.listen(64)
    mlflow = MlflowServer(tmp_path / "mlflow")
    mlflow.start(wait=False)
    stack.callback(mlflow.kill)
    name = postgres_server.create_database()
    settings = JobSettings(tmp_path / "runs", postgres_server.url(name), mlflow.uri)
    file = tmp_path / "hung.yaml"
    file.write_text(config.to_yaml())
    trainer = kind(
        file, settings, tmp_path / "trainer.log",
        environment={
            "WANDB_BASE_URL": f"http://127.0.0.1:{never.getsockname()[1]}",
            "WANDB_API_KEY": "a" * 40,
            "HELD_UNTIL": str(tmp_path / "go"),
        },
    )  # fmt: skip
    servers = Servers(postgres_server, mlflow)
    stack.callback(trainer.stop)
    stack.callback(servers.go_on)
    upgraded = trainer.mario("store", "upgrade")
    assert upgraded.returncode == 0, upgraded.stderr
    mlflow.wait()
    return trainer, servers, mlflow


@pytest.mark.parametrize("algorithm", [PPO, DQN], ids=["ppo", "dqn"])
def test_told_to_end_while_both_servers_hang(
    algorithm: dict[str, Any],
    postgres_server: PostgresServer,
    stack: ExitStack,
    tmp_path: Path,
    record_property: Any,
) -> None:
    config = small_config(
        algorithm, name="hung", total_steps=10_000_000,
        checkpoint={"every_steps": 1_024, "keep": 3}, selection={"units": 0}, sinks=SINKS,
    )  # fmt: skip
    trainer, servers, mlflow = prepare(config, postgres_server, stack, tmp_path)
    settings = trainer.settings
    trainer.ensure_running()
    trainer.wait_for_run()
    mlflow_run = tracked_run(settings, trainer.run_id)
    took = [end_while_they_hang(trainer, servers)]

    # The next start brings in what the journals kept, and goes on where the checkpoint is.
    trainer.ensure_running()
    trainer.wait_for_checkpoints(1)
    took.append(end_while_they_hang(trainer, servers))
    record_property("seconds", [round(each, 1) for each in took])
    assert max(took) < END_SECONDS, took

    checked = trainer.mario("store", "check", "--replay")
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert "every invariant holds" in checked.stdout
    assert "not delivered yet" not in checked.stdout
    episodes, updates, steps = told_by_the_checkpoint(trainer)
    assert min(episodes) > 0
    with ExperimentStore.open(settings.database_url) as store:
        run = store.runs.get(trainer.run_id)
        stored = defaultdict(list)
        for row in store.runs.episodes(trainer.run_id):
            stored[row.env_index].append(row.episode_index)
        samples = [row.update_index for row in store.runs.health_samples(trainer.run_id)]
    assert run.status == "interrupted"
    assert [attempt.status for attempt in run.attempts] == ["interrupted", "interrupted"]
    assert run.attempts[1].start_steps == run.attempts[0].end_steps
    assert run.attempts[1].end_steps == steps
    for index, count in enumerate(episodes):
        # Those of steps that a stop interrupted may come beside them: they will come again.
        assert sorted(stored[index])[:count] == list(range(count))
    assert samples == list(range(1, updates + 1))

    client = tracking_client(mlflow.uri)
    found = client.get_run(mlflow_run)
    assert (found.info.status, found.data.tags["mario.status"]) == ("KILLED", "interrupted")
    history = client.get_metric_history(mlflow_run, "health/update")
    assert {int(metric.value) for metric in history} == set(range(1, updates + 1))


@pytest.mark.parametrize("later_seconds", [0, 25], ids=["sinks", "policy"])
def test_told_to_end_in_its_last_phase_while_both_servers_hang(
    later_seconds: int,
    postgres_server: PostgresServer,
    stack: ExitStack,
    tmp_path: Path,
    record_property: Any,
) -> None:
    """Trained to the end: its sinks wait for 20 s, and then MLflow is to take the policy, 15 s."""
    config = small_config(
        name="hung", total_steps=1_280, checkpoint={"every_steps": 10_000}, selection={"units": 0},
        sinks=SINKS,
    )  # fmt: skip
    trainer, servers, mlflow = prepare(config, postgres_server, stack, tmp_path, HeldTrainer)
    trainer.ensure_running()
    trainer.wait_for_run()
    mlflow_run = tracked_run(trainer.settings, trainer.run_id)
    servers.hang()
    (tmp_path / "go").touch()
    trainer.wait_for_checkpoints(1)  # the last: all is trained
    time.sleep(later_seconds)
    assert trainer.alive, trainer.tail()
    trainer.ask_to_end()
    asked = time.monotonic()
    code = trainer.finish()
    seconds = time.monotonic() - asked
    servers.go_on()
    record_property("seconds", round(seconds, 1))
    assert code == 0, trainer.tail()
    assert seconds < END_SECONDS

    checked = trainer.mario("store", "check", "--replay")
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert "not delivered yet" not in checked.stdout
    with ExperimentStore.open(trainer.settings.database_url) as store:
        run = store.runs.get(trainer.run_id)
        samples = [row.update_index for row in store.runs.health_samples(trainer.run_id)]
    assert (run.status, run.attempts[0].end_steps) == ("finished", 1_280)
    assert samples == list(range(1, 21))
    found = tracking_client(mlflow.uri).get_run(mlflow_run)
    assert (found.info.status, found.data.tags["mario.status"]) == ("FINISHED", "finished")
    # Nor is the policy lost: it was in the journal, too.
    assert found.data.tags["mario.policy"].startswith(str(trainer.folder))
