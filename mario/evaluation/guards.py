"""Guards of the gate: what keeps the champion even when the test says "better".

Each guard is a plain function that returns a `GuardResult` with what was measured, its limit and
a sentence. Those that need nothing but the records are run by `gate.decide`; the two that need the
policies (`onnx_agreement`, `inference_latency`) are run by the caller, who hands their results in.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from mario.errors import EvaluationError
from mario.evaluation.betting import (
    PRIOR_BOLD,
    FloatArray,
    log_wealth,
    lower_bound,
    prior_for,
)
from mario.evaluation.records import EpisodeRecord, PairedUnit
from mario.evaluation.rule import GateRule
from mario.evaluation.statistics import exact_lower_bound, holm
from mario.evaluation.verdict import GuardResult, LevelResult

#: The guard that a verdict on a network needs: who was trained is who would be served.
NETWORK_GUARD: Final = "onnx_agreement"


def level_non_inferiority(
    pairs: Sequence[PairedUnit], rule: GateRule, levels: Sequence[str]
) -> tuple[GuardResult, tuple[LevelResult, ...]]:
    """No level significantly worse than `level_margin`, with Holm's correction over levels.

    The name is older than the wording: it is a test of inferiority. It refuses a challenger whose
    loss on a level is proven and passes one whose loss is not; it proves no level non-inferior,
    for which the evidence would have to run the other way and few units could not pass. Whoever
    passes with 12 units a level may be somewhat worse there.

    A level is not worse when neither the primary metric nor the clear rate has fallen by more than
    the margin. Each level bets against that, half its stake on each of the two (the average of
    two e-processes is one for the intersection of their nulls; Vovk & Wang 2021, Ann. Statist.
    49). One over the greatest capital is a p-value whatever moment the main test stopped at, so
    Holm's step-down over the levels keeps the chance of a false alarm on any level at
    `level_alpha`. With 12 units on each of 32 levels it takes a lost level to be significant:
    more units a level, or a greater `level_alpha`, make the guard sharper.

    Args:
        pairs: counted pairs in order of play.
        rule: gives metric, margin and level_alpha.
        levels: the task's levels.

    Returns:
        The guard (value: least corrected p-value) and one result per level.
    """
    by_level: dict[str, list[PairedUnit]] = {level: [] for level in levels}
    for pair in pairs:
        by_level[pair.level].append(pair)
    differences = {
        level: np.array([p.difference(rule.primary) for p in own])
        for level, own in by_level.items()
    }
    prior = prior_for(rule.primary)
    p_values = [_p_worse(by_level[level], rule) for level in levels]
    corrected = holm(p_values)
    results = []
    for level, p_worse, p_holm in zip(levels, p_values, corrected, strict=True):
        d, own = differences[level], by_level[level]
        results.append(
            LevelResult(
                level=level,
                units=int(d.size),
                mean=float(d.mean()) if d.size else 0.0,
                lower=lower_bound(d, rule.level_alpha, prior=prior),
                upper=-lower_bound(-d, rule.level_alpha, prior=prior),
                p_worse=p_worse,
                p_holm=float(p_holm),
                challenger_clears=sum(p.challenger.cleared for p in own),
                champion_clears=sum(p.champion.cleared for p in own),
            )
        )
    least = float(corrected.min())
    worse = [r.level for r in results if r.p_holm <= rule.level_alpha]
    detail = (
        f"significantly worse on {', '.join(worse)} (least corrected p {least:.2g})"
        if worse
        else f"no level significantly worse (least corrected p {least:.2g} over {len(levels)})"
    )
    return GuardResult("levels", not worse, least, rule.level_alpha, detail), tuple(results)


def _p_worse(pairs: Sequence[PairedUnit], rule: GateRule) -> float:
    """Anytime-valid p-value of one level against "not worse by more than the margin"."""
    if not pairs:
        return 1.0
    losses = [
        np.array([p.difference(metric) for p in pairs])
        for metric in dict.fromkeys((rule.primary, "clear"))
    ]
    return math.exp(-max(0.0, float(log_evidence_worse(losses, rule.level_margin).max())))


def log_evidence_worse(differences: Sequence[FloatArray], margin: float = 0.0) -> FloatArray:
    """Log evidence over time against "worse by at most the margin in each of the metrics".

    Args:
        differences: for each metric float `(…, n)` in [-1, 1], challenger minus champion on one
            level, in order of play.
        margin: tolerated loss, in [0, 1).

    Returns:
        float64 `(…, n)`: log of the average of the metrics' capitals after each unit.
    """
    # Not worse is a mean of -d of at most the margin.
    log_e = [log_wealth(-d, margin, prior=PRIOR_BOLD) for d in differences]
    average = np.logaddexp.reduce(log_e, axis=0) - math.log(len(log_e))
    return np.asarray(average, dtype=np.float64)


def distinct_trajectories(
    records: Sequence[EpisodeRecord], rule: GateRule, side: str
) -> GuardResult:
    """Episodes of different seeds are different episodes.

    Args:
        records: one policy's counted episodes.
        rule: gives max_duplicate_share.
        side: `challenger` or `champion`, for the name.

    Returns:
        The guard; value: share of episodes whose trajectory already occurred on the same level
        under another seed. Copies would be counted by the test as if they were new evidence.
    """
    seen: set[tuple[str, str]] = set()
    copies = 0
    for record in records:
        key = (record.level, record.trajectory_hash)
        copies += key in seen
        seen.add(key)
    share = copies / len(records) if records else 0.0
    return GuardResult(
        f"distinct_trajectories_{side}",
        share <= rule.max_duplicate_share,
        share,
        rule.max_duplicate_share,
        f"{copies} of {len(records)} episodes of the {side} repeat an earlier trajectory",
    )


def action_distribution(records: Sequence[EpisodeRecord], rule: GateRule) -> GuardResult:
    """The challenger does not answer one and the same action to everything.

    Returns:
        The guard; value: share of the most frequent action over all steps, in [0, 1].

    Raises:
        EvaluationError: records with action sets of different sizes.
    """
    if len({len(r.action_counts) for r in records}) > 1:
        raise EvaluationError(
            "got episodes with action sets of different sizes in one evaluation; expected one "
            "policy's; do not mix policies"
        )
    counts = np.sum([r.action_counts for r in records], axis=0) if records else np.zeros(1)
    total = int(counts.sum())
    share = float(counts.max() / total) if total else 0.0
    used = int(np.count_nonzero(counts))
    return GuardResult(
        "action_distribution",
        share <= rule.max_action_share,
        share,
        rule.max_action_share,
        f"action {int(counts.argmax())} makes up {share:.1%} of {total} steps; "
        f"{used} of {counts.size} actions are used",
    )


def clear_rate_bound(
    pairs: Sequence[PairedUnit], rule: GateRule, units: int | None = None
) -> GuardResult:
    """Exact one-sided bound on the challenger's clear rate over the first units.

    The number of units is fixed by the rule, not by the test's stopping, so the bound of Clopper
    and Pearson is exact: 59 of 59 proves at least 95% at confidence 95%. With levels of unlike
    difficulty it is a bound on their average: so many clears are then less likely, not more
    (Hoeffding 1956, Ann. Math. Statist. 27).

    Args:
        pairs: counted pairs in order of play.
        rule: gives rate and confidence.
        units: how many count; None takes the rule's `clear_units`. The gate gives that in whole
            blocks, so that each level counts as often and the order within a block does not.

    Raises:
        EvaluationError: the rule asks for no bound, or too few units.
    """
    units = rule.clear_units if units is None else units
    if rule.clear_rate_at_least is None or len(pairs) < units:
        raise EvaluationError(
            f"got {len(pairs)} units and clear_rate_at_least={rule.clear_rate_at_least}; expected "
            f"{units} units and a rate; correct the rule"
        )
    clears = sum(p.challenger.cleared for p in pairs[:units])
    bound = exact_lower_bound(clears, units, rule.clear_confidence)
    return GuardResult(
        "clear_rate",
        bound >= rule.clear_rate_at_least,
        bound,
        rule.clear_rate_at_least,
        f"{clears} of the first {units} units cleared: at least {bound:.4f} at "
        f"confidence {rule.clear_confidence}",
    )


def onnx_agreement(
    onnx_logits: NDArray[np.floating], torch_logits: NDArray[np.floating], rule: GateRule
) -> GuardResult:
    """The exported network answers like the trained one on recorded observations.

    Args:
        onnx_logits: float `(N, A)` from the artefact's runtime.
        torch_logits: float `(N, A)` from the trained network on the same observations.
        rule: gives max_logit_difference.

    Returns:
        The guard; value: greatest absolute difference (infinite when anything is not finite).

    Raises:
        EvaluationError: shapes differ or nothing was compared.
    """
    left, right = np.asarray(onnx_logits, np.float64), np.asarray(torch_logits, np.float64)
    if left.shape != right.shape or left.ndim != 2 or left.shape[0] == 0:
        raise EvaluationError(
            f"got logits of shapes {left.shape} and {right.shape}; expected the same (N, A) with "
            "N ≥ 1; answer the same recorded observations with both"
        )
    finite = bool(np.isfinite(left).all() and np.isfinite(right).all())
    worst = float(np.abs(left - right).max()) if finite else np.finfo(np.float64).max
    same = float((left.argmax(axis=1) == right.argmax(axis=1)).mean())
    return GuardResult(
        NETWORK_GUARD,
        worst <= rule.max_logit_difference,
        worst,
        rule.max_logit_difference,
        f"largest difference of logits {worst:.3g} over {left.shape[0]} observations; the same "
        f"best action on {same:.1%}",
    )


def inference_latency(
    challenger_seconds: NDArray[np.floating] | Sequence[float],
    champion_seconds: NDArray[np.floating] | Sequence[float],
    rule: GateRule,
) -> GuardResult:
    """The challenger is not much slower to answer than the champion.

    Args:
        challenger_seconds: wall-clock of single calls, in seconds, interleaved with the others.
        champion_seconds: the same for the champion.
        rule: gives max_latency_ratio.

    Returns:
        The guard; value: ratio of medians (medians, because a busy machine makes long tails).

    Raises:
        EvaluationError: a side without positive times.
    """
    mine, theirs = np.asarray(challenger_seconds, float), np.asarray(champion_seconds, float)
    if mine.size == 0 or theirs.size == 0 or not (mine > 0).all() or not (theirs > 0).all():
        raise EvaluationError(
            f"got {mine.size} and {theirs.size} call times; expected at least one on each side, "
            "all > 0 seconds; time both policies on the same observations"
        )
    a, b = float(np.median(mine)), float(np.median(theirs))
    return GuardResult(
        "inference_latency",
        a / b <= rule.max_latency_ratio,
        a / b,
        rule.max_latency_ratio,
        f"median {a * 1e3:.3f} ms against {b * 1e3:.3f} ms of the champion",
    )
