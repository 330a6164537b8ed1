"""Train: one run, recorded everywhere, ending with an artefact ready to be registered."""

from __future__ import annotations

import gc
import logging
import os
import signal
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import numpy as np

from mario.config.experiment import ExperimentConfig, load_config
from mario.config.run_states import CheckpointKind, RunStatus
from mario.errors import (
    ArtefactError,
    CheckpointError,
    StoreError,
    TrainingError,
    TrainingInterrupted,
)
from mario.evaluation.protocol import play_units
from mario.evaluation.seeds import SeedFamily, schedule
from mario.game.batch.contract import BatchStep
from mario.game.console.contract import UInt8Array
from mario.jobs.context import JobContext, JobSettings
from mario.jobs.mlflow_journals import open_tracking, track_policy
from mario.jobs.provenance import git_commit, git_diff, hardware, library_versions
from mario.jobs.register import ARTEFACT_FOLDER
from mario.jobs.selection import selector
from mario.journal.format import Patience
from mario.policy.artefact import Artefact
from mario.store.journal_writer import StoreWriter, replay_journals
from mario.store.records import AttemptEnd, NewRun, Run, new_id
from mario.store.runs import refuse_busy
from mario.store.store import ExperimentStore
from mario.telemetry.instruments import InstrumentSet
from mario.telemetry.store import StoreMetrics
from mario.telemetry.training import TrainingMetrics
from mario.tracking.mlflow import MlflowSink, TensorBoardSink
from mario.tracking.store import PrometheusSink, StoreSink
from mario.tracking.wandb import WandbSink
from mario.training.algorithms.contract import Algorithm
from mario.training.checkpoint import list_checkpoints
from mario.training.checkpoint_retention import CHECKPOINTS_FOLDER
from mario.training.export import export_artefact
from mario.training.result import TrainingResult
from mario.training.run import CONFIG_FILE, check_resumable
from mario.training.sinks import BaseSink, Progress, SelectionDone, TrainingSink
from mario.training.trainer import load_trained, train

log = logging.getLogger(__name__)

#: Real observations the export is compared on, and the statistics for drift are taken from.
_EXPORT_OBSERVATIONS = 512
_EXIT_CODES = {
    RunStatus.FINISHED: 0,
    RunStatus.INTERRUPTED: 130,
    RunStatus.COLLAPSED: 3,
    RunStatus.DIVERGED: 3,
}

OnProgress = Callable[[Progress], None]
OnSelection = Callable[[SelectionDone], None]


@dataclass(frozen=True)
class TrainOutcome:
    """How a run ended, and what it left.

    Attributes:
        run_id: its id in the store.
        run_dir: its folder.
        result: what the trainer says.
        artefact: the exported policy's folder; None where the run was interrupted.
    """

    run_id: str
    run_dir: Path
    result: TrainingResult
    artefact: Path | None

    @property
    def exit_code(self) -> int:
        """0 finished, 3 collapsed or diverged, 130 interrupted."""
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
    """Train an experiment from the start, or go on with a run.

    Args:
        config: the experiment; when resuming it must be the run's own.
        context: settings, store and tracking; disconnected while it trains.
        resume: id of the run to go on with.
        run_id: id of the run to start; None makes one.
        parent_run_id: the run that this one belongs to, such as a sweep's.
        stop: set to end cleanly with a checkpoint.
        on_progress: called after each update.
        on_selection: called after each judgement on selection seeds.

    Raises:
        TrainingError, CheckpointError: it cannot start or go on.
        TrainingInterrupted: `stop` was set before it could.
        StoreError, RegistryError: store or tracking cannot be reached at the start.
    """
    stop = stop or threading.Event()
    settings = context.settings
    store = context.store  # unreachable, it is an error before journals are read
    replay_journals(settings.database_url, settings.runs_dir, timeout_seconds=10.0)
    run = _begin(config, context, resume, run_id, parent_run_id)
    run_dir = settings.run_dir(run.id)
    try:
        sinks = open_sinks(config, context, run, run_dir, on_selection, stop)
    except Exception as error:
        if not stop.is_set():
            _give_up(store, run, RunStatus.FAILED, f"{type(error).__name__}: {error}")
            raise
        _give_up(store, run, RunStatus.INTERRUPTED, "ended on request before it began")
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
            artefact = _export(config, run_dir, result)
        except (ArtefactError, CheckpointError) as error:
            if result.status == RunStatus.FINISHED:
                raise
            # Ruined weights may not even export; the collapse is what there is to say, not that.
            log.warning("no policy exported: %s", error)
    if artefact is not None and config.sinks.mlflow:
        track_policy(context, run, artefact, stop)
    return TrainOutcome(run.id, run_dir, result, None if artefact is None else artefact.folder)


