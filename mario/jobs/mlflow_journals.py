"""What MLflow gets besides training's own reports: the policy, and journals of killed processes."""

from __future__ import annotations

import logging
import threading

from mario.errors import StoreError
from mario.jobs.context import JobContext
from mario.journal.format import REPLAY_SECONDS, pending_journals
from mario.policy.artefact import Artefact
from mario.store.records import Run
from mario.tracking.mlflow import open_writer
from mario.tracking.mlflow_writer import JOURNAL_FOLDER, TrackingWriter
from mario.training.sinks import wait_until_done

log = logging.getLogger(__name__)

#: How long the end of `mario train` waits for MLflow to accept the policy; less if it was asked to
#: stop, because the sinks have waited already.
_POLICY_SECONDS, _POLICY_SECONDS_STOPPED = 15.0, 1.0


def track_policy(context: JobContext, run: Run, artefact: Artefact, stop: threading.Event) -> None:
    """Log the policy that a run ended with to MLflow, whether or not it is registered later.

    If MLflow is unreachable, the policy stays in the run's journal.

    Args:
        context: settings, store and tracking.
        run: the run, as the store has it.
        artefact: the policy.
        stop: set when the process is asked to stop, before or meanwhile.
    """
    try:
        writer = _replaying_writer(context, run)
    except StoreError as error:  # a sink that hung at the run's end still holds the journal
        log.warning("the policy is not logged to MLflow: %s", error)
        return
    writer.policy(artefact)
    wait_until_done(writer.flush, _POLICY_SECONDS, stop, stopped_seconds=_POLICY_SECONDS_STOPPED)
    report = writer.close(0.0)
    if report.pending:
        log.warning(
            "MLflow did not take the policy in time (%s); it is in the run's journal, for "
            "`mario store check --replay`",
            report.last_error or "no answer",
        )


def replay_tracking(context: JobContext, *, timeout_seconds: float = REPLAY_SECONDS) -> None:
    """Deliver the MLflow journals of killed processes; what MLflow does not accept stays there."""
    for folder in pending_journals(context.settings.runs_dir):
        if folder.name != JOURNAL_FOLDER:
            continue
        try:
            writer = _replaying_writer(context, context.store.runs.get(folder.parent.name))
        except StoreError as error:  # the run is unknown, or is being trained
            log.info("%s is left alone: %s", folder, error)
            continue
        report = writer.close(timeout_seconds)
        if report.pending:
            log.warning("%s is not delivered yet: %s", folder, report.last_error or "no answer")


def _replaying_writer(context: JobContext, run: Run) -> TrackingWriter:
    run_dir = context.settings.run_dir(run.id)
    return open_writer(run, run_dir, context.tracking, lambda: context.store.runs, replaying=True)
