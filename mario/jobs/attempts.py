"""Attempts at a run: a launcher that is killed and started again goes on where the run stands."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Literal

from mario.config import ExperimentConfig
from mario.jobs.register import ARTEFACT_FOLDER
from mario.jobs.runtime import Runtime
from mario.jobs.train import OnProgress, OnSelection, config_of_run, train_run
from mario.store.records import Run, RunStatus
from mario.store.store import ExperimentStore
from mario.training.run import CONFIG_FILE

#: Start a new run; begin a known one again that never got anywhere; go on from its checkpoint; or
#: take it as it is.
Step = Literal["start", "resume", "done"]


@dataclass(frozen=True)
class Trained:
    """What training hands on.

    Attributes:
        run_id: the run.
        status: finished, interrupted, collapsed or diverged.
        reason: why, where it did not finish.
        total_steps: agent steps trained.
        steps_per_second: their rate in the last attempt; 0 where nothing was left to train.
        attempt: 1 for the first; more where the run was gone on with.
    """

    run_id: str
    status: str
    reason: str
    total_steps: int
    steps_per_second: float
    attempt: int = 1


def next_step(status: RunStatus | None, *, has_folder: bool, has_policy: bool) -> Step:
    """Say what the next attempt at a run has to do.

    Args:
        status: what the store says; None where it does not know the run.
        has_folder: whether the run has written its configuration.
        has_policy: whether it has exported its policy, which is the last thing it does.
    """
    if status in ("collapsed", "diverged"):
        return "done"
    if status == "finished" and has_policy:
        return "done"
    if status is None or not has_folder:
        return "start"
    return "resume"


def experiment_of_attempt(
    config: ExperimentConfig, run_id: str, runtime: Runtime
) -> ExperimentConfig | None:
    """The experiment that a run of this id was begun with; None where there is none yet."""
    if not (runtime.run_dir(run_id) / CONFIG_FILE).is_file():
        return None
    begun = config_of_run(run_id, runtime)
    # What does not change a weight may have been changed meanwhile, to mend what went wrong.
    kept = {"seed": begun.seed}
    if "environments" not in config.model_fields_set:
        kept["environments"] = begun.environments  # of the machine that it was begun on
    return config.model_copy(update=kept)


def train_attempt(
    config: ExperimentConfig,
    runtime: Runtime,
    run_id: str,
    *,
    stop: threading.Event | None = None,
    on_progress: OnProgress | None = None,
    on_selection: OnSelection | None = None,
) -> Trained:
    """Train the run of this id: start it, go on with it, or say how it ended.

    Args:
        config: the experiment; the same in every attempt.
        runtime: where store, tracking and folders are.
        run_id: the run's id, chosen by the launcher so that it finds the run again.
        stop: set to end cleanly with a checkpoint.
        on_progress: called after each update.
        on_selection: called after each judgement on selection seeds.

    Raises:
        RunIsBusy: another process trains it now.
        TrainingError, CheckpointError, StoreError: see `mario.jobs.train.train_run`.
    """
    with ExperimentStore.open(runtime.database_url) as store:
        known = store.runs.find(run_id)
    folder = runtime.run_dir(run_id)
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
        runtime,
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
