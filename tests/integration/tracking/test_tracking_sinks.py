"""TensorBoard and Weights & Biases (offline): a real run is read back from their files."""

from __future__ import annotations

import socket
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from mario.tracking.tensorboard import TensorBoardSink
from mario.tracking.wandb import _WAITING, WandbSink
from mario.training.sinks import Progress
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

    # Another process writes wandb's file and may lag behind on a busy machine.
    deadline = time.monotonic() + 60
    steps, exits = read()
    while not exits and time.monotonic() < deadline:
        time.sleep(0.2)
        steps, exits = read()
    assert steps == [sample.total_steps for sample, _ in listener.health]
    assert exits == 1


def test_a_hanging_wandb_does_not_delay_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a server that never answers, wandb takes over a minute to open a run."""
    pytest.importorskip("wandb")
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen(64)
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{server.getsockname()[1]}")
        monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
        (tmp_path / "files").mkdir()
        sink = WandbSink("run-test", tmp_path / "files", "online")
        listener = Listener()
        stop = threading.Event()

        def end_in_the_middle(progress: Progress) -> None:
            if progress.total_steps >= 320:
                stop.set()

        before = time.monotonic()
        result = train(
            small_config(), tmp_path / "run", sinks=[sink, listener], stop=stop,
            progress=end_in_the_middle,
        )  # fmt: skip
        assert result.status == "interrupted"
        assert len(listener.health) == 5
        # A bound against hanging, not a measurement: wandb itself waits for 90 s and more.
        assert time.monotonic() - before < 60
        # The queue is bounded; each dropped record is counted as a failure.
        for _ in range(_WAITING):
            with suppress(ConnectionError):
                sink._write({"x": 1.0}, 1)
        with pytest.raises(ConnectionError, match="dropped"):
            sink._write({"x": 1.0}, 1)
