"""What training tells MLflow, TensorBoard and Weights & Biases; each of them may be away."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mario.errors import RegistryError
from mario.journal import DeliveryRefusedError, DeliveryUnavailableError, JournaledWriter, Record
from mario.tracking import tracking_client
from mario.training.health import Health, HealthSample
from mario.training.sinks import BaseSink, Progress, RunEnd, RunStart, SelectionDone

log = logging.getLogger(__name__)

#: MLflow takes at most so many metrics in one batch (REST API, `runs/log-batch`).
_MLFLOW_BATCH = 1000
_CLOSE_SECONDS = 4.0
_MLFLOW_STATUS = {
    "finished": "FINISHED",
    "interrupted": "KILLED",
    "collapsed": "FAILED",
    "diverged": "FAILED",
}


def health_metrics(sample: HealthSample) -> dict[str, float]:
    """The finite single numbers of a health sample, by their names under ``health/``."""
    numbers = {}
    for name, value in sample.to_dict().items():
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
            numbers[f"health/{name}"] = float(value)
    return numbers


def progress_metrics(progress: Progress) -> dict[str, float]:
    """The numbers of a progress report, by their names in the trackers."""
    numbers = {"train/steps_per_second": progress.steps_per_second, **progress.scalars}
    if progress.mean_furthest_px is not None:
        numbers["episodes/mean_furthest_px"] = progress.mean_furthest_px
    if progress.mean_return is not None:
        numbers["episodes/mean_return"] = progress.mean_return
    return {name: value for name, value in numbers.items() if math.isfinite(value)}


class MlflowSink(BaseSink):
    """Logs metrics in batches from a thread, through a journal that survives MLflow's absence."""

    def __init__(self, tracking_uri: str, mlflow_run_id: str, run_dir: Path) -> None:
        """Log into a run that exists.

        Raises:
            StoreError: the journal cannot be opened.
        """
        self._uri = tracking_uri
        self._run_id = mlflow_run_id
        self._writer = JournaledWriter(
            run_dir / "journal-mlflow", self._deliver, name="mlflow", flush_seconds=2.0
        )

    def on_health(self, sample: HealthSample, health: Health) -> None:
        """Log the signals; a change of state becomes a tag."""
        self._metrics(health_metrics(sample), sample.total_steps)
        if health.changed:
            self._writer.put(
                [
                    {"tag": "mario.health", "value": health.state},
                    {"tag": "mario.health_reasons", "value": "; ".join(health.reasons)[:5000]},
                ]
            )

    def on_selection(self, selection: SelectionDone) -> None:
        """Log the score on selection seeds."""
        numbers = {f"selection/{name}": value for name, value in selection.details.items()}
        self._metrics({"selection/score": selection.score, **numbers}, selection.total_steps)

    def on_progress(self, progress: Progress) -> None:
        """Log rates and means."""
        self._metrics(progress_metrics(progress), progress.total_steps)

    def on_end(self, end: RunEnd) -> None:
        """Log how it ended, and wait a little for MLflow."""
        self._writer.put(
            [
                {"tag": "mario.status", "value": end.status},
                {"tag": "mario.status_reason", "value": end.reason[:5000]},
                {"terminated": _MLFLOW_STATUS[end.status]},
            ]
        )
        self._writer.close(_CLOSE_SECONDS)

    def _metrics(self, numbers: dict[str, float], step: int) -> None:
        at = int(time.time() * 1000)
        self._writer.put(
            [{"metric": n, "value": v, "at": at, "step": step} for n, v in numbers.items()]
        )

    def _deliver(self, records: Sequence[Record]) -> None:
        from mlflow.entities import Metric, RunTag
        from mlflow.exceptions import MlflowException

        metrics = [
            Metric(r["metric"], r["value"], r["at"], r["step"]) for r in records if "metric" in r
        ]
        tags = [RunTag(r["tag"], r["value"]) for r in records if "tag" in r]
        try:
            client = tracking_client(self._uri)
            for start in range(0, len(metrics), _MLFLOW_BATCH):
                client.log_batch(self._run_id, metrics=metrics[start : start + _MLFLOW_BATCH])
            if tags:
                client.log_batch(self._run_id, tags=tags)
            for record in records:
                if "terminated" in record:
                    client.set_terminated(self._run_id, record["terminated"])
        except MlflowException as error:
            if error.error_code == "INVALID_PARAMETER_VALUE":
                raise DeliveryRefusedError(str(error)) from error
            raise DeliveryUnavailableError(str(error)) from error
        except (RegistryError, OSError) as error:
            raise DeliveryUnavailableError(str(error)) from error


class TensorBoardSink(BaseSink):
    """Writes event files for TensorBoard."""

    def __init__(self, folder: Path) -> None:
        """Write into a folder; needs the package tensorboard."""
        from torch.utils.tensorboard import SummaryWriter

        self._writer: Any = SummaryWriter(str(folder))

    def on_health(self, sample: HealthSample, health: Health) -> None:
        """Write the signals."""
        self._write(health_metrics(sample), sample.total_steps)

    def on_selection(self, selection: SelectionDone) -> None:
        """Write the score."""
        self._write({"selection/score": selection.score}, selection.total_steps)

    def on_progress(self, progress: Progress) -> None:
        """Write rates and means."""
        self._write(progress_metrics(progress), progress.total_steps)

    def on_end(self, end: RunEnd) -> None:
        """Close the file."""
        self._writer.close()

    def _write(self, numbers: dict[str, float], step: int) -> None:
        for name, value in numbers.items():
            self._writer.add_scalar(name, value, step)


class WandbSink(BaseSink):
    """Logs to Weights & Biases, online or into files that `wandb sync` sends later."""

    def __init__(self, run_id: str, run_dir: Path, mode: str) -> None:
        """Prepare; the run opens with the training's start.

        Args:
            run_id: the run's id, so that a resumed run goes on in the same place.
            run_dir: where files are kept.
            mode: ``offline`` or ``online``.
        """
        self._run_id = run_id
        self._run_dir = run_dir
        self._mode = mode
        self._run: Any = None

    def on_start(self, start: RunStart) -> None:
        """Open the run."""
        import wandb

        self._run = wandb.init(
            project="mario",
            id=self._run_id,
            resume="allow",
            mode=self._mode,
            dir=str(self._run_dir),
            name=start.config.name,
            config=start.config.model_dump(mode="json"),
        )

    def on_health(self, sample: HealthSample, health: Health) -> None:
        """Log the signals."""
        if self._run is not None:
            self._run.log({**health_metrics(sample), "steps": sample.total_steps})

    def on_progress(self, progress: Progress) -> None:
        """Log rates and means."""
        if self._run is not None:
            self._run.log({**progress_metrics(progress), "steps": progress.total_steps})

    def on_end(self, end: RunEnd) -> None:
        """Close the run."""
        if self._run is not None:
            self._run.finish(exit_code=0 if end.status == "finished" else 1, quiet=True)
