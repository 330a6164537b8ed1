"""Selection of the best policy: when the policy is scored, and whether it is the best so far."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from mario.config.checkpoints import SelectionConfig
from mario.training.checkpoint import CheckpointContent
from mario.training.checkpoint_retention import RunCheckpoints
from mario.training.interval import StepInterval
from mario.training.result import SelectionScore
from mario.training.sinks import SelectionDone, SinkSet


class Selection:
    """Scores the policy at multiples of `selection.every_steps`, and has the best one written.

    Attributes:
        interval: when the next selection is due.
    """

    def __init__(
        self, settings: SelectionConfig, checkpoints: RunCheckpoints, sinks: SinkSet,
        stop: threading.Event,
    ) -> None:  # fmt: skip
        """Prepare.

        Args:
            settings: how often; without units there is no selection at all.
            checkpoints: hold the best policy.
            sinks: receive each score.
            stop: set when the run must end; a selection that it interrupts is repeated later.
        """
        self.interval = StepInterval(settings.every_steps)
        self._enabled = settings.units > 0
        self._checkpoints = checkpoints
        self._sinks = sinks
        self._stop = stop

    def is_due(self, steps: int, *, finished: bool) -> bool:
        """Whether to score the policy after so many agent steps; always at the run's end."""
        return self._enabled and (finished or self.interval.is_due(steps))

    def run(
        self,
        steps: int,
        score: Callable[[], SelectionScore | None],
        capture: Callable[[SelectionScore], CheckpointContent],
    ) -> None:
        """Score the policy, and write it where it is the best so far.

        Args:
            steps: agent steps of the run.
            score: scores the policy; None where it has no episode yet, or where a stop
                interrupted the scoring.
            capture: copies what a checkpoint of the best policy holds.
        """
        began = time.monotonic()
        result = score()
        if result is None and self._stop.is_set():
            return
        self.interval.advance(steps)
        if result is None:
            return
        best = self._checkpoints.best
        is_best = (best is None or result.score > best.score) and self._checkpoints.save_best(
            steps, result.score, capture(result)
        )
        best = self._checkpoints.best
        best_score = best.score if best else result.score
        self._sinks.on_selection(
            SelectionDone(steps, result.score, best_score, is_best, dict(result.details),
                          time.monotonic() - began)
        )  # fmt: skip
