"""A run's writer to MLflow, while it trains and for what a killed process left in its journal."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from mario.config.levels import model_name
from mario.errors import StoreError
from mario.jobs.context import JobContext
from mario.journal.format import NO_PATIENCE, REPLAY_SECONDS, Patience, pending_journals
from mario.policy.artefact import Artefact
from mario.store.records import Run
from mario.tracking.mlflow_writer import JOURNAL_FOLDER, TrackingWriter
from mario.training.sinks import wait_patiently

log = logging.getLogger(__name__)

#: How long the end of `mario train` waits for MLflow to take the policy, and how long once it is
#: told to end: then the sinks have waited, too.
_POLICY_SECONDS, _POLICY_SECONDS_STOPPED = 15.0, 1.0


def open_tracking(
    context: JobContext,
    run: Run,
    *,
    replaying: bool = False,
    patience: Patience = NO_PATIENCE,
    on_failure: Callable[[], None] | None = None,
) -> TrackingWriter:
    """Open the writer; it tells the store which MLflow run it writes into.

    Args:
        context: settings, store and tracking.
        run: the run, as the store has it.
        replaying: the run is not going on, only its journal is delivered.
        patience: how long another process may take to let go of the journal.
        on_failure: called for each batch that MLflow did not take.

    Raises:
        StoreError: another process has the journal.
    """

    def remember(mlflow_run_id: str) -> None:
        context.store.runs.set_mlflow_run(run.id, mlflow_run_id)

    return TrackingWriter(
        context.tracking.uri,
        context.settings.run_dir(run.id),
        run_id=run.id,
        experiment=model_name(run.task),
        run_name=f"{run.name} {run.id}",
        started_at=run.started_at,
        artifact_dir=context.tracking.artifact_dir,
        on_run=remember,
        replaying=replaying,
        on_failure=on_failure,
        patience=patience,
    )


def track_policy(context: JobContext, run: Run, artefact: Artefact, stop: threading.Event) -> None:
    """Give MLflow the policy that a run ended with, so that it is traced without being registered.

    With MLflow away it stays in the run's journal, as everything else does.

    Args:
        context: settings and tracking.
        run: the run, as the store has it.
        artefact: the policy.
        stop: set when the process is told to end, before or meanwhile.
    """
    try:
        writer = open_tracking(context, run, replaying=True)
    except StoreError as error:  # of a sink that hung at the run's end and still has the journal
        log.warning("MLflow is not told of the policy: %s", error)
        return
    writer.policy(artefact)
    wait_patiently(writer.flush, _POLICY_SECONDS, stop, stopped_seconds=_POLICY_SECONDS_STOPPED)
    report = writer.close(0.0)
    if report.pending:
        log.warning(
            "MLflow did not take the policy in time (%s); it is in the run's journal, for "
            "`mario store check --replay`",
            report.last_error or "no answer",
        )


def replay_tracking(context: JobContext, *, timeout_seconds: float = REPLAY_SECONDS) -> None:
    """Deliver what killed processes left in MLflow's journals; what cannot be stays there."""
    for folder in pending_journals(context.settings.runs_dir):
        if folder.name != JOURNAL_FOLDER:
            continue
        try:
            run = context.store.runs.get(folder.parent.name)
            writer = open_tracking(context, run, replaying=True)
        except StoreError as error:  # of no run, or of one that is being trained
            log.info("%s is left alone: %s", folder, error)
            continue
        report = writer.close(timeout_seconds)
        if report.pending:
            log.warning("%s is not delivered yet: %s", folder, report.last_error or "no answer")