def _begin(
    config: ExperimentConfig,
    context: JobContext,
    resume: str | None,
    run_id: str | None,
    parent_run_id: str | None,
) -> Run:
    """Enter the run, or its next attempt, into the store, once it is sure that it can begin."""
    settings, store = context.settings, context.store
    if resume is not None:
        known = store.runs.get(resume)
        # Whoever trains it now writes and deletes checkpoints: nothing there stands still.
        if known.attempts:
            refuse_busy(known.id, known.attempts[-1])
        if not (settings.run_dir(resume) / CONFIG_FILE).is_file():
            raise TrainingError(
                f"run {resume} ({known.status}) has no folder {settings.run_dir(resume)}; expected "
                "the one it was trained in; set MARIO_RUNS_DIR to where it is"
            )
        _refuse_lost(store, resume, settings.run_dir(resume))
        check_resumable(config, settings.run_dir(resume))
        _make_folder(settings.run_dir(resume), settings)
        return store.runs.resume(resume, start_steps=0)
    id_ = run_id or new_id("run")
    run_dir = settings.run_dir(id_)
    known_id = run_id is not None and store.runs.find(run_id) is not None
    if not known_id and (run_dir / CONFIG_FILE).is_file():
        # What that run left in its journal would go into this database.
        raise TrainingError(
            f"{run_dir} holds a run that {store.redacted_url} does not know; expected "
            "the database that it was begun with; correct MARIO_DATABASE_URL"
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
    """Refuse to begin a run anew that had a checkpoint: its episodes would take its place.

    Raises:
        CheckpointError: the store knows of a checkpoint, and the folder has none.
    """
    folder = run_dir / CHECKPOINTS_FOLDER
    # An attempt in another runs folder begins anew, and has none of the checkpoints before it.
    begun = (each.attempt for each in store.runs.get(run_id).attempts if not each.start_steps)
    anew = max(begun, default=1)
    known = [
        each for each in store.runs.checkpoints(run_id, CheckpointKind.LAST) if each.attempt >= anew
    ]
    if known and not list_checkpoints(folder):
        raise CheckpointError(
            f"{folder}: got no checkpoint, expected the one at {known[-1].total_steps:,} steps "
            "that the store knows of; bring it back, or start a new run"
        )


def _give_up(store: ExperimentStore, run: Run, status: RunStatus, reason: str) -> None:
    """End an attempt that nobody will train: there is no sink to tell of its end."""
    end = AttemptEnd(
        run_id=run.id,
        attempt=run.attempts[-1].attempt,
        status=status,
        end_steps=None,
        reason=reason.splitlines()[0][:500],
    )
    try:
        store.runs.end(end)
    except StoreError as failure:  # what kept it from beginning is what there is to say
        log.warning("the store still shows run %s as running: %s", run.id, failure)


def _make_folder(folder: Path, settings: JobSettings) -> bool:
    """Make a run's folder, and see that it can be written; True where it was not there before.

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
            f"folder with room and permission to write; mend {settings.runs_dir}, or set "
            "MARIO_RUNS_DIR to another"
        ) from error
    return made


class _SelectionListener(BaseSink):
    """Hands selections on to a callback."""

    def __init__(self, callback: OnSelection) -> None:
        self._callback = callback

    def on_selection(self, selection: SelectionDone) -> None:
        """Hand it on."""
        self._callback(selection)


def open_sinks(
    config: ExperimentConfig,
    context: JobContext,
    run: Run,
    run_dir: Path,
    on_selection: OnSelection | None = None,
    stop: threading.Event | None = None,
) -> list[TrainingSink]:
    """The sinks that the configuration asks for; one that cannot be made is left out, loudly.

    A process that still has the run's journals is waited for, up to ``lock_seconds`` for each or
    until `stop` is set.

    Raises:
        StoreError: the store's journal cannot be opened: nothing would know of the run.
    """
    attempt = run.attempts[-1].attempt
    instruments = InstrumentSet()
    metrics = TrainingMetrics(instruments, run.id)
    waits = context.waits
    patience = Patience(waits.lock_seconds, stop)
    writer = StoreWriter(
        context.settings.database_url,
        run_dir,
        patience=patience,
        observer=StoreMetrics(instruments, run.id),
    )
    sinks: list[TrainingSink] = [
        StoreSink(
            writer,
            run.id,
            attempt,
            context.settings.runs_dir,
            heartbeat_seconds=waits.heartbeat_seconds,
            hang_seconds=waits.hang_seconds,
        )
    ]
    wanted: list[tuple[str, Callable[[], TrainingSink]]] = []
    if config.sinks.mlflow:
        wanted.append(("mlflow", lambda: _mlflow_sink(context, run, metrics, patience)))
    if config.sinks.prometheus:
        wanted.append(("prometheus", lambda: _prometheus_sink(run.id, instruments)))
    if config.sinks.tensorboard:
        wanted.append(("tensorboard", lambda: TensorBoardSink(run_dir / "tensorboard")))
    if config.sinks.wandb != "off":
        mode = config.sinks.wandb
        wanted.append(("wandb", lambda: WandbSink(run.id, run_dir, mode)))
    for name, make in wanted:
        try:
            sinks.append(make())
        except Exception as error:  # no recorder may keep a run from training
            log.warning("the sink %s is left out: %s: %s", name, type(error).__name__, error)
            metrics.sink_error(name)
    if on_selection is not None:
        sinks.append(_SelectionListener(on_selection))
    return sinks


def _mlflow_sink(
    context: JobContext, run: Run, metrics: TrainingMetrics, patience: Patience
) -> MlflowSink:
    """Report to MLflow, as a child of the run that this one belongs to."""
    writer = open_tracking(
        context,
        run,
        patience=patience,
        on_failure=lambda: metrics.sink_error(MlflowSink.name),
    )
    if run.parent_run_id is not None:
        parent = context.store.runs.get(run.parent_run_id).mlflow_run_id
        if parent is not None:
            writer.tags({"mlflow.parentRunId": parent})
    return MlflowSink(writer)


def _prometheus_sink(run_id: str, instruments: InstrumentSet) -> PrometheusSink:
    """The metrics page where MARIO_METRICS_HOST, _PORT and _TARGETS say (default: free port)."""
    targets = os.environ.get("MARIO_METRICS_TARGETS")
    return PrometheusSink(
        run_id,
        instruments,
        host=os.environ.get("MARIO_METRICS_HOST", "127.0.0.1"),
        port=int(os.environ.get("MARIO_METRICS_PORT", "0")),
        targets=Path(targets) if targets else None,
    )


def _export(config: ExperimentConfig, run_dir: Path, result: TrainingResult) -> Artefact | None:
    """Write the artefact of the best checkpoint (the last, where there was no selection)."""
    chosen = result.best.path if result.best is not None else result.last
    if chosen is None:
        return None
    try:
        algorithm = load_trained(config, chosen)
    except CheckpointError as error:
        if chosen == result.last or result.last is None:
            raise
        log.warning("exporting the last policy, as the best one cannot be read: %s", error)
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
    """Real observations of the game under the protocol, spread over a few episodes."""
    from mario.training.export import TorchPolicy, action_specs

    actions = action_specs(config.game.actions)
    policy = TorchPolicy(algorithm, actions, config.game.frame_skip, "sample")
    seen: list[UInt8Array] = []
    units = [u.key for block in schedule(config.level_names, SeedFamily.SELECTION, units=max(
        8, len(config.level_names))) for u in block]  # fmt: skip

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


@contextmanager
def stopping_on_signals(stop: threading.Event) -> Iterator[None]:
    """Let SIGTERM and Ctrl-C set `stop`; a second one ends the process as it always does.

    Only the main thread can take signals; elsewhere this changes nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

    def handle(number: int, _frame: FrameType | None) -> None:
        stop.set()
        signal.signal(number, signal.SIG_DFL if number == signal.SIGTERM else
                      signal.default_int_handler)  # fmt: skip

    for number in previous:
        signal.signal(number, handle)
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def config_of_run(
    run_id: str, context: JobContext, overrides: tuple[str, ...] = ()
) -> ExperimentConfig:
    """The configuration that a run was started with.

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


def train_from_terminal(
    config: Path, overrides: tuple[str, ...], context: JobContext, *, resume: str | None = None
) -> TrainOutcome:
    """What `mario train` does: progress on the terminal, a clean end on Ctrl-C and SIGTERM.

    A run that is gone on with has its own configuration; `config` is not looked at then.
    """
    from mario.jobs.terminal import TrainingDisplay, say

    chosen = (
        load_config(config, overrides)
        if resume is None
        else config_of_run(resume, context, overrides)
    )
    stop = threading.Event()
    with stopping_on_signals(stop), TrainingDisplay(chosen) as display:
        outcome = train_run(
            chosen,
            context,
            resume=resume,
            stop=stop,
            on_progress=display.progress,
            on_selection=display.selection,
        )
    result = outcome.result
    say(
        f"{outcome.run_id}: {result.status}"
        + (f" ({result.reason})" if result.reason else "")
        + f", {result.total_steps:,} steps at {result.steps_per_second:,.0f} steps/s"
    )
    if result.status == RunStatus.INTERRUPTED:
        say(f"go on with: mario train --resume {outcome.run_id}")
    elif outcome.artefact is not None:
        say(f"policy in {outcome.artefact}; register with: mario register {outcome.run_id}")
    # The process ends now. Else the interpreter looks through all objects of torch and MLflow for
    # garbage once more: over 4 s on a busy machine, of the 10 that a stop may take.
    gc.freeze()
    return outcome
