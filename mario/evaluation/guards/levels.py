"""Guard: no level is significantly worse."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from mario.config.gate import GateRule
from mario.evaluation.betting import (
    PRIOR_BOLD,
    log_wealth,
    lower_bound,
    prior_for,
)
from mario.evaluation.guards.contract import GuardInput
from mario.evaluation.records import PairedUnit
from mario.evaluation.statistics import FloatArray, holm
from mario.evaluation.verdict import GuardResult, LevelResult


def guard(given: GuardInput) -> tuple[GuardResult]:
    """Refuse a challenger whose loss on a level is proven; value: least corrected p-value.

    It is a test of inferiority: it passes a challenger whose loss is not proven, and proves no
    level non-inferior, for which the evidence would have to run the other way and few units could
    not pass. A challenger that passes with 12 units a level may be somewhat worse there.
    """
    limit = given.rule.level_alpha
    least = min(result.p_holm for result in given.level_results)
    worse = [result.level for result in given.level_results if result.p_holm <= limit]
    detail = (
        f"significantly worse on {', '.join(worse)} (least corrected p {least:.2g})"
        if worse
        else "no level significantly worse (least corrected p "
        f"{least:.2g} over {len(given.level_results)})"
    )
    return (GuardResult("levels", not worse, least, limit, detail),)


def level_results(
    pairs: Sequence[PairedUnit], rule: GateRule, levels: Sequence[str]
) -> tuple[LevelResult, ...]:
    """Judge each level, with Holm's correction over levels.

    A level is not worse when neither the primary metric nor the clear rate has fallen by more than
    `level_margin`. Each level bets against that, half its stake on each of the two (the average of
    two e-processes is one for the intersection of their nulls; Vovk & Wang 2021, Ann. Statist.
    49). One over the greatest capital is a p-value whatever moment the main test stopped at, so
    Holm's step-down over the levels keeps the chance of a false alarm on any level at
    `level_alpha`. With 12 units on each of 32 levels only a lost level is significant: more units
    a level, or a greater `level_alpha`, make the guard sharper.

    Args:
        pairs: counted pairs in order of play.
        rule: gives metric, margin and level_alpha.
        levels: the task's levels.

    Returns:
        One result per level.
    """
    by_level: dict[str, list[PairedUnit]] = {level: [] for level in levels}
    for pair in pairs:
        by_level[pair.level].append(pair)
    prior = prior_for(rule.primary)
    p_values = [_p_worse(by_level[level], rule) for level in levels]
    results = []
    for level, p_worse, p_holm in zip(levels, p_values, holm(p_values), strict=True):
        own = by_level[level]
        d = np.array([pair.difference(rule.primary) for pair in own])
        results.append(
            LevelResult(
                level=level,
                units=int(d.size),
                mean=float(d.mean()) if d.size else 0.0,
                lower=lower_bound(d, rule.level_alpha, prior=prior),
                upper=-lower_bound(-d, rule.level_alpha, prior=prior),
                p_worse=p_worse,
                p_holm=float(p_holm),
                challenger_clears=sum(pair.challenger.cleared for pair in own),
                champion_clears=sum(pair.champion.cleared for pair in own),
            )
        )
    return tuple(results)


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
