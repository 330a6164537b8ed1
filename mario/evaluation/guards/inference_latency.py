"""Guard: the challenger is not much slower to answer than the champion."""

from __future__ import annotations

import numpy as np

from mario.errors import EvaluationError
from mario.evaluation.guards.contract import GuardInput
from mario.evaluation.verdict import GuardResult


def guard(given: GuardInput) -> tuple[GuardResult, ...]:
    """Refuse a slow network; value: ratio of medians, because a busy machine makes long tails.

    It does not apply to an artefact without recorded observations, which the guard
    `onnx_agreement` refuses, nor where the champion is no network.

    Raises:
        EvaluationError: a side without positive times.
    """
    times = None if given.networks is None else given.networks.call_times()
    if times is None:
        return ()
    mine, theirs = (np.asarray(seconds, np.float64) for seconds in times)
    if mine.size == 0 or theirs.size == 0 or not (mine > 0).all() or not (theirs > 0).all():
        raise EvaluationError(
            f"got {mine.size} and {theirs.size} call times; expected at least one on each side, "
            "all > 0 seconds; time both policies on the same observations"
        )
    a, b = float(np.median(mine)), float(np.median(theirs))
    limit = given.rule.max_latency_ratio
    detail = f"median {a * 1e3:.3f} ms against {b * 1e3:.3f} ms of the champion"
    return (GuardResult("inference_latency", a / b <= limit, a / b, limit, detail),)
