"""Reports an attempt at a run to its sinks: start, episodes, progress, end."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from mario.config.run_states import HealthState, RunStatus
from mario.training.episodes import EpisodeWindow, TrainingEpisode
from mario.training.sinks import Progress, RunEnd, RunStart, SinkSet


class Reporter:
    """Collects finished episodes until the next boundary, and measures the attempt's rate.

    Attributes:
        start_steps: agent steps at which the attempt began.
    """

    def __init__(
        self, sinks: SinkSet, window: EpisodeWindow, target_steps: int,
        on_progress: Callable[[Progress], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:  # fmt: skip
        """Prepare.

        Args:
            sinks: receive everything.
            window: the last episodes, for the means.
            target_steps: agent steps of the whole run.
            on_progress: called after each update, beside the sinks.
            clock: seconds that never run backwards.
        """
        self.start_steps = 0
        self._sinks = sinks
        self._window = window
        self._target_steps = target_steps
        self._on_progress = on_progress
        self._clock = clock
        self._started = 0.0
        self._pending: list[TrainingEpisode] = []

    def start(self, start: RunStart) -> None:
        """Begin to measure, and report the start."""
        self.start_steps = start.start_steps
        self._started = self._clock()
        self._sinks.on_start(start)

    def add(self, episodes: Sequence[TrainingEpisode]) -> None:
        """Take finished episodes into the window, and keep them for :meth:`deliver`."""
        for episode in episodes:
            self._window.add(episode)
        self._pending += episodes

    def deliver(self) -> None:
        """Hand the episodes since the last call to the sinks."""
        if self._pending:
            episodes, self._pending = self._pending, []
            self._sinks.on_episodes(episodes)

    def progress(self, steps: int, state: HealthState, scalars: Mapping[str, Any]) -> None:
        """Report how far the run is.

        Args:
            steps: agent steps of the run.
            state: the collapse detector's judgement.
            scalars: numbers of the last update.
        """
        rate = self.rate(steps)[1]
        progress = Progress(
            total_steps=steps,
            target_steps=self._target_steps,
            steps_per_second=rate,
            seconds_left=max(self._target_steps - steps, 0) / rate if rate > 0 else None,
            episodes=self._window.finished,
            mean_furthest_px=self._window.mean_furthest_px(),
            mean_return=self._window.mean_return(),
            state=state,
            scalars={name: float(value) for name, value in scalars.items()},
        )
        self._sinks.on_progress(progress)
        if self._on_progress is not None:
            self._on_progress(progress)

    def rate(self, steps: int) -> tuple[float, float]:
        """Seconds of this attempt, and agent steps a second."""
        seconds = self._clock() - self._started
        return seconds, (steps - self.start_steps) / seconds if seconds > 0 else 0.0

    def end(self, status: RunStatus, reason: str, steps: int, stop: threading.Event) -> None:
        """Report the end of the attempt."""
        self._sinks.on_end(RunEnd(status, reason, steps, stop))
