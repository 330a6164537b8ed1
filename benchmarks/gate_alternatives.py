"""Rows of `gate_calibration.py` for what was weighed beside the gate's own choices.

What the level guard takes of what the test alone promotes; bolder stakes for scores; and what would
happen if a challenger met its next champion on units that it has played already.
"""

from __future__ import annotations

import numpy as np
from gate_pools import Pools, Real, better_scores, values_of
from gate_production import granted
from gate_rows import CAP, CLEAR, SCORE, Row, row_of
from gate_simulation import (
    Outcome,
    level_guard,
    paired_clears,
    paired_episodes,
    paired_scores,
    real_pairs,
    run_gate,
)

from mario.config.gate import GateRule
from mario.evaluation.betting import PRIOR_BOLD

#: Real policies that clear a third of their episodes and more: a gain takes long, and so long has
#: the guard to object.
LONG = ("ppo_0602k", "ppo_0901k", "ppo_1003k")
#: Units by which both stakes have found the gain of the pair.
BOLD_CAP = 400


def after_the_guard(generator: np.random.Generator, pools: Pools, trials: int) -> list[Row]:
    """Promoted by the test alone, and what the level guard leaves of that."""
    rows = []
    alphas = (("α=.05, one test", 0.05), ("challenger 1", granted(1)[0][1]))
    for before, after in ((0.5, 0.7), (0.85, 0.95)):
        d = paired_clears(generator, before, after, trials, CAP)
        rows += [
            _guarded(f"clears {before:g}→{after:g}, {label}", CLEAR.with_alpha(alpha), [d],
                     "simulated")
            for label, alpha in alphas
        ]  # fmt: skip
    for name in LONG:
        if name not in pools:
            continue
        pool, source = pools[name]
        mine, theirs = paired_episodes(generator, pool, better_scores(pool), trials, CAP)
        losses = [mine - theirs, (mine >= 0.5).astype(float) - (theirs >= 0.5)]
        rows += [
            _guarded(f"+.05, {name}, {label}", SCORE.with_alpha(alpha), losses, source)
            for label, alpha in alphas
        ]
    return rows


def _guarded(name: str, rule: GateRule, losses: list[np.ndarray], source: str) -> Row:
    """One row: the primary metric's differences (T, n) first, then those of clears."""
    outcome = run_gate(losses[0], rule)
    refused = level_guard(outcome, losses, rule)
    more = {
        "alpha": rule.alpha,
        "source": source,
        "true_effect": float(losses[0].mean()),
        "promoted_after_guard": float((outcome.promoted & ~refused).mean()),
        "refused_of_promoted": float(refused.sum() / max(1, outcome.promoted.sum())),
    }
    return row_of("guard", name, rule, outcome, more)


def bold_stakes(
    generator: np.random.Generator, pools: Pools, real: Real, trials: int, batches: int
) -> list[Row]:
    """Scores under the gate's own stakes and under bolder ones (`PRIOR_BOLD`), on the same streams.

    A pair that the bold ones find within .8 of the clear test's units, a challenger a fifth of
    whose episodes are spoilt, and a gain of .05 between policies that clear.
    """
    rows = bold_on_a_pair(generator, real, trials) + bold_on_a_spoilt_one(
        generator, pools, trials, batches
    )
    if LONG[0] in pools:
        pool, source = pools[LONG[0]]
        better = better_scores(pool)
        d = paired_scores(generator, pool, better, trials, CAP)
        rows += _bold(f"+.05, {LONG[0]}", [d], source, float(better.mean() - pool.mean()))
    return rows


def bold_on_a_pair(generator: np.random.Generator, real: Real, trials: int) -> list[Row]:
    """Units until the gain of `ppo_0303k` → `ppo_0602k` is found, and over the clear test's."""
    pair = ("ppo_0303k", "ppo_0602k")
    if not set(pair) <= set(real):
        return []
    d, clears = (
        real_pairs(generator, *(values_of(real[name], metric) for name in pair), trials, BOLD_CAP)
        for metric in ("score", "clear")
    )
    by_clear = float(run_gate(clears, CLEAR).units.mean())
    rows = _bold(" → ".join(pair), [d], "real pairs", float(d.mean()))
    return [row | {"units_ratio": row["units_mean"] / by_clear} for row in rows]


def bold_on_a_spoilt_one(
    generator: np.random.Generator, pools: Pools, trials: int, batches: int
) -> list[Row]:
    """How often a challenger that clears .1, a fifth of its episodes spoilt, is promoted."""
    pool, source = pools["simulated 0.1"]
    lost = np.where(generator.random(pool.size) < 0.2, 0.5 * pool, pool)
    streams = [paired_scores(generator, pool, lost, trials, CAP) for _ in range(batches)]
    name = "a fifth of episodes halved, simulated 0.1"
    return _bold(name, streams, source, float(lost.mean() - pool.mean()))


def _bold(name: str, streams: list[np.ndarray], source: str, effect: float) -> list[Row]:
    rows = []
    for stakes, prior in (("own stakes", None), ("bold stakes", PRIOR_BOLD)):
        outcome = Outcome.joined([run_gate(d, SCORE, prior=prior) for d in streams])
        more = {"source": source, "true_effect": effect}
        rows.append(row_of("stakes", f"{name}, {stakes}", SCORE, outcome, more))
    return rows


def reused_units(
    generator: np.random.Generator, trials: int, *, challengers: int = 10, units: int = 400
) -> list[Row]:
    """The luckiest of equal challengers against the next champion, on its old units and on new.

    All clear .5. The luckiest is the one that was furthest ahead when its test stopped. The next
    champion is its equal, too, and plays whatever units the challenger is judged on.
    """
    alpha = granted(1)[0][1]
    rule = CLEAR.with_alpha(alpha)

    def clears() -> np.ndarray:
        return (generator.random((trials, units)) < 0.5).astype(float)

    first, luckiest = clears(), np.zeros((trials, units))
    most = np.full(trials, -np.inf)
    for _ in range(challengers):
        own = clears()
        stops = run_gate(own - first, rule).units
        ahead = (own - first).cumsum(axis=1)[np.arange(trials), stops - 1] / stops
        luckiest[ahead > most] = own[ahead > most]
        most = np.maximum(most, ahead)
    return [
        row_of("reuse", f"luckiest of {challengers} on {where}", rule,
               run_gate(own - clears(), rule), {"alpha": alpha, "source": "simulated"})
        for where, own in (("its old units", luckiest), ("new units", clears()))
    ]  # fmt: skip
