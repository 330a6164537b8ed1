"""QR-DQN through the whole loop: trained, resumed, registered, judged, promoted and served."""

from __future__ import annotations

import re
import threading
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from mario.cli.main import app
from mario.client.client import MarioClient
from mario.jobs.context import JobContext, JobSettings
from mario.jobs.train import train_run
from mario.policy.onnx import OnnxPolicy
from mario.training.checkpoint import list_checkpoints
from mario.training.sinks import Progress
from mario.training.trainer import train
from serving.launcher import running
from tests.support.golden import checkpoint_digest
from tests.support.onnx_networks import random_observations
from tests.support.policies import write_odds_policy
from tests.support.serving_registry import following
from tests.support.store_rows import MODEL, verdict
from tests.support.training_runs import QRDQN, small_config

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

#: With this seed the network settles on an action that goes right; the champion stands still.
CONFIG = small_config(
    QRDQN, seed=11, total_steps=600, game={"max_steps": 100},
    checkpoint={"every_steps": 1_000, "keep": 2}, selection={"units": 0},
    sinks={"mlflow": False, "prometheus": False},
    # One action in nearly every step is what a few hundred steps teach.
    gate={"primary": "progress", "max_units": 60, "max_action_share": 1.0,
          "max_duplicate_share": 1.0, "max_latency_ratio": 1_000.0},
)  # fmt: skip


def mario(context: JobContext, *arguments: str) -> str:
    """Run `mario ARGUMENTS` in this process on the context's folder."""
    environment = dict.fromkeys(("MARIO_DATABASE_URL", "MLFLOW_TRACKING_URI"))
    done = CliRunner().invoke(
        app, arguments, env={**environment, "MARIO_RUNS_DIR": str(context.settings.runs_dir)}
    )
    assert done.exit_code == 0, (done.output, done.exception)
    return done.output


def train_in_two_attempts(context: JobContext) -> str:
    """Train, with a stop in the middle; return the run's id."""
    stop = threading.Event()

    def stop_midway(progress: Progress) -> None:
        if progress.total_steps >= 300:
            stop.set()

    begun = train_run(CONFIG, context, stop=stop, on_progress=stop_midway)
    assert begun.result.status == "interrupted"
    finished = train_run(CONFIG, context, resume=begun.run_id)
    assert (finished.result.status, finished.result.total_steps) == ("finished", 600)
    return begun.run_id


def test_qrdqn_from_training_to_a_served_version(tmp_path: Path) -> None:
    with JobContext(JobSettings.embedded(tmp_path / "runs")) as context:
        run_id = train_in_two_attempts(context)
        whole = train(CONFIG, tmp_path / "whole")
        last = list_checkpoints(context.settings.run_dir(run_id) / "checkpoints")[0]
        assert whole.last is not None
        assert checkpoint_digest(last) == checkpoint_digest(whole.last)

        registry = context.registry
        weak = write_odds_policy(tmp_path / "weak", [1.0] + [1e-6] * 11)
        first = registry.register(MODEL, weak.folder)
        assert first.version == 1
        by_hand = verdict(registry.store, (1, first.digest), (None, "random:80:4"))
        registry.promote(MODEL, 1, verdict_id=by_hand, promoted_by="test")

        assert "2" in mario(context, "register", run_id)
        (tmp_path / "config.yaml").write_text(CONFIG.to_yaml())
        said = mario(context, "gate", "2", "--config", str(tmp_path / "config.yaml"))
        found = re.search(r"mario promote (\S+)", said)
        assert found, said
        mario(context, "promote", found[1])

        policy = OnnxPolicy(registry.download(registry.resolve(MODEL, 2), tmp_path / "version"))
        observations = random_observations(3)
        with (
            running(following(registry, tmp_path / "cache"), ready_seconds=120) as url,
            MarioClient(url) as client,
        ):
            answer = client.predict(observations, mode="greedy")
        assert answer.version == "2"
        expected = policy.act(observations, selection="greedy")
        np.testing.assert_array_equal(answer.actions, expected.actions)
