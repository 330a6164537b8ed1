"""Open the sinks of a training run: the store's, and those that its configuration enables."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from pathlib import Path

from mario.config.experiment import ExperimentConfig
from mario.config.parts import load_part
from mario.jobs.context import JobContext
from mario.journal.format import Patience
from mario.store.journal_writer import StoreWriter
from mario.store.records import Run
from mario.telemetry.instruments import InstrumentSet
from mario.telemetry.store import StoreMetrics
from mario.telemetry.training import TrainingMetrics
from mario.tracking.opening import OpenSink, SinkOpening
from mario.tracking.store import StoreSink
from mario.training.sinks import SelectionDone, TrainingSink

log = logging.getLogger(__name__)

OnSelection = Callable[[SelectionDone], None]


class _SelectionListener(TrainingSink):
    """Passes selections to a callback."""

    def __init__(self, callback: OnSelection) -> None:
        self._callback = callback

    def on_selection(self, selection: SelectionDone) -> None:
        """Call the callback."""
        self._callback(selection)


def open_sinks(
    config: ExperimentConfig,
    context: JobContext,
    run: Run,
    run_dir: Path,
    on_selection: OnSelection | None = None,
    stop: threading.Event | None = None,
) -> list[TrainingSink]:
    """Open the store's sink and those that the configuration enables.

    A sink that cannot be opened is logged, counted and left out. If another process holds a
    journal of the run, each sink waits for it up to `Waits.lock_seconds`, or until `stop` is set.

    Args:
        config: the experiment.
        context: settings, store, tracking and waits.
        run: the run, with the attempt that begins.
        run_dir: its folder.
        on_selection: called with each score on selection seeds.
        stop: ends the waiting.

    Raises:
        StoreError: the store's journal cannot be opened, so the run would not be recorded.
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
    opening = SinkOpening(
        config=config,
        run=run,
        run_dir=run_dir,
        instruments=instruments,
        patience=patience,
        tracking=context.tracking,
        runs=lambda: context.store.runs,
    )
    for name in config.sinks.enabled:
        try:
            open_sink: OpenSink = load_part("mario.tracking", name, "open_sink")
            sinks.append(open_sink(opening))
        except Exception as error:  # no sink may prevent a run from training
            log.warning("the sink %s is left out: %s: %s", name, type(error).__name__, error)
            metrics.sink_error(name)
    if on_selection is not None:
        sinks.append(_SelectionListener(on_selection))
    return sinks
