"""Whether a run in a folder can be resumed, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mario.config.experiment import ExperimentConfig
from mario.config.identities import identity_of_run
from mario.errors import CheckpointError, TrainingError
from mario.training.checkpoint import (
    STATE_FILE,
    CheckpointContent,
    checkpoint_name,
    list_checkpoints,
    write_checkpoint,
)
from mario.training.run_folder import check_resumable, find_saved
from tests.support.training_runs import small_config

CONFIG = small_config()


def save(folder: Path, steps: int, config: ExperimentConfig = CONFIG, **trainer: Any) -> None:
    """Write a checkpoint of a run, without networks."""
    folder.mkdir(exist_ok=True)
    (folder / "config.yaml").write_text(config.to_yaml())
    values = {"trainer": {"resume_hash": identity_of_run(config), **trainer}}
    target = folder / "checkpoints" / checkpoint_name(steps)
    write_checkpoint(target, steps, CheckpointContent(values, {}, {}))


def find(folder: Path, config: ExperimentConfig = CONFIG, *, resume: bool = True) -> str | None:
    """Name of the checkpoint that a run is resumed from."""
    skipped: list[CheckpointError] = []
    found = find_saved(config, folder, resume=resume, on_skipped=skipped.append)
    return None if found is None else f"{found[0].name}, {len(skipped)} skipped"


def test_the_newest_whole_checkpoint_is_found(tmp_path: Path) -> None:
    for steps in (64, 128):
        save(tmp_path, steps)
    assert find(tmp_path) == "steps-000000000128, 0 skipped"
    (list_checkpoints(tmp_path / "checkpoints")[0] / STATE_FILE).write_bytes(b"half")
    assert find(tmp_path) == "steps-000000000064, 1 skipped"
    check_resumable(CONFIG, tmp_path)


def test_a_run_without_a_checkpoint_starts_at_step_0(tmp_path: Path) -> None:
    assert find(tmp_path / "new", resume=False) is None
    (tmp_path / "config.yaml").write_text(CONFIG.to_yaml())
    (tmp_path / "checkpoints" / ".writing-1").mkdir(parents=True)
    assert find(tmp_path) is None
    assert not list((tmp_path / "checkpoints").iterdir())  # what a killed writer left is deleted


def test_no_run_is_overwritten_and_a_missing_one_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no run to resume"):
        find(tmp_path)
    save(tmp_path, 64)
    with pytest.raises(TrainingError, match="holds a run already"):
        find(tmp_path, resume=False)


def test_only_what_changes_no_weight_may_differ(tmp_path: Path) -> None:
    save(tmp_path, 64, action_selection="greedy")
    assert find(tmp_path, small_config(name="renamed"))
    for changed, message in (
        (small_config(seed=9), "another configuration"),
        (small_config(evaluation={"action_selection": "sample"}), "cannot be compared"),
    ):
        with pytest.raises(CheckpointError, match=message):
            find(tmp_path, changed)
        with pytest.raises(CheckpointError, match=message):
            check_resumable(changed, tmp_path)
