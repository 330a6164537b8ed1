"""Twenty disturbances of one training run: it ends as if none had happened, and nothing is lost.

The trainer is `mario train` as a process, with a real PostgreSQL and a real MLflow server, on a
small disk of its own. At moments drawn by seed the trainer, the database or the tracking server
gets SIGKILL, the disk is filled until the kernel answers ENOSPC, or a checkpoint is cut in half.
"""

from __future__ import annotations

import dataclasses
import random
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path

import pytest

from mario.config.experiment import ExperimentConfig
from mario.jobs.context import JobSettings
from mario.store.records import EpisodeEntry
from mario.store.store import ExperimentStore
from mario.tracking.mlflow_client import tracking_client
from mario.tracking.store import StoreSink
from mario.training.checkpoint import list_checkpoints
from mario.training.run_folder import CHECKPOINTS_FOLDER
from mario.training.trainer import train
from tests.support.chaos import Trainer
from tests.support.mlflow_server import MlflowServer
from tests.support.postgres import PostgresServer
from tests.support.small_disk import SmallDisk, can_mount, small_disk
from tests.support.training_runs import Listener, small_config, weights_digest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]

SEED = 20
EVENTS = (
    ["trainer"] * 7 + ["trainer starting"] * 2 + ["trainer and a damaged checkpoint"]
    + ["postgresql"] * 3 + ["postgresql and trainer"]
    + ["mlflow"] * 2 + ["mlflow and trainer"]
    + ["disk"] * 2 + ["disk and trainer"]
)  # fmt: skip
UPDATES, STEPS_AN_UPDATE = 512, 128
#: What a trainer says on a full disk: the checkpoint finds no room, or the journal before it.
REFUSED_CHECKPOINT = (
    "checkpoint not written (No space left on device)",
    "not written, the episodes before it are not on the disk",
)


def chaos_config() -> ExperimentConfig:
    """Long enough for twenty disturbances on a fast machine; a checkpoint every other update."""
    return small_config(
        {"name": "ppo", "n_steps": STEPS_AN_UPDATE // 4, "batch_size": 32, "n_epochs": 6,
         "learning_rate_schedule": "linear", "clip_range_schedule": "linear",
         "entropy_schedule": "linear"},
        name="chaos",
        total_steps=UPDATES * STEPS_AN_UPDATE,
        checkpoint={"every_steps": 2 * STEPS_AN_UPDATE, "keep": 3},
        selection={"every_steps": 32 * STEPS_AN_UPDATE, "units": 1},
        sinks={"mlflow": True, "prometheus": True, "tensorboard": True},
    )  # fmt: skip


class Chaos:
    """The run's surroundings, and each kind of disturbance."""

    def __init__(
        self, trainer: Trainer, postgres: PostgresServer, mlflow: MlflowServer, disk: SmallDisk
    ) -> None:
        self.trainer, self.postgres, self.mlflow, self.disk = trainer, postgres, mlflow, disk
        self.chance = random.Random(SEED)

    def disturb(self, event: str) -> None:
        """Let one thing happen, at a moment drawn by chance."""
        if event == "trainer starting":
            if self.trainer.alive:
                self.trainer.kill()
            self.trainer.ensure_running()
            time.sleep(self.chance.uniform(0, 6))
            self.trainer.kill()
            return
        self.trainer.ensure_running()
        self._some_time()
        actions: dict[str, Callable[[], None]] = {
            "trainer": self.trainer.kill,
            "trainer and a damaged checkpoint": self._trainer_and_checkpoint,
            "postgresql": self._postgresql,
            "postgresql and trainer": lambda: self._postgresql(and_trainer=True),
            "mlflow": self._mlflow,
            "mlflow and trainer": lambda: self._mlflow(and_trainer=True),
            "disk": self._disk,
            "disk and trainer": lambda: self._disk(and_trainer=True),
        }
        actions[event]()

    def _some_time(self) -> None:
        self.trainer.wait_for_checkpoints(self.chance.randint(1, 2))
        time.sleep(self.chance.uniform(0, 0.3))

    def _trainer_and_checkpoint(self) -> None:
        self.trainer.kill()
        self.trainer.damage_newest_checkpoint()
        self.trainer.ensure_running()
        self.trainer.wait_for_words("skipping a broken checkpoint")
        self.trainer.wait_for_checkpoints(1)  # by then it has been written again

    def _postgresql(self, and_trainer: bool = False) -> None:
        self.postgres.kill()
        self.trainer.wait_for_checkpoints(1)  # training goes on without it
        if and_trainer:
            self.trainer.kill()
        self.postgres.start()

    def _mlflow(self, and_trainer: bool = False) -> None:
        self.mlflow.kill()
        if and_trainer:
            self.trainer.kill()
            self.trainer.ensure_running()  # starts and trains without it
        self.trainer.wait_for_checkpoints(1)
        self.mlflow.start(wait=False)

    def _disk(self, and_trainer: bool = False) -> None:
        self.disk.fill()
        self.trainer.wait_for_words(*REFUSED_CHECKPOINT)
        if and_trainer:
            self.trainer.kill()
            self.trainer.ensure_running()  # starts and trains on the full disk
            self.trainer.wait_for_words(*REFUSED_CHECKPOINT)
        self.disk.free()


