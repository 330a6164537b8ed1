"""Schedules of learning rate, clip range and entropy: constant or linear to zero."""

from __future__ import annotations

from collections.abc import Callable

from stable_baselines3.common.base_class import BaseAlgorithm

from mario.config.algorithms import ScheduleName

Schedule = Callable[[float], float]
"""Share of the run that remains, 1 … 0 → value."""


class ScaledSchedule:
    """A schedule that a rollback lowers.

    Attributes:
        factor: what every value is multiplied with, > 0.
    """

    def __init__(self, initial: float, kind: ScheduleName) -> None:
        """Start at `initial`; `linear` falls to 0 at the end of the run."""
        self._initial = initial
        self._kind = kind
        self.factor = 1.0

    def __call__(self, remaining: float) -> float:
        """Give the value where the share `remaining` (1 … 0) of the run is left."""
        share = 1.0 if self._kind == "constant" else min(max(remaining, 0.0), 1.0)
        return self._initial * share * self.factor


def schedule(initial: float, kind: ScheduleName) -> ScaledSchedule:
    """Make a schedule that starts at `initial`."""
    return ScaledSchedule(initial, kind)


def learning_rate(model: BaseAlgorithm) -> ScaledSchedule:
    """Give the model's learning rate schedule, whose factor a rollback lowers."""
    rate = model.learning_rate
    assert isinstance(rate, ScaledSchedule)
    return rate
