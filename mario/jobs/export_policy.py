"""Export the policy of a run that has ended, checked on observations of the game."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np

from mario.config.experiment import ExperimentConfig
from mario.errors import CheckpointError
from mario.evaluation.protocol import play_units
from mario.evaluation.seeds import SeedFamily, units_of
from mario.game.batch.contract import BatchStep
from mario.game.console.contract import UInt8Array
from mario.jobs.provenance import git_commit
from mario.jobs.register import ARTEFACT_FOLDER
from mario.policy.artefact import Artefact
from mario.training.algorithms.contract import Algorithm
from mario.training.export import TorchPolicy, export_artefact
from mario.training.result import TrainingResult
from mario.training.trainer import load_trained

log = logging.getLogger(__name__)

#: Observations that the export is compared on and the statistics for drift are taken from.
_EXPORT_OBSERVATIONS = 512


def export_policy(
    config: ExperimentConfig, run_dir: Path, result: TrainingResult
) -> Artefact | None:
    """Write the artefact of the best checkpoint; without a selection, of the last one.

    Args:
        config: the run's experiment.
        run_dir: the run's folder; the artefact is its ``policy`` folder.
        result: what training returned; its paths are read.

    Returns:
        The artefact; None where the run has no checkpoint.

    Raises:
        ArtefactError: the exported network answers differently, or the folder cannot be written.
        CheckpointError: no checkpoint can be read.
    """
    chosen = result.best.path if result.best is not None else result.last
    if chosen is None:
        return None
    try:
        algorithm = load_trained(config, chosen)
    except CheckpointError as error:
        if chosen == result.last or result.last is None:
            raise
        log.warning("exporting the last policy because the best one cannot be read: %s", error)
        algorithm = load_trained(config, result.last)
    return export_artefact(
        algorithm,
        run_dir / ARTEFACT_FOLDER,
        config,
        observations=_observations(config, algorithm),
        git_commit=git_commit(),
        overwrite=True,
    )


def _observations(config: ExperimentConfig, algorithm: Algorithm) -> UInt8Array:
    """Play a few episodes under the protocol and take observations spread over them.

    Returns:
        uint8 ``(n, 4, 84, 84)`` with n ≤ 512.
    """
    policy = TorchPolicy(algorithm, config, "sample")
    seen: list[UInt8Array] = []
    count = max(8, len(config.level_names))
    units = units_of(config.level_names, SeedFamily.SELECTION, "", count)

    def keep(observations: UInt8Array, step: BatchStep) -> None:
        seen.extend(observations[step.active])

    for _ in play_units(
        policy,
        units,
        policy_digest="under training",
        environments=4,
        console=config.game.console,
        on_step=keep,
    ):
        if len(seen) >= _EXPORT_OBSERVATIONS:
            break
    chosen = np.linspace(0, len(seen) - 1, min(len(seen), _EXPORT_OBSERVATIONS)).astype(int)
    return np.stack([seen[index] for index in chosen])
