"""Feeds the collapse detector: one sample for each update, from the last episodes and signals."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from mario.config.run_states import HealthState
from mario.training.collapse_detector import (
    CollapseDetector,
    Health,
    HealthRules,
    HealthSample,
    spearman,
)
from mario.training.episodes import RECENT_EPISODES, EpisodeWindow
from mario.training.sinks import SinkSet

log = logging.getLogger(__name__)


class HealthMonitor:
    """Numbers the updates of a run, has each judged, and reports the judgement.

    Attributes:
        health: the last judgement.
        update: number of the last update, from 1; 0 before the first.
    """

    def __init__(
        self, window: EpisodeWindow, sinks: SinkSet, target_steps: int,
        rules: HealthRules | None = None, clock: Callable[[], float] = time.monotonic,
    ) -> None:  # fmt: skip
        """Begin with a run that has no update yet.

        Args:
            window: the last episodes; the run adds them.
            sinks: receive each sample with its judgement.
            target_steps: agent steps of the whole run.
            rules: thresholds of the detector.
            clock: seconds that never run backwards.
        """
        self.health = Health(HealthState.WARMING)
        self.update = 0
        self._window = window
        self._sinks = sinks
        self._target_steps = target_steps
        self._detector = CollapseDetector(rules)
        self._clock = clock
        self._updated_at: float | None = None

    @property
    def reported_state(self) -> HealthState:
        """The state that was reported last; after a rollback still the collapse before it."""
        return self._detector.reported_state

    def observe(
        self,
        total_steps: int,
        *,
        scalars: Mapping[str, Any],
        signals: Mapping[str, Any],
        gradient_norm: float | None,
    ) -> Health:
        """Judge an update.

        Args:
            total_steps: agent steps of the run so far.
            scalars: what stable-baselines3 logged in `train()`.
            signals: further fields of the sample.
            gradient_norm: L2 norm before clipping, mean over the update; None where unknown.
        """
        self.update += 1
        sample = make_sample(
            self._window, update=self.update, total_steps=total_steps,
            target_steps=self._target_steps, gradient_norm=gradient_norm, scalars=scalars,
            signals=signals, since_update=self._age(),
        )  # fmt: skip
        health = self._judge(sample)
        if health.changed and health.state.suspicious:
            log.warning("%s after %d steps: %s", health.state, total_steps,
                        "; ".join(health.reasons))  # fmt: skip
        return health

    def refuse(self, total_steps: int, reason: str) -> Health:
        """Record a skipped update, whose gradient is not finite: the run has diverged."""
        self.update += 1
        window = self._window
        health = self._judge(
            HealthSample(
                self.update, total_steps, non_finite=True, mean_return=window.mean_return(),
                mean_furthest_px=window.mean_furthest_px(), episodes_finished=window.finished,
                episodes_seen=window.seen,
            )
        )  # fmt: skip
        log.warning("diverged after %d steps: %s", total_steps, reason)
        return health

    def roll_back(self) -> None:
        """Forget the policy before a rollback: its episodes, and the detector's memory of it."""
        self._detector.restart()
        self._window.roll_back()

    def restart_clock(self) -> None:
        """Measure the age of the last update from now: a selection is no delay."""
        self._updated_at = self._clock()

    def to_dict(self) -> dict[str, Any]:
        """The monitor's state, as JSON types."""
        return {
            "update": self.update,
            "window": self._window.to_dict(),
            "detector": self._detector.to_dict(),
        }

    def restore(self, values: Mapping[str, Any]) -> None:
        """Restore what :meth:`to_dict` gave."""
        self.update = values["update"]
        self._window.restore(values["window"])
        self._detector.restore(values["detector"])
        self.health = Health(self._detector.state)

    def _judge(self, sample: HealthSample) -> Health:
        self.health = self._detector.update(sample)
        self._sinks.on_health(sample, self.health)
        return self.health

    def _age(self) -> float | None:
        """Seconds since the previous update, where they are too many."""
        now = self._clock()
        age = 0.0 if self._updated_at is None else now - self._updated_at
        self._updated_at = now
        return age if age > self._detector.rules.stale_seconds else None


def make_sample(
    window: EpisodeWindow,
    *,
    update: int,
    total_steps: int,
    target_steps: int,
    gradient_norm: float | None,
    scalars: Mapping[str, Any],
    signals: Mapping[str, Any],
    since_update: float | None = None,
) -> HealthSample:
    """Put the sample of an update together.

    Args:
        window: the last episodes.
        update: its number, from 1.
        total_steps: agent steps of the run so far.
        target_steps: agent steps of the whole run.
        gradient_norm: from :class:`GradientMeter`.
        scalars: what stable-baselines3 logged in `train()`.
        signals: further fields of the sample, from :func:`rollout_signals` and the algorithm's
            `update_signals`.
        since_update: seconds since the previous update, where they are too many.
    """
    returns, furthest = window.recent()
    enough = len(returns) == RECENT_EPISODES
    finite = all(math.isfinite(value) for name, value in scalars.items()
                 if name.startswith("train/") and name != "train/explained_variance")  # fmt: skip
    return HealthSample(
        update=update,
        total_steps=total_steps,
        progress=min(total_steps / target_steps, 1.0),
        mean_return=window.mean_return(),
        mean_furthest_px=window.mean_furthest_px(),
        environments_furthest_px=window.environments_furthest_px(),
        recent_return=float(np.mean(returns)) if enough else None,
        recent_furthest_px=float(np.mean(furthest)) if enough else None,
        return_progress_correlation=spearman(returns, furthest) if enough else None,
        episodes_finished=window.finished,
        episodes_seen=window.seen,
        gradient_norm=gradient_norm,
        seconds_since_update=since_update,
        non_finite=not finite or not math.isfinite(gradient_norm or 0.0),
        **signals,
    )
