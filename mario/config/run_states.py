"""The status of a training run, the health of its policy, and the kinds of its checkpoints."""

from __future__ import annotations

from enum import StrEnum


class RunStatus(StrEnum):
    """What a training run does, or how it ended.

    The database has no ``diverged``; the store keeps a diverged run as ``collapsed`` (`stored`).
    ``killed`` means that the process is gone without having reported an end.
    """

    RUNNING = "running"
    FINISHED = "finished"
    INTERRUPTED = "interrupted"
    COLLAPSED = "collapsed"
    DIVERGED = "diverged"
    FAILED = "failed"
    KILLED = "killed"

    @property
    def stored(self) -> RunStatus:
        """This status as the database keeps it."""
        return RunStatus.COLLAPSED if self is RunStatus.DIVERGED else self


class HealthState(StrEnum):
    """The collapse detector's judgement of a policy in training, in the order of severity."""

    WARMING = "warming"
    HEALTHY = "healthy"
    WARNING = "warning"
    COLLAPSED = "collapsed"
    DIVERGED = "diverged"

    @property
    def suspicious(self) -> bool:
        """Whether a rule of the detector is violated."""
        return self not in (HealthState.WARMING, HealthState.HEALTHY)

    @property
    def degenerated(self) -> bool:
        """Whether training must end or return to an earlier checkpoint."""
        return self in (HealthState.COLLAPSED, HealthState.DIVERGED)


class CheckpointKind(StrEnum):
    """Why a checkpoint is kept: ``last`` resumes the run, ``best`` scored highest."""

    LAST = "last"
    BEST = "best"
