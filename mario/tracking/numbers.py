"""The numbers of a run, named alike in all trackers, and the base of sinks that write them."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

from mario.training.collapse_detector import Health, HealthSample
from mario.training.sinks import Progress, SelectionDone, TrainingSink


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


class NumbersSink(TrainingSink, ABC):
    """Writes the numbers of a run, one record at a time; a subclass says where."""

    def on_health(self, sample: HealthSample, health: Health) -> None:
        """Write the signals."""
        self._write(health_metrics(sample), sample.total_steps)

    def on_selection(self, selection: SelectionDone) -> None:
        """Write the score."""
        self._write({"selection/score": selection.score}, selection.total_steps)

    def on_progress(self, progress: Progress) -> None:
        """Write rates and means."""
        self._write(progress_metrics(progress), progress.total_steps)

    @abstractmethod
    def _write(self, numbers: dict[str, float], steps: int) -> None:
        """Write numbers by metric name.

        Args:
            numbers: finite values by metric name.
            steps: agent steps of the run.
        """
