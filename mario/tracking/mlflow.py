"""What training tells MLflow and TensorBoard; `mario.tracking.wandb` has the third tracker."""

from __future__ import annotations

import logging
import math
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, ClassVar

from mario.config.experiment import ExperimentConfig
from mario.config.run_states import CheckpointKind
from mario.evaluation.records import PROTOCOL
from mario.evaluation.seeds import SEED_SCHEME, SeedFamily, selection_units
from mario.store.runs import flatten
from mario.tracking.mlflow_writer import TrackingWriter
from mario.training.collapse_detector import Health, HealthSample
from mario.training.run import CONFIG_FILE
from mario.training.sinks import (
    BaseSink,
    CheckpointWritten,
    Progress,
    RunEnd,
    RunStart,
    SelectionDone,
    patience_seconds,
    wait_patiently,
)

log = logging.getLogger(__name__)

_GAME = "gym-super-mario-bros==7.4.0"


def data_lineage(config: ExperimentConfig) -> dict[str, dict[str, Any]]:
    """What a run is trained and selected on, by MLflow's context: levels, seeds, protocol.

    Every episode follows from it: the game is deterministic, and all chance comes from the seeds.
    """
    game = config.game
    training = {
        "levels": list(config.level_names),
        "seed": str(config.seed),
        "seed_rule": "derive_seed(seed, environment, episode)",
        "environments": config.environments,
        "frame_skip": game.frame_skip,
        "sticky_probability": game.sticky_probability,
        "no_op_max_frames": game.no_op_max_frames,
        "max_steps": game.max_steps,
        "reward": game.reward.model_dump(mode="json", exclude_none=True),
    }
    if config.selection.units == 0:
        return {"training": training}
    selection = {
        "protocol": PROTOCOL,
        "seed_scheme": SEED_SCHEME,
        "seed_family": SeedFamily.SELECTION,
        # As text: JSON's readers in browsers have 53 bits.
        "units": [[level, str(seed)] for level, seed in selection_units(config)],
    }
    return {"training": training, "selection": selection}


def health_metrics(sample: HealthSample) -> dict[str, float]:
    """The finite single numbers of a health sample, by their names under ``health/``."""
    numbers = {}
    for name, value in sample.to_dict().items():
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
            numbers[f"health/{name}"] = float(value)
    return numbers


def progress_metrics(progress: Progress) -> dict[str, float]:
    """The numbers of a progress report, by their names in the trackers."""
    numbers = {"train/steps_per_second": progress.steps_per_second, **progress.scalars}
    if progress.mean_furthest_px is not None:
        numbers["episodes/mean_furthest_px"] = progress.mean_furthest_px
    if progress.mean_return is not None:
        numbers["episodes/mean_return"] = progress.mean_return
    return {name: value for name, value in numbers.items() if math.isfinite(value)}


class MlflowSink(BaseSink):
    """Reports to MLflow through the journalled writer, which survives MLflow's absence."""

    name: ClassVar[str] = "mlflow"

    def __init__(self, writer: TrackingWriter) -> None:
        """Report through a writer, closed at the run's end."""
        self._writer = writer

    def on_start(self, start: RunStart) -> None:
        """Log parameters, the configuration, and the games as the data it is trained on."""
        config = start.config
        self._writer.parameters(flatten(config.model_dump(mode="json")))
        self._writer.tags({"mario.config_hash": config.content_hash(), **_plain(start.hardware)})
        self._writer.file(start.run_dir / CONFIG_FILE)
        for context, description in data_lineage(config).items():
            self._writer.dataset(
                f"super-mario-bros-{config.task}-{context}", _GAME, description, context=context
            )

    def on_health(self, sample: HealthSample, health: Health) -> None:
        """Log the signals; a change of state becomes a tag."""
        self._writer.metrics(sample.total_steps, health_metrics(sample))
        if health.changed:
            self._writer.tags(
                {"mario.health": health.state, "mario.health_reasons": "; ".join(health.reasons)}
            )

    def on_selection(self, selection: SelectionDone) -> None:
        """Log the score on selection seeds."""
        numbers = {f"selection/{name}": value for name, value in selection.details.items()}
        self._writer.metrics(selection.total_steps, {"selection/score": selection.score, **numbers})

    def on_checkpoint(self, checkpoint: CheckpointWritten) -> None:
        """Note where the best checkpoint is: a run that never exports a policy has that."""
        if checkpoint.kind == CheckpointKind.BEST:
            self._writer.tags(
                {
                    "mario.best_checkpoint": str(checkpoint.path.resolve()),
                    "mario.best_checkpoint_sha256": checkpoint.sha256,
                    "mario.best_steps": str(checkpoint.total_steps),
                    "mario.best_score": f"{checkpoint.score}",
                }
            )

    def on_progress(self, progress: Progress) -> None:
        """Log rates and means."""
        self._writer.metrics(progress.total_steps, progress_metrics(progress))

    def flush(self) -> bool:
        """Make what was written durable on this disk, or a run resumed from here lacks it."""
        return self._writer.sync()

    def on_end(self, end: RunEnd) -> None:
        """Log how it ended, and wait a little for MLflow."""
        if end.reason:
            self._writer.tags({"mario.status_reason": end.reason})
        self._writer.end(end.status)
        wait_patiently(self._writer.flush, patience_seconds(end), end.stop)
        report = self._writer.close(0.0)
        if report.pending:
            log.warning(
                "MLflow did not take everything in time (%s); the rest is in the run's journal",
                report.last_error or "no answer",
            )
        if report.lost:
            log.error(
                "%d reports to MLflow are lost: neither the disk of the run's journal nor memory "
                "had room",
                report.lost,
            )


def _plain(values: dict[str, Any]) -> dict[str, str]:
    return {f"mario.{name}": str(value) for name, value in values.items()}


class NumbersSink(BaseSink, ABC):
    """Hears a run and writes its numbers, one record each time; a tracker says where to."""

    def on_health(self, sample: HealthSample, health: Health) -> None:
        """Write the signals."""
        self._write(health_metrics(sample), sample.total_steps)

    def on_selection(self, selection: SelectionDone) -> None:
        """Write the score."""
        self._write({"selection/score": selection.score}, selection.total_steps)

    def on_progress(self, progress: Progress) -> None:
        """Write rates and means."""
        self._write(progress_metrics(progress), progress.total_steps)

    @abstractmethod
    def _write(self, numbers: dict[str, float], steps: int) -> None:
        """Write numbers, by their metric's name, at so many agent steps."""


class TensorBoardSink(NumbersSink):
    """Writes event files for TensorBoard."""

    name: ClassVar[str] = "tensorboard"

    def __init__(self, folder: Path) -> None:
        """Write into a folder; needs the package tensorboard."""
        from torch.utils.tensorboard import SummaryWriter

        self._writer: Any = SummaryWriter(str(folder))

    def on_end(self, end: RunEnd) -> None:
        """Close the file."""
        self._writer.close()

    def _write(self, numbers: dict[str, float], steps: int) -> None:
        for name, value in numbers.items():
            self._writer.add_scalar(name, value, steps)
