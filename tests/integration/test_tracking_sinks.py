"""TensorBoard and Weights & Biases (offline): a real run is read back from the files they leave."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from mario.jobs.tracking_sinks import TensorBoardSink, WandbSink
from mario.training.trainer import train
from tests.support.training_runs import Listener, small_config

pytest.importorskip("tensorboard")


def test_tensorboard_has_every_update(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    listener = Listener()
    train(small_config(), tmp_path / "run",
          sinks=[TensorBoardSink(tmp_path / "events"), listener])  # fmt: skip
    events = EventAccumulator(str(tmp_path / "events"))
    events.Reload()
    found = {point.step: point.value for point in events.Scalars("health/entropy_ratio")}
    expected = {sample.total_steps: sample.entropy_ratio for sample, _ in listener.health}
    assert found == pytest.approx(expected)
    assert len(events.Scalars("selection/score")) == len(listener.selections)


def test_wandb_offline_has_every_update(tmp_path: Path) -> None:
    pytest.importorskip("wandb")
    from wandb.proto import wandb_internal_pb2
    from wandb.sdk.internal.datastore import DataStore

    (tmp_path / "files").mkdir()
    listener = Listener()
    train(small_config(), tmp_path / "run",
          sinks=[WandbSink("run-test", tmp_path / "files", "offline"), listener])  # fmt: skip
    (path,) = (tmp_path / "files").glob("wandb/offline-run-*/run-run-test.wandb")

    def read() -> tuple[list[int], int]:
        store: Any = DataStore()
        store.open_for_scan(str(path))
        steps, exits = [], 0
        while (data := store.scan_data()) is not None:
            record = wandb_internal_pb2.Record()
            record.ParseFromString(data)
            items = {item.key or ".".join(item.nested_key): item.value_json
                     for item in record.history.item}  # fmt: skip
            if "health/entropy_ratio" in items:
                steps.append(int(items["steps"]))
            exits += record.HasField("exit")
        return steps, exits

    # wandb writes the file in a process of its own, which may lag behind on a busy machine.
    deadline = time.monotonic() + 60
    steps, exits = read()
    while not exits and time.monotonic() < deadline:
        time.sleep(0.2)
        steps, exits = read()
    assert steps == [sample.total_steps for sample, _ in listener.health]
    assert exits == 1
