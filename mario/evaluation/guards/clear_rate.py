"""Guard: the challenger's clear rate is proven, where the rule asks for one."""

from __future__ import annotations

from mario.evaluation.guards.contract import GuardInput
from mario.evaluation.statistics import exact_lower_bound
from mario.evaluation.verdict import GuardResult


def guard(given: GuardInput) -> tuple[GuardResult, ...]:
    """Bound the challenger's clear rate over the first units; value: the lower bound.

    The number of units is fixed by the rule, not by the test's stopping, so the bound of Clopper
    and Pearson is exact: 59 of 59 proves at least 95% at confidence 95%. The units are whole
    blocks, so that each level counts as often and the order within a block does not. With levels of
    unlike difficulty it is a bound on their average: so many clears are then less likely, not more
    (Hoeffding 1956, Ann. Math. Statist. 27).
    """
    rule, units = given.rule, given.bound_units
    rate = rule.clear_rate_at_least
    if rate is None or len(given.pairs) < units:
        return ()
    clears = sum(pair.challenger.cleared for pair in given.pairs[:units])
    bound = exact_lower_bound(clears, units, rule.clear_confidence)
    detail = (
        f"{clears} of the first {units} units cleared: at least {bound:.4f} at "
        f"confidence {rule.clear_confidence}"
    )
    return (GuardResult("clear_rate", bound >= rate, bound, rate, detail),)
