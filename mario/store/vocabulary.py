"""Enumerations of the store: evaluations, registered versions, promotions, alpha accounts."""

from __future__ import annotations

from enum import StrEnum


class EvaluationStatus(StrEnum):
    """What an evaluation does, or how it ended."""

    RUNNING = "running"
    FINISHED = "finished"
    INTERRUPTED = "interrupted"
    FAILED = "failed"


class VersionState(StrEnum):
    """How far the registration of a version is."""

    PENDING = "pending"
    COMPLETE = "complete"
    BROKEN = "broken"


class PromotionReason(StrEnum):
    """Why a version became champion: by a verdict, as the first one, or by a rollback."""

    GATE = "gate"
    FIRST = "first"
    ROLLBACK = "rollback"


class AlphaKind(StrEnum):
    """A movement of a model's alpha account.

    ``grant`` opens the account, ``spend`` pays for a test, ``earn`` refills it after a promotion.
    """

    GRANT = "grant"
    SPEND = "spend"
    EARN = "earn"
