"""The MLflow sink: parameters, metrics, data lineage and status of a run."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

from mario.config.evaluation import PROTOCOL
from mario.config.experiment import ExperimentConfig
from mario.config.levels import model_name
from mario.config.run_states import CheckpointKind
from mario.evaluation.seeds import SEED_SCHEME, SeedFamily, selection_units
from mario.journal.format import NO_PATIENCE, Patience
from mario.store.records import Run
from mario.store.runs import Runs, flatten
from mario.telemetry.training import TrainingMetrics
from mario.tracking.mlflow_client import MlflowTracking
from mario.tracking.mlflow_writer import TrackingWriter
from mario.tracking.numbers import health_metrics, progress_metrics
from mario.tracking.opening import SinkOpening
from mario.training.collapse_detector import Health, HealthSample
from mario.training.run_folder import CONFIG_FILE
from mario.training.sinks import (
    CheckpointWritten,
    Progress,
    RunEnd,
    RunStart,
    SelectionDone,
    TrainingSink,
    end_timeout_seconds,
    wait_until_done,
)

log = logging.getLogger(__name__)

_GAME = "gym-super-mario-bros==7.4.0"


def data_lineage(config: ExperimentConfig) -> dict[str, dict[str, Any]]:
    """Describe the data of training and of selection, by MLflow's context.

    Levels, seeds and protocol determine every episode: the game is deterministic, and the seeds
    are the only source of chance.
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
        # As text: a browser reads JSON numbers with 53 bits.
        "units": [[level, str(seed)] for level, seed in selection_units(config)],
    }
    return {"training": training, "selection": selection}


class MlflowSink(TrainingSink):
    """Reports to MLflow through the journalled writer, which survives outages of MLflow."""

    name: ClassVar[str] = "mlflow"

    def __init__(self, writer: TrackingWriter) -> None:
        """Report through a writer, which is closed when the run ends."""
        self._writer = writer

    def on_start(self, start: RunStart) -> None:
        """Log parameters, configuration, and the games as training data."""
        config = start.config
        self._writer.parameters(flatten(config.model_dump(mode="json")))
        self._writer.tags({"mario.config_hash": config.content_hash(), **_plain(start.hardware)})
        self._writer.file(start.run_dir / CONFIG_FILE)
        for context, description in data_lineage(config).items():
            self._writer.dataset(
                f"super-mario-bros-{config.task}-{context}", _GAME, description, context=context
            )

    def on_health(self, sample: HealthSample, health: Health) -> None:
        """Log the signals; a change of health becomes a tag."""
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
        """Tag the place of the best checkpoint, which a run without an exported policy has."""
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
        """Make the reports durable on this disk; a run resumed from here would not repeat them."""
        return self._writer.sync()

    def on_end(self, end: RunEnd) -> None:
        """Log the end, and wait a little for MLflow."""
        if end.reason:
            self._writer.tags({"mario.status_reason": end.reason})
        self._writer.end(end.status)
        wait_until_done(self._writer.flush, end_timeout_seconds(end), end.stop)
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


def open_writer(
    run: Run,
    run_dir: Path,
    tracking: MlflowTracking,
    runs: Callable[[], Runs],
    *,
    replaying: bool = False,
    patience: Patience = NO_PATIENCE,
    on_failure: Callable[[], None] | None = None,
) -> TrackingWriter:
    """Open the journalled writer of a run; it stores the id of the MLflow run that it writes to.

    Args:
        run: the run, as the store has it.
        run_dir: its folder.
        tracking: the MLflow server.
        runs: returns the store's runs.
        replaying: only deliver the journal; the run does not continue.
        patience: how long to wait for another process that holds the journal.
        on_failure: called for each batch that MLflow did not accept.

    Raises:
        StoreError: another process holds the journal.
    """

    def store_id(mlflow_run_id: str) -> None:
        runs().set_mlflow_run(run.id, mlflow_run_id)

    return TrackingWriter(
        tracking,
        run_dir,
        run_id=run.id,
        experiment=model_name(run.task),
        run_name=f"{run.name} {run.id}",
        started_at=run.started_at,
        on_run=store_id,
        replaying=replaying,
        on_failure=on_failure,
        patience=patience,
    )


def open_sink(opening: SinkOpening) -> MlflowSink:
    """Open the sink; the MLflow run is a child of the run that this one belongs to."""
    run = opening.run
    metrics = TrainingMetrics(opening.instruments, run.id)
    writer = open_writer(
        run,
        opening.run_dir,
        opening.tracking,
        opening.runs,
        patience=opening.patience,
        on_failure=lambda: metrics.sink_error(MlflowSink.name),
    )
    if run.parent_run_id is not None:
        parent = opening.runs().get(run.parent_run_id).mlflow_run_id
        if parent is not None:
            writer.tags({"mlflow.parentRunId": parent})
    return MlflowSink(writer)
