"""Attempts at a run: a launcher that is killed and started again resumes the same run."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Literal

from mario.config.experiment import ExperimentConfig
from mario.config.run_states import RunStatus
from mario.errors import RunIsBusy, TrainingInterrupted
from mario.jobs.begin_run import config_of_run
from mario.jobs.context import JobContext
from mario.jobs.register import ARTEFACT_FOLDER
from mario.jobs.sinks import OnSelection
from mario.jobs.train import OnProgress, train_run
from mario.store.journal_writer import replay_journals
from mario.store.process_identity import (
    SILENCE_SECONDS,
    host_name,
    is_alive,
    process_id,
)
from mario.store.records import Attempt, Run, utc_now
from mario.store.runs import refuse_busy
from mario.training.run_folder import CONFIG_FILE

log = logging.getLogger(__name__)

#: What an attempt does: start the run (also one that never wrote its configuration), resume it from
#: its checkpoint, or return its result.
Step = Literal["start", "resume", "done"]

#: How long a process may close its sinks and export the policy after its run's end was stored.
ENDING_SECONDS = 45.0
_SAY_SECONDS = 60.0


@dataclass(frozen=True)
class Trained:
    """The result of an attempt.

    Attributes:
        run_id: the run.
        status: finished, interrupted, collapsed or diverged.
        reason: why it did not finish; empty if it did.
        total_steps: agent steps trained.
        steps_per_second: training rate of this attempt; 0 if nothing was left to train.
        attempt: 1 for the first attempt, one more for each resume.
        waited: whether it was stopped while it waited for another process, before it trained.
    """

    run_id: str
    status: RunStatus
    reason: str
    total_steps: int
    steps_per_second: float
    attempt: int = 1
    waited: bool = False


def next_step(status: RunStatus | None, *, has_folder: bool, has_policy: bool) -> Step:
    """Decide what the next attempt at a run does.

    Args:
        status: the run's status in the store; None if the store does not know the run.
        has_folder: whether the run has written its configuration.
        has_policy: whether the run has exported its policy, its last action.
    """
    if status in (RunStatus.COLLAPSED, RunStatus.DIVERGED):
        return "done"
    if status == RunStatus.FINISHED and has_policy:
        return "done"
    if status is None or not has_folder:
        return "start"
    return "resume"


def experiment_of_attempt(
    config: ExperimentConfig, run_id: str, context: JobContext
) -> ExperimentConfig | None:
    """Load the experiment that a run was started with.

    Settings that change no weight are taken from `config`, so that they can be corrected between
    attempts; the seed stays, and so does the number of environments unless `config` sets it.

    Returns:
        The experiment of the next attempt; None if the run has not started.
    """
    if not (context.settings.run_dir(run_id) / CONFIG_FILE).is_file():
        return None
    begun = config_of_run(run_id, context)
    kept = {"seed": begun.seed}
    if "environments" not in config.model_fields_set:
        kept["environments"] = begun.environments  # chosen for the machine that started it
    return config.model_copy(update=kept)


def wait_for_turn(
    context: JobContext,
    run_id: str,
    stop: threading.Event,
    *,
    clock: Callable[[], float] = time.monotonic,
) -> Run | None:
    """Wait until no other process trains a run.

    A process of this machine can be checked. A process of another machine, such as a container,
    counts as dead after `mario.store.process_identity.SILENCE_SECONDS` without a heartbeat, of
    which it was watched for `Waits.settle_seconds`. The journal of a dead process is delivered
    first, because its run may have ended well. The wait is logged once a minute.

    Args:
        context: the store, and how long to wait.
        run_id: the run.
        stop: set to stop waiting.
        clock: returns monotonic seconds.

    Returns:
        The run in its state after the wait; None if the store does not know it.

    Raises:
        RunIsBusy: a process of this machine trains it, and has hung for over an hour.
        TrainingInterrupted: `stop` was set meanwhile.
        StoreError: the database is unreachable.
    """
    waits = context.waits
    silent_since = clock()
    said, heard = -_SAY_SECONDS, None
    while True:
        run = context.store.runs.find(run_id)
        if run is None or not run.attempts:
            return run
        last, now = run.attempts[-1], clock()
        if last.heartbeat_at != heard:
            heard, silent_since = last.heartbeat_at, now
        settling = now - silent_since < waits.settle_seconds
        reason = _not_yet(run_id, last, settling, waits.hang_seconds)
        if reason is None:
            return run
        if said < 0:
            settings = context.settings
            replay_journals(settings.database_url, settings.runs_dir, timeout_seconds=10.0)
        if now - said >= _SAY_SECONDS:
            said = now
            log.warning("waiting: %s", reason)
        stop.wait(waits.look_seconds)
        if stop.is_set():
            raise TrainingInterrupted(
                f"run {run_id} was not resumed: process {last.pid} on {last.host} still trains it, "
                f"and waiting was ended on request; later: mario train --resume {run_id}"
            )


def _not_yet(run_id: str, last: Attempt, settling: bool, hang_seconds: float) -> str | None:
    """Say why another process may not train a run yet; None if it may.

    Args:
        run_id: the run.
        last: its last attempt.
        settling: whether a process of another machine was watched for too short a time.
        hang_seconds: `Waits.hang_seconds`.

    Raises:
        RunIsBusy: its process hangs, so waiting is useless.
    """
    try:
        refuse_busy(run_id, last)
    except RunIsBusy as busy:
        silent = utc_now() - last.heartbeat_at
        if last.host == host_name() and silent.total_seconds() > hang_seconds + SILENCE_SECONDS:
            raise
        return str(busy)
    if last.host != host_name():
        # `mario store check` may have marked a silent process as killed.
        if last.status in (RunStatus.RUNNING, RunStatus.KILLED) and settling:
            return f"run {run_id}: process {last.pid} on {last.host} may still be alive"
        return None
    ended = last.ended_at
    if (
        ended is not None
        and last.pid != process_id()
        and is_alive(last.host, last.pid)
        and utc_now() - ended < timedelta(seconds=ENDING_SECONDS)
    ):
        return (
            f"run {run_id}: process {last.pid} has just ended it ({last.status}) and may still "
            "write"
        )
    return None


def train_attempt(
    config: ExperimentConfig,
    context: JobContext,
    run_id: str,
    *,
    stop: threading.Event | None = None,
    on_progress: OnProgress | None = None,
    on_selection: OnSelection | None = None,
) -> Trained:
    """Start the run of this id, resume it, or return its result.

    Waits while another process trains it; see `wait_for_turn`.

    Args:
        config: the experiment; the same in every attempt.
        context: settings, store and tracking.
        run_id: the run's id, chosen by the launcher so that each attempt finds the run.
        stop: set to stop cleanly with a checkpoint.
        on_progress: called after each update.
        on_selection: called after each evaluation on selection seeds.

    Raises:
        RunIsBusy: another process took it meanwhile.
        TrainingInterrupted: `stop` was set during the wait.
        TrainingError, CheckpointError, StoreError: see `mario.jobs.train.train_run`.
    """
    known = wait_for_turn(context, run_id, stop or threading.Event())
    folder = context.settings.run_dir(run_id)
    step = next_step(
        None if known is None else known.status,
        has_folder=(folder / CONFIG_FILE).is_file(),
        has_policy=(folder / ARTEFACT_FOLDER).is_dir(),
    )
    if step == "done":
        assert known is not None, "only a known run is done"
        return _as_it_ended(known)
    outcome = train_run(
        config,
        context,
        resume=run_id if step == "resume" else None,
        run_id=run_id,
        stop=stop,
        on_progress=on_progress,
        on_selection=on_selection,
    )
    result = outcome.result
    return Trained(
        outcome.run_id,
        result.status,
        result.reason,
        result.total_steps,
        result.steps_per_second,
        attempt=1 if known is None else len(known.attempts) + 1,
    )


def _as_it_ended(run: Run) -> Trained:
    last = run.attempts[-1]
    return Trained(
        run.id, run.status, run.status_reason or "", last.end_steps or 0, 0.0, last.attempt
    )
