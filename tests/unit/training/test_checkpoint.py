"""Checkpoints: complete or absent, verified, pruned; a broken one is skipped for an older one."""

from __future__ import annotations

import errno
import logging
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mario.errors import CheckpointError
from mario.training.checkpoint import (
    ARRAYS_FILE,
    STATE_FILE,
    TENSORS_FILE,
    CheckpointContent,
    checkpoint_name,
    list_checkpoints,
    load_latest,
    prune,
    read_checkpoint,
    write_checkpoint,
)


def content(number: int) -> CheckpointContent:
    return CheckpointContent(
        {"number": number, "nested": {"a": [1, 2.5, None]}},
        {"policy": {"weight": torch.full((2, 3), float(number))}, "lr": 0.1},
        {"state": np.arange(number + 1, dtype=np.uint32)},
    )


def write(folder: Path, number: int) -> Path:
    return write_checkpoint(folder / checkpoint_name(number), number, content(number)).path


def test_round_trip(tmp_path: Path) -> None:
    got = read_checkpoint(write(tmp_path, 3))
    assert got.values == {"number": 3, "nested": {"a": [1, 2.5, None]}}
    assert torch.equal(got.tensors["policy"]["weight"], torch.full((2, 3), 3.0))
    assert got.arrays["state"].tolist() == [0, 1, 2, 3]


def test_arrays_are_written_as_numpy_writes_them(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    arrays = {
        "numbers": np.arange(12).reshape(3, 4),
        "one": np.array(3.5),
        "none": np.zeros((0, 5), np.float32),
        "by columns": np.asfortranarray(generator.random((7, 9))),
        "words": np.array(["ab", "c"]),
        "every third": generator.integers(0, 256, (60, 3, 84, 84), dtype=np.uint8)[:, -1],
        "flags": np.array([True, False]),
        "big end first": np.arange(3, dtype=">i4"),
    }
    write_checkpoint(tmp_path / "steps-000000000001", 1, CheckpointContent({}, {}, arrays))
    np.savez(tmp_path / "numpy.npz", **{k: np.asarray(v, order="C") for k, v in arrays.items()})
    written = tmp_path / "steps-000000000001" / "arrays.npz"
    assert written.read_bytes() == (tmp_path / "numpy.npz").read_bytes()
    with pytest.raises(ValueError, match="array objects of objects"):
        write_checkpoint(
            tmp_path / "steps-000000000002",
            2,
            CheckpointContent({}, {}, {"objects": np.array([object()])}),
        )
    assert not (tmp_path / "steps-000000000002").exists()


def test_latest_and_prune(tmp_path: Path) -> None:
    assert load_latest(tmp_path) is None
    for number in (5, 1000, 20):
        write(tmp_path, number)
    (tmp_path / ".writing-left-behind").mkdir()
    found = load_latest(tmp_path)
    assert found is not None
    assert found[1].values["number"] == 1000
    prune(tmp_path, 2)
    assert [path.name for path in list_checkpoints(tmp_path)] == [
        checkpoint_name(1000),
        checkpoint_name(20),
    ]
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("name", [STATE_FILE, TENSORS_FILE, ARRAYS_FILE])
@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "delete"])
def test_a_broken_checkpoint_is_skipped_with_a_warning(
    name: str, damage: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write(tmp_path, 1)
    file = write(tmp_path, 2) / name
    data = bytearray(file.read_bytes())
    if damage == "delete":
        file.unlink()
    elif damage == "flip":
        data[len(data) // 2] ^= 0x10
        file.write_bytes(data)
    else:
        file.write_bytes(data[: len(data) // 2] if damage == "cut" else b"")
    with caplog.at_level(logging.WARNING):
        found = load_latest(tmp_path)
    assert found is not None
    assert found[1].values["number"] == 1
    assert "broken checkpoint" in caplog.text


def test_nothing_whole_is_an_error(tmp_path: Path) -> None:
    (write(tmp_path, 1) / TENSORS_FILE).write_bytes(b"no")
    with pytest.raises(CheckpointError, match="none of them whole"):
        load_latest(tmp_path)


def test_a_full_disk_leaves_the_old_one_and_no_rubbish(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, 1)

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(CheckpointError, match="No space left"):
        write(tmp_path, 2)
    monkeypatch.undo()
    assert [path.name for path in tmp_path.iterdir()] == [checkpoint_name(1)]


def test_pickled_objects_are_never_opened(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> Any:
            return (os.mkdir, (str(tmp_path / "sprung"),))

    trapped = CheckpointContent({}, {"policy": Trap()}, {})
    path = write_checkpoint(tmp_path / checkpoint_name(1), 1, trapped).path
    with pytest.raises(CheckpointError):
        read_checkpoint(path)
    assert not (tmp_path / "sprung").exists()


def test_writing_again_replaces(tmp_path: Path) -> None:
    write(tmp_path, 1)
    write_checkpoint(tmp_path / checkpoint_name(1), 1, content(4))
    assert read_checkpoint(tmp_path / checkpoint_name(1)).values["number"] == 4
    assert len(list(tmp_path.iterdir())) == 1
