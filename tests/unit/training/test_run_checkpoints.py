"""Which checkpoints of a run are written, kept and pruned, without a network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mario.errors import CheckpointError
from mario.training.checkpoint import (
    ARRAYS_FILE,
    CheckpointContent,
    list_checkpoints,
    read_checkpoint,
)
from mario.training.checkpoint_retention import RunCheckpoints
from mario.training.sinks import SinkSet
from tests.support.training_runs import Listener


def content(steps: int, best: list[Any] | None = None) -> CheckpointContent:
    return CheckpointContent({"steps": steps, "trainer": {"best": best}}, {}, {})


def steps_in(folder: Path) -> list[int]:
    return [int(path.name.removeprefix("steps-")) for path in list_checkpoints(folder)]


@pytest.fixture
def listener() -> Listener:
    return Listener()


@pytest.fixture
def checkpoints(tmp_path: Path, listener: Listener) -> RunCheckpoints:
    return RunCheckpoints(tmp_path, 2, SinkSet([listener]))


def test_a_point_is_written_once_and_old_ones_are_pruned(
    checkpoints: RunCheckpoints, listener: Listener, tmp_path: Path
) -> None:
    checkpoints.write_held(required=True)
    assert not checkpoints.holds_point
    for steps in (64, 128, 192):
        checkpoints.hold(steps, content(steps))
        checkpoints.write_held()
        checkpoints.write_held(required=True)
    assert checkpoints.holds_point
    assert steps_in(tmp_path / "checkpoints") == [192, 128]
    assert [written.total_steps for written in listener.checkpoints] == [64, 128, 192]
    assert checkpoints.last == list_checkpoints(tmp_path / "checkpoints")[0]
    assert read_checkpoint(checkpoints.last).values["steps"] == 192


def test_a_full_disk_costs_a_checkpoint_unless_it_is_required(
    checkpoints: RunCheckpoints, listener: Listener, tmp_path: Path
) -> None:
    (tmp_path / "checkpoints").write_text("in the way")
    checkpoints.hold(64, content(64))
    checkpoints.write_held()
    assert [incident.kind for incident in listener.incidents] == ["checkpoint_failed"]
    with pytest.raises(CheckpointError, match="not written"):
        checkpoints.write_held(required=True)
    assert checkpoints.last is None


def test_the_best_of_every_checkpoint_that_may_be_resumed_is_kept(
    checkpoints: RunCheckpoints, tmp_path: Path
) -> None:
    for steps in (64, 128, 192, 256):
        checkpoints.save_best(steps, steps / 1000, content(steps))
        best = checkpoints.best
        assert best is not None
        checkpoints.hold(steps, content(steps, [best.path.name, steps, best.score]))
        checkpoints.write_held()
    assert steps_in(tmp_path / "best") == [256, 192]


def test_a_resumed_run_forgets_what_was_found_after_its_checkpoint(
    checkpoints: RunCheckpoints, tmp_path: Path
) -> None:
    for steps in (64, 192):
        checkpoints.save_best(steps, steps / 1000, content(steps))
        assert checkpoints.best is not None
        checkpoints.hold(steps, content(steps, [checkpoints.best.path.name, steps, 0.1]))
        checkpoints.write_held()
    resumed = RunCheckpoints(tmp_path, 2, SinkSet())
    path = list_checkpoints(tmp_path / "checkpoints")[1]
    resumed.resume_from(path, 64, ("steps-000000000064", 64, 0.064))
    assert steps_in(tmp_path / "best") == [64]
    assert resumed.last == path
    assert resumed.best is not None
    assert (resumed.best.total_steps, resumed.best.score) == (64, 0.064)
    assert resumed.read_best("cpu") is not None


def test_a_damaged_best_is_reported_and_dropped(
    checkpoints: RunCheckpoints, listener: Listener, tmp_path: Path
) -> None:
    checkpoints.save_best(64, 0.5, content(64))
    assert checkpoints.best is not None
    (checkpoints.best.path / ARRAYS_FILE).write_bytes(b"half")
    assert checkpoints.read_best("cpu") is None
    resumed = RunCheckpoints(tmp_path, 2, SinkSet([listener]))
    resumed.resume_from(tmp_path / "checkpoints" / "steps-000000000064", 64,
                        (checkpoints.best.path.name, 64, 0.5))  # fmt: skip
    assert resumed.best is None
    assert [incident.kind for incident in listener.incidents] == ["checkpoint_skipped"]
