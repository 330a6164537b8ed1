"""What every sink is opened with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from mario.config.experiment import ExperimentConfig
from mario.journal.format import Patience
from mario.store.records import Run
from mario.store.runs import Runs
from mario.telemetry.instruments import InstrumentSet
from mario.tracking.mlflow_client import MlflowTracking
from mario.training.sinks import TrainingSink


@dataclass(frozen=True)
class SinkOpening:
    """What a sink may use of the run that it records.

    Attributes:
        config: the experiment; the sink's own settings are under ``config.sinks``.
        run: the run, as the store has it.
        run_dir: the run's folder.
        instruments: the run's Prometheus metrics.
        patience: how long to wait for another process that holds a journal of the run.
        tracking: the MLflow server.
        runs: returns the store's runs; connects to the database where it is not connected.
    """

    config: ExperimentConfig
    run: Run
    run_dir: Path
    instruments: InstrumentSet
    patience: Patience
    tracking: MlflowTracking
    runs: Callable[[], Runs]


class OpenSink(Protocol):
    """``open_sink`` of each module that `mario.config.sinks` lists."""

    def __call__(self, opening: SinkOpening) -> TrainingSink:
        """Open the sink of a run; whatever it raises leaves the sink out."""
        ...
