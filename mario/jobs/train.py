"""Train: one run, recorded in every sink, ending with an artefact that can be registered."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from mario.config.experiment import ExperimentConfig
from mario.config.run_states import RunStatus
from mario.errors import ArtefactError, CheckpointError, TrainingInterrupted
from mario.jobs.begin_run import begin_run, end_unstarted
from mario.jobs.context import JobContext
from mario.jobs.export_policy import export_policy
from mario.jobs.mlflow_journals import track_policy
from mario.jobs.selection import selector
from mario.jobs.sinks import OnSelection, open_sinks
from mario.store.journal_writer import replay_journals
from mario.training.result import TrainingResult
from mario.training.sinks import Progress
from mario.training.trainer import train

log = logging.getLogger(__name__)

_EXIT_CODES = {
    RunStatus.FINISHED: 0,
    RunStatus.INTERRUPTED: 130,
    RunStatus.COLLAPSED: 3,
    RunStatus.DIVERGED: 3,
}

OnProgress = Callable[[Progress], None]


@dataclass(frozen=True)
class TrainOutcome:
    """The result of a training run.

    Attributes:
        run_id: its id in the store.
        run_dir: its folder.
        result: what training returned.
        artefact: folder of the exported policy; None if none was exported.
    """

    run_id: str
    run_dir: Path
    result: TrainingResult
    artefact: Path | None

    @property
    def exit_code(self) -> int:
        """0 if finished, 3 if collapsed or diverged, 130 if interrupted."""
        return _EXIT_CODES[self.result.status]


def train_run(
    config: ExperimentConfig,
    context: JobContext,
    *,
    resume: str | None = None,
    run_id: str | None = None,
    parent_run_id: str | None = None,
    stop: threading.Event | None = None,
    on_progress: OnProgress | None = None,
    on_selection: OnSelection | None = None,
) -> TrainOutcome:
    """Train an experiment, or resume a run.

    Args:
        config: the experiment; to resume a run, its own.
        context: settings, store and tracking; disconnected while it trains.
        resume: id of the run to resume.
        run_id: id of the run to start; None makes one.
        parent_run_id: the run that this one belongs to, such as a sweep's.
        stop: set to stop cleanly with a checkpoint.
        on_progress: called after each update.
        on_selection: called after each evaluation on selection seeds.

    Raises:
        TrainingError, CheckpointError: the run cannot start or resume.
        TrainingInterrupted: `stop` was set before it could start.
        StoreError: the database is unreachable at the start.
    """
    stop = stop or threading.Event()
    settings = context.settings
    store = context.store  # an unreachable database fails before any journal is read
    replay_journals(settings.database_url, settings.runs_dir, timeout_seconds=10.0)
    run = begin_run(config, context, resume, run_id, parent_run_id)
    run_dir = settings.run_dir(run.id)
    try:
        sinks = open_sinks(config, context, run, run_dir, on_selection, stop)
    except Exception as error:
        if not stop.is_set():
            end_unstarted(store, run, RunStatus.FAILED, f"{type(error).__name__}: {error}")
            raise
        end_unstarted(store, run, RunStatus.INTERRUPTED, "ended on request before it began")
        raise TrainingInterrupted(
            f"run {run.id} was ended on request before it began ({error}); start it again"
        ) from error
    context.disconnect()
    result = train(
        config,
        run_dir,
        sinks=sinks,
        resume=resume is not None,
        stop=stop,
        progress=on_progress,
        select=selector(config, stop),
    )
    artefact = None
    if result.status != RunStatus.INTERRUPTED:
        try:
            artefact = export_policy(config, run_dir, result)
        except (ArtefactError, CheckpointError) as error:
            if result.status == RunStatus.FINISHED:
                raise
            # Ruined weights may not export; the collapse is the result to report.
            log.warning("no policy exported: %s", error)
    if artefact is not None and config.sinks.mlflow:
        track_policy(context, run, artefact, stop)
    return TrainOutcome(run.id, run_dir, result, None if artefact is None else artefact.folder)
