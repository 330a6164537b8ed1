"""What training tells MLflow, TensorBoard and Weights & Biases; each of them may be away."""

from __future__ import annotations

import logging
import math
import threading
from pathlib import Path
from typing import Any, Literal

from mario.store.runs import flatten
from mario.tracking_writer import TrackingWriter
from mario.training.health import Health, HealthSample
from mario.training.run import CONFIG_FILE
from mario.training.sinks import BaseSink, Progress, RunEnd, RunStart, SelectionDone

log = logging.getLogger(__name__)

#: As for the store: a run that was told to end does not wait long.
_CLOSE_SECONDS, _CLOSE_SECONDS_INTERRUPTED = 20.0, 2.0


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
    """Reports to MLflow through the journalled writer, which survives MLflow's absence."""

    def __init__(self, writer: TrackingWriter) -> None:
        """Report through a writer, closed at the run's end."""
        self._writer = writer

    def on_start(self, start: RunStart) -> None:
        """Log parameters, the configuration, and the levels as the data it is trained on."""
        config = start.config
        self._writer.parameters(flatten(config.model_dump(mode="json")))
        self._writer.tags({"mario.config_hash": config.content_hash(), **_plain(start.hardware)})
        self._writer.file(start.run_dir / CONFIG_FILE)
        self._writer.dataset(
            f"super-mario-bros-{config.task}",
            "gym-super-mario-bros==7.4.0",
            {"levels": list(config.level_names), "environments": config.environments},
        )

    def on_health(self, sample: HealthSample, health: Health) -> None:
        """Log the signals; a change of state becomes a tag."""
        self._writer.metrics(sample.total_steps, health_metrics(sample))
        if health.changed:
            self._writer.tags(
                {"mario.health": health.state, "mario.health_reasons": "; ".join(health.reasons)}
            )

    def on_selection(self, selection: SelectionDone) -> None:
        """Log the score on selection seeds."""
        numbers = {f"selection/{name}": value for name, value in selection.details.items()}
        self._writer.metrics(selection.total_steps, {"selection/score": selection.score, **numbers})

    def on_progress(self, progress: Progress) -> None:
        """Log rates and means."""
        self._writer.metrics(progress.total_steps, progress_metrics(progress))

    def flush(self) -> bool:
        """Make what was written durable on this disk, or a run resumed from here lacks it."""
        return self._writer.sync()

    def on_end(self, end: RunEnd) -> None:
        """Log how it ended, and wait a little for MLflow."""
        if end.reason:
            self._writer.tags({"mario.status_reason": end.reason})
        self._writer.end(end.status)
        report = self._writer.close(_patience_seconds(end))
        if report.pending:
            log.warning(
                "MLflow did not take everything in time (%s); the rest is in the run's journal",
                report.last_error or "no answer",
            )


def _patience_seconds(end: RunEnd) -> float:
    return _CLOSE_SECONDS_INTERRUPTED if end.status == "interrupted" else _CLOSE_SECONDS


def _plain(values: dict[str, Any]) -> dict[str, str]:
    return {f"mario.{name}": str(value) for name, value in values.items()}


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

    def __init__(self, run_id: str, run_dir: Path, mode: Literal["offline", "online"]) -> None:
        """Prepare; the run opens with the training's start.

        Args:
            run_id: the run's id, so that a resumed run goes on in the same place.
            run_dir: where files are kept.
            mode: whether it is sent now, or later by `wandb sync`.
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
            resume="allow" if self._mode == "online" else None,
            mode=self._mode,
            dir=str(self._run_dir),
            name=start.config.name,
            config=start.config.model_dump(mode="json"),
            # Its summary on the terminal would hide this project's own.
            settings=wandb.Settings(silent=True),
        )

    def on_health(self, sample: HealthSample, health: Health) -> None:
        """Log the signals."""
        if self._run is not None:
            self._run.log({**health_metrics(sample), "steps": sample.total_steps})

    def on_selection(self, selection: SelectionDone) -> None:
        """Log the score."""
        if self._run is not None:
            self._run.log({"selection/score": selection.score, "steps": selection.total_steps})

    def on_progress(self, progress: Progress) -> None:
        """Log rates and means."""
        if self._run is not None:
            self._run.log({**progress_metrics(progress), "steps": progress.total_steps})

    def on_end(self, end: RunEnd) -> None:
        """Close the run."""
        if self._run is None:
            return
        exit_code = 0 if end.status == "finished" else 1
        if self._mode == "offline":
            self._run.finish(exit_code=exit_code)
            return
        # With the network away `finish` waits for as long as that lasts.
        finish = threading.Thread(target=self._run.finish, args=(exit_code,), daemon=True)
        finish.start()
        finish.join(_patience_seconds(end))
        if finish.is_alive():
            log.warning("Weights & Biases did not take everything in time; `wandb sync` sends it")
