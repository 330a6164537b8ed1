"""Begin or resume a training run in the store, or refuse to."""

from __future__ import annotations

import logging
import tempfile
from contextlib import suppress
from pathlib import Path

from mario.config.experiment import ExperimentConfig, load_config
from mario.config.run_states import CheckpointKind, RunStatus
from mario.errors import CheckpointError, StoreError, TrainingError
from mario.jobs.context import JobContext, JobSettings
from mario.jobs.provenance import git_commit, git_diff, hardware, library_versions
from mario.store.records import AttemptEnd, NewRun, Run, new_id
from mario.store.runs import refuse_busy
from mario.store.store import ExperimentStore
from mario.training.checkpoint import list_checkpoints
from mario.training.run_folder import CHECKPOINTS_FOLDER, CONFIG_FILE, check_resumable

log = logging.getLogger(__name__)


def config_of_run(
    run_id: str, context: JobContext, overrides: tuple[str, ...] = ()
) -> ExperimentConfig:
    """Load the configuration that a run was started with.

    Args:
        run_id: the run.
        context: its settings say where the folder is.
        overrides: ``"key.sub=value"`` each; the trainer refuses those that change a weight.

    Raises:
        StoreError: there is no such run.
    """
    file = context.settings.run_dir(run_id) / CONFIG_FILE
    if not file.is_file():
        raise StoreError(
            f"got run {run_id!r}, which has no {file}; expected a run's id; the folder names "
            f"under {context.settings.runs_dir} are ids"
        )
    return load_config(file, overrides)


def begin_run(
    config: ExperimentConfig,
    context: JobContext,
    resume: str | None,
    run_id: str | None,
    parent_run_id: str | None,
) -> Run:
    """Enter a run, or its next attempt, into the store, after checking that it can begin.

    Args:
        config: the experiment; to resume a run, its own.
        context: settings and store.
        resume: id of the run to resume.
        run_id: id of the run to start; None makes one.
        parent_run_id: the run that this one belongs to, such as a sweep's.

    Raises:
        RunIsBusy: another process trains the run.
        TrainingError: its folder is missing, cannot be written or belongs to another database.
        CheckpointError: the store knows a checkpoint that the folder lacks, or `config` differs in
            a setting that changes weights.
        StoreError: the database is unreachable.
    """
    settings, store = context.settings, context.store
    if resume is not None:
        known = store.runs.get(resume)
        # The process that trains it writes and deletes checkpoints: they cannot be read now.
        if known.attempts:
            refuse_busy(known.id, known.attempts[-1])
        if not (settings.run_dir(resume) / CONFIG_FILE).is_file():
            raise TrainingError(
                f"run {resume} ({known.status}) has no folder {settings.run_dir(resume)}; expected "
                "the folder that it was trained in; set MARIO_RUNS_DIR to its parent"
            )
        _refuse_lost(store, resume, settings.run_dir(resume))
        check_resumable(config, settings.run_dir(resume))
        _make_folder(settings.run_dir(resume), settings)
        return store.runs.resume(resume, start_steps=0)
    id_ = run_id or new_id("run")
    run_dir = settings.run_dir(id_)
    known_id = run_id is not None and store.runs.find(run_id) is not None
    if not known_id and (run_dir / CONFIG_FILE).is_file():
        # The run's journal would be delivered to this database.
        raise TrainingError(
            f"{run_dir} holds a run that {store.redacted_url} does not know; expected "
            "the database that it was started with; correct MARIO_DATABASE_URL"
        )
    made = _make_folder(run_dir, settings)
    try:
        if known_id:
            return store.runs.resume(id_, start_steps=0)  # killed before it wrote anything
        return store.runs.start(
            NewRun(
                id=id_,
                name=config.name,
                task=config.task,
                algorithm=config.algorithm.name,
                config=config.model_dump(mode="json"),
                config_hash=config.content_hash(),
                git_commit=git_commit(),
                git_diff=git_diff(),
                library_versions=library_versions(),
                hardware=hardware(),
                parent_run_id=parent_run_id,
            )
        )
    except Exception:
        if made:
            with suppress(OSError):
                run_dir.rmdir()
        raise


def _refuse_lost(store: ExperimentStore, run_id: str, run_dir: Path) -> None:
    """Refuse to restart a run that had a checkpoint: new episodes would overwrite its own.

    Raises:
        CheckpointError: the store knows a checkpoint, but the folder has none.
    """
    folder = run_dir / CHECKPOINTS_FOLDER
    # An attempt in another runs folder starts at 0 steps, without the checkpoints before it.
    begun = (each.attempt for each in store.runs.get(run_id).attempts if not each.start_steps)
    anew = max(begun, default=1)
    known = [
        each for each in store.runs.checkpoints(run_id, CheckpointKind.LAST) if each.attempt >= anew
    ]
    if known and not list_checkpoints(folder):
        raise CheckpointError(
            f"{folder}: got no checkpoint, expected the one at {known[-1].total_steps:,} steps "
            "that the store knows; restore it, or start a new run"
        )


def end_unstarted(store: ExperimentStore, run: Run, status: RunStatus, reason: str) -> None:
    """Store the end of an attempt that failed before its sinks were open."""
    end = AttemptEnd(
        run_id=run.id,
        attempt=run.attempts[-1].attempt,
        status=status,
        end_steps=None,
        reason=reason.splitlines()[0][:500],
    )
    try:
        store.runs.end(end)
    except StoreError as failure:  # the caller raises the error that prevented the start
        log.warning("the store still shows run %s as running: %s", run.id, failure)


def _make_folder(folder: Path, settings: JobSettings) -> bool:
    """Create a run's folder and check that it can be written.

    Returns:
        Whether the folder is new.

    Raises:
        TrainingError: the folder cannot be made or written.
    """
    made = not folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise TrainingError(
            f"{folder}: a run cannot be written there ({error.strerror or error}); expected a "
            f"folder with free space and permission to write; repair {settings.runs_dir}, or set "
            "MARIO_RUNS_DIR to another"
        ) from error
    return made
