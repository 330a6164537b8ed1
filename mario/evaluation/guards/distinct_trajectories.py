"""Guard: episodes of different seeds are different episodes."""

from __future__ import annotations

from collections.abc import Sequence

from mario.evaluation.guards.contract import GuardInput
from mario.evaluation.records import EpisodeRecord
from mario.evaluation.verdict import GuardResult


def guard(given: GuardInput) -> tuple[GuardResult, GuardResult]:
    """Refuse copies on either side: the test would count them as new evidence.

    Value: share of episodes whose trajectory already occurred on the same level under another seed.
    """
    limit = given.rule.max_duplicate_share
    return (
        _check([pair.challenger for pair in given.pairs], limit, "challenger"),
        _check([pair.champion for pair in given.pairs], limit, "champion"),
    )


def _check(records: Sequence[EpisodeRecord], limit: float, side: str) -> GuardResult:
    seen: set[tuple[str, str]] = set()
    copies = 0
    for record in records:
        key = (record.level, record.trajectory_hash)
        copies += key in seen
        seen.add(key)
    share = copies / len(records) if records else 0.0
    return GuardResult(
        f"distinct_trajectories_{side}",
        share <= limit,
        share,
        limit,
        f"{copies} of {len(records)} episodes of the {side} repeat an earlier trajectory",
    )
