"""The decisions of the gate; apart from the statistics, so that a service needs no scipy."""

from __future__ import annotations

from enum import StrEnum


class GateDecision(StrEnum):
    """What the gate decides about a challenger."""

    PROMOTE = "promote"
    REJECT = "reject"
    INCONCLUSIVE = "inconclusive"
