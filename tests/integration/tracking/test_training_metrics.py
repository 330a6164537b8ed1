"""Real training runs on the metrics page: every metric of a dashboard or an alert is set."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from mario.jobs.context import JobContext, JobSettings
from mario.jobs.sinks import open_sinks
from mario.telemetry.instruments import InstrumentSet
from mario.telemetry.names import STORE_METRICS, TRAINING_METRICS
from mario.tracking.prometheus import PrometheusSink
from mario.training.checkpoint import TENSORS_FILE, list_checkpoints
from mario.training.collapse_detector import HealthRules
from mario.training.sinks import TrainingSink
from mario.training.trainer import SelectionScore, train
from tests.support.processes import free_port
from tests.support.store_rows import new_run
from tests.support.training_runs import DQN, PPO, QRDQN, Listener, small_config

#: What an algorithm does not have, and what only shows once a rule of the detector has held.
OTHERS = {
    "ppo": {"q_value_max", "exploration_ratio"},
    "dqn": {"approximate_kl", "clip_ratio", "explained_variance", "entropy_ratio"},
    "qrdqn": {"approximate_kl", "clip_ratio", "explained_variance", "entropy_ratio"},
}
SOMETIMES = {"mario_training_health_rule"}


def shown(instruments: InstrumentSet) -> set[str]:
    """Names of the metrics on the page."""
    samples = {
        sample.name for family in instruments.registry.collect() for sample in family.samples
    }
    return {re.sub(r"_(bucket|sum|count|created)$", "", name) for name in samples}


@pytest.mark.parametrize("algorithm", [PPO, DQN, QRDQN], ids=["ppo", "dqn", "qrdqn"])
def test_a_real_run_sets_every_metric(algorithm: dict[str, Any], tmp_path: Path) -> None:
    context = JobContext(JobSettings.embedded(tmp_path / "runs"))
    config = small_config(algorithm, sinks={"mlflow": False})
    store = context.store
    run = store.runs.start(new_run())
    folder = context.settings.run_dir(run.id)
    sinks = open_sinks(config, context, run, folder)
    (page,) = [sink for sink in sinks if isinstance(sink, PrometheusSink)]
    listener = Listener()
    assert train(config, folder, sinks=[*sinks, listener]).status == "finished"
    expected = {metric.name for metric in (*TRAINING_METRICS, *STORE_METRICS)} - SOMETIMES
    expected -= {f"mario_training_{name}" for name in OTHERS[algorithm["name"]]}
    missing = expected - shown(page._instruments)
    # In this run no rows are replayed and no batch is refused.
    assert missing <= {"mario_store_journal_replayed_rows_total"}
    get = page._instruments.registry.get_sample_value
    labels = {"run": run.id}
    assert get("mario_training_steps_total", labels) == 640
    # The seconds of rollouts and of updates are both known, and differ.
    for name in ("rollout", "update"):
        spent = get(f"mario_training_{name}_seconds_sum", labels)
        assert spent is not None
        assert spent > 0
    assert get("mario_training_learning_rate", labels) == pytest.approx(
        0 if algorithm is PPO else config.algorithm.learning_rate, abs=5e-5
    )
    lengths = get("mario_training_episode_steps", labels)
    assert lengths is not None
    assert 1 <= lengths <= 12
    assert get("mario_training_clear_ratio", labels) == 0
    # Metrics with alerts start at 0, so that the first failure is an increase.
    for sink in ("store", "mlflow", "tensorboard", "wandb"):
        assert get("mario_training_sink_errors_total", {**labels, "sink": sink}) == 0
    written = len(listener.checkpoints)
    for result, count in (("written", written), ("failed", 0), ("skipped", 0)):
        assert get("mario_training_checkpoints_total", {**labels, "result": result}) == count
    assert get("mario_training_checkpoint_seconds_count", labels) == written


class FailingTracker(TrainingSink):
    """Takes the place of Weights & Biases, and raises."""

    name = "wandb"

    def on_selection(self, selection: Any) -> None:
        raise OSError("no network")


class FullDisk(TrainingSink):
    """Cannot make anything durable."""

    def flush(self) -> bool:
        return False


def test_failures_are_counted(tmp_path: Path) -> None:
    instruments = InstrumentSet()

    def count(name: str, **labels: str) -> float | None:
        return instruments.registry.get_sample_value(
            f"mario_training_{name}", {"run": "r", **labels}
        )

    config = small_config(
        collapse={"action": "rollback", "max_rollbacks": 2},
        selection={"every_steps": 64, "units": 1},
    )
    sinks = [PrometheusSink("r", instruments), FailingTracker(), FullDisk()]
    result = train(
        config, tmp_path / "run", sinks=sinks, select=lambda _: SelectionScore(0.5),
        # Thresholds under which every run counts as collapsed.
        rules=HealthRules(dominant_share=0.0, patience=3, warmup_updates=1),
    )  # fmt: skip
    assert result.status == "collapsed"
    assert count("rollbacks_total") == result.rollbacks == 2
    selections = count("sink_errors_total", sink="wandb")
    assert selections is not None
    assert selections >= 2
    refused = count("checkpoints_total", result="failed")
    assert refused is not None
    assert refused >= 1
    assert count("health", state="collapsed") == 1

    train(small_config(), tmp_path / "other", sinks=[PrometheusSink("o", instruments)])
    (newest, *_) = list_checkpoints(tmp_path / "other" / "checkpoints")
    (newest / TENSORS_FILE).write_bytes(b"half")
    train(small_config(), tmp_path / "other", resume=True, sinks=[PrometheusSink("o", instruments)])
    skipped = {"run": "o", "result": "skipped"}
    assert instruments.registry.get_sample_value("mario_training_checkpoints_total", skipped) == 1


def test_an_unreachable_mlflow_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    embedded = JobContext(JobSettings.embedded(tmp_path / "runs"))
    away = JobContext(
        JobSettings(
            embedded.settings.runs_dir,
            embedded.settings.database_url,
            f"http://127.0.0.1:{free_port()}",
        )
    )
    config = small_config()
    store = away.store
    run = store.runs.start(new_run())
    folder = away.settings.run_dir(run.id)
    sinks = open_sinks(config, away, run, folder)
    (page,) = [sink for sink in sinks if isinstance(sink, PrometheusSink)]
    assert train(config, folder, sinks=sinks).status == "finished"
    errors = page._instruments.registry.get_sample_value(
        "mario_training_sink_errors_total", {"run": run.id, "sink": "mlflow"}
    )
    assert errors is not None
    assert errors >= 1