@pytest.fixture
def chaos(postgres_server: PostgresServer, tmp_path: Path) -> Iterator[Chaos]:
    if not can_mount():
        pytest.skip("filling a disk for real needs to mount one: run as root")
    name = postgres_server.create_database()
    config = tmp_path / "chaos.yaml"
    config.write_text(chaos_config().to_yaml())
    mlflow = MlflowServer(tmp_path / "mlflow")
    with ExitStack() as stack:
        disk = stack.enter_context(small_disk(tmp_path / "runs", megabytes=40))
        settings = JobSettings(disk.path, postgres_server.url(name), mlflow.uri)
        trainer = Trainer(config, settings, tmp_path / "trainer.log")
        upgraded = trainer.mario("store", "upgrade")
        assert upgraded.returncode == 0, upgraded.stderr
        mlflow.start(wait=False)
        stack.callback(mlflow.kill)
        stack.callback(trainer.stop)
        yield Chaos(trainer, postgres_server, mlflow, disk)


def timeless(row: EpisodeEntry) -> EpisodeEntry:
    """The row without what may differ: which attempt wrote it, and when."""
    return dataclasses.replace(row, attempt=0, ended_at=datetime(2000, 1, 1, tzinfo=UTC))


def test_twenty_disturbances(chaos: Chaos, tmp_path: Path) -> None:
    whole = Listener()
    undisturbed = train(chaos_config(), tmp_path / "undisturbed", sinks=[whole])
    assert undisturbed.status == "finished"

    assert len(EVENTS) == 20
    trainer, events = chaos.trainer, list(EVENTS)
    chaos.chance.shuffle(events)
    trainer.ensure_running()
    trainer.wait_for_run()
    for event in events:
        chaos.disturb(event)
    trainer.ensure_running()
    assert trainer.finish() == 0, trainer.tail()
    chaos.mlflow.wait()

    # The same weights, byte for byte.
    final = list_checkpoints(trainer.folder / CHECKPOINTS_FOLDER)[0]
    assert weights_digest(final) == weights_digest(undisturbed.last)
    assert not list(trainer.folder.glob("**/.writing-*"))

    checked = trainer.mario("store", "check", "--replay")
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert "every invariant holds" in checked.stdout
    assert "notice" not in checked.stdout
    assert f"{trainer.run_id}  chaos  finished, resumed" in checked.stdout

    # Every finished episode exactly once, value for value.
    sink = StoreSink(None, trainer.run_id, 0, tmp_path)  # type: ignore[arg-type] # writes nothing
    with ExperimentStore.open(trainer.settings.database_url) as store:
        stored = [timeless(row) for row in store.runs.episodes(trainer.run_id)]
        expected = sorted((timeless(sink._episode(e)) for e in whole.episodes),
                          key=lambda row: (row.env_index, row.episode_index))  # fmt: skip
        assert stored == expected
        assert len(stored) == undisturbed.episodes
        run = store.runs.get(trainer.run_id)
        samples = store.runs.health_samples(trainer.run_id)
        assert [row.update_index for row in samples] == list(range(1, UPDATES + 1))
        # A killed start may have ended before it had entered its attempt.
        assert trainer.starts - EVENTS.count("trainer starting") <= len(run.attempts)
        assert {attempt.status for attempt in run.attempts[:-1]} == {"killed"}
        begun = [attempt.start_steps for attempt in run.attempts]
        assert begun[0] == 0
        assert len(set(begun)) > 5, "it went on from many different checkpoints"
        assert all(steps % (2 * STEPS_AN_UPDATE) == 0 for steps in begun)

    # MLflow: one run, finished, with a point for every update.
    client = tracking_client(trainer.settings.tracking_uri)
    (experiment,) = [e for e in client.search_experiments() if e.name == "mario-1-1"]
    (tracked,) = client.search_runs([experiment.experiment_id])
    assert tracked.info.run_id == run.mlflow_run_id
    assert (tracked.info.status, tracked.data.tags["mario.status"]) == ("FINISHED", "finished")
    history = client.get_metric_history(tracked.info.run_id, "health/update")
    assert {int(metric.value) for metric in history} == set(range(1, UPDATES + 1))
