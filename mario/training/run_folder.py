"""The folder of a run: its files, and whether the run can be resumed."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from mario.config.experiment import ExperimentConfig
from mario.config.identities import is_identity_of_run
from mario.errors import CheckpointError, TrainingError
from mario.files import clear_unfinished
from mario.training.checkpoint import CheckpointContent, load_latest, verify_latest

log = logging.getLogger(__name__)

CONFIG_FILE, CHECKPOINTS_FOLDER, BEST_FOLDER = "config.yaml", "checkpoints", "best"


def find_saved(
    config: ExperimentConfig,
    folder: Path,
    *,
    resume: bool,
    on_skipped: Callable[[CheckpointError], None],
) -> tuple[Path, CheckpointContent] | None:
    """Find the checkpoint that a run is resumed from.

    Args:
        config: the configuration to train with.
        folder: the run's folder.
        resume: whether the run is resumed; a new run needs a folder without one.
        on_skipped: called with the error of each broken checkpoint.

    Returns:
        The newest whole checkpoint and its content; None for a run that starts at step 0.

    Raises:
        TrainingError: the folder holds a run that would be overwritten.
        CheckpointError: there is nothing whole to resume from, or it does not fit `config`.
    """
    config_file = folder / CONFIG_FILE
    if not resume:
        if config_file.exists():
            raise TrainingError(
                f"{folder}: holds a run already; expected a new folder, or resume it (--resume)"
            )
        return None
    if not config_file.exists():
        raise CheckpointError(
            f"{folder}: no run to resume; expected the folder of a run, with {CONFIG_FILE} in it; "
            "check the path"
        )
    for part in ("", CHECKPOINTS_FOLDER, BEST_FOLDER):
        # Left by a killed writer, and in the way where the disk is full.
        clear_unfinished(folder / part)
    saved = load_latest(folder / CHECKPOINTS_FOLDER, on_skipped=on_skipped)
    if saved is None:
        log.info("%s: killed before its first checkpoint, starting at step 0", folder)
        return None
    check_fits(config, saved[0], saved[1].values)
    return saved


def check_resumable(config: ExperimentConfig, folder: Path) -> None:
    """Verify that a run can be resumed, before its resumption is announced; writes nothing.

    Args:
        config: the configuration to resume with.
        folder: the run's folder.

    Raises:
        CheckpointError: no checkpoint of it is whole, or the newest whole one does not fit.
    """
    found = verify_latest(folder / CHECKPOINTS_FOLDER)
    if found is not None:
        check_fits(config, *found)


def check_fits(config: ExperimentConfig, checkpoint: Path, values: Mapping[str, Any]) -> None:
    """Refuse to resume a checkpoint with a configuration that is not its run's.

    Args:
        config: the configuration to resume with.
        checkpoint: its folder, in the run's.
        values: its plain values.

    Raises:
        CheckpointError: something differs that can change a weight.
    """
    trainer = values["trainer"]
    config_file = checkpoint.parent.parent / CONFIG_FILE
    if not is_identity_of_run(trainer["resume_hash"], config):
        raise CheckpointError(
            f"{checkpoint}: was written by another configuration; expected the one in "
            f"{config_file}; resume with that, or start a new run"
        )
    wanted = config.evaluation.action_selection
    got = trainer.get("action_selection", wanted)  # older checkpoints do not have it
    if got != wanted:
        raise CheckpointError(
            f"{checkpoint}: got evaluation.action_selection {wanted}, expected {got}, by which the "
            "run's policies were judged so far: scores of both cannot be compared; leave it, or "
            "start a new run"
        )
