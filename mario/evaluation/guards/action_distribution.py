"""Guard: the challenger does not answer everything with the same action."""

from __future__ import annotations

import numpy as np

from mario.errors import EvaluationError
from mario.evaluation.guards.contract import GuardInput
from mario.evaluation.verdict import GuardResult


def guard(given: GuardInput) -> tuple[GuardResult]:
    """Refuse one action nearly always; value: its share over all steps, in [0, 1].

    Raises:
        EvaluationError: records with action sets of different sizes.
    """
    counted = [pair.challenger.action_counts for pair in given.pairs]
    if len({len(counts) for counts in counted}) > 1:
        raise EvaluationError(
            "got episodes with action sets of different sizes in one evaluation; expected one "
            "policy's; do not mix policies"
        )
    limit = given.rule.max_action_share
    counts = np.sum(counted, axis=0)
    total = int(counts.sum())
    share = float(counts.max() / total) if total else 0.0
    detail = (
        f"action {int(counts.argmax())} makes up {share:.1%} of {total} steps; "
        f"{int(np.count_nonzero(counts))} of {counts.size} actions are used"
    )
    return (GuardResult("action_distribution", share <= limit, share, limit, detail),)
