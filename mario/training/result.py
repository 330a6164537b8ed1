"""The score of a policy on selection seeds, and the result of a training run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from mario.config.run_states import RunStatus
from mario.policy.policy import Policy
from mario.training.collapse_detector import Health


@dataclass(frozen=True)
class SelectionScore:
    """How good a policy is on selection seeds.

    Attributes:
        score: higher is better.
        details: further numbers for a person, such as mean furthest x and clears.
    """

    score: float
    details: Mapping[str, float] = field(default_factory=dict)


Select = Callable[[Policy], SelectionScore | None]
"""Scores a policy on selection seeds; None where a stop interrupted it."""


@dataclass(frozen=True)
class BestCheckpoint:
    """The best policy of a run.

    Attributes:
        path: its checkpoint, with networks and optimizer.
        total_steps: agent steps when it was taken.
        score: its selection score.
    """

    path: Path
    total_steps: int
    score: float


@dataclass(frozen=True)
class TrainingResult:
    """The end of a run, or of one attempt at it.

    Attributes:
        status: finished, interrupted, collapsed or diverged.
        reason: an explanation; empty when finished.
        total_steps: agent steps of the run, earlier attempts included.
        attempt_steps: agent steps of this attempt.
        seconds: wall time of this attempt.
        steps_per_second: rate of this attempt.
        episodes: episodes finished in the whole run.
        mean_furthest_px: over the last 100 episodes of all environments.
        mean_return: likewise, shaped.
        best: the best checkpoint; None before the first selection.
        last: the last checkpoint written, for resuming.
        health: the collapse detector's last judgement.
        rollbacks: how often the run returned to its best policy.
    """

    status: RunStatus
    reason: str
    total_steps: int
    attempt_steps: int
    seconds: float
    steps_per_second: float
    episodes: int
    mean_furthest_px: float | None
    mean_return: float | None
    best: BestCheckpoint | None
    last: Path | None
    health: Health
    rollbacks: int
