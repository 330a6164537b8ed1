"""Rows of `gate_calibration.py` where clears and scores improve together: score against clear test.

What no test can undercut there is in `gate_floor.py`.
"""

from __future__ import annotations

import math

import numpy as np
from gate_floor import GOAL, floors
from gate_pools import Pools, Real, beside_clears, improving_pairs, simulated_scores, values_of
from gate_rows import CAP, CLEAR, SCORE, Row
from gate_simulation import best_bet, fastest_bet, paired_scores, real_pairs, run_gate

#: Evidence for futility that no stream of CAP units reaches.
NEVER = 1e-300


def together(generator: np.random.Generator, pools: Pools, real: Real, trials: int) -> list[Row]:
    """Pairs of policies whose clear rate improves: score test against clear test.

    A clear is worth about .6 of score by itself, so that the score always improves with the clears.
    What decides is whether it also improves beside them: failures get further, clears are faster.
    `growth_ratio` is what a pair's own distribution leaves room for: how fast the best bet on
    clears grows over how fast the best bet on scores does, the limit of the ratio of units for
    small α and the best tests that there are. The target counts every real pair and leaves out
    only the simulated ones that are made to improve in nothing but clears. A clear test that gives
    up needs few units and finds nothing: see `clear_test_promoted`, and the units of both without
    the stop for futility. `goal_units` is what the target leaves the score test, with its standard
    error. Beside it stand the units of the best single bet on scores that is told the pair's own
    distribution, and what any test needs on average at least (`gate_floor.floor_units`):
    `floor_units` when it is sure to find the gain, `floor_units_equal_power` when it finds it as
    often as the clear test does, `floor_units_power_.9` when it does in .9 of the cases.
    """
    rows = []
    cases = [
        (
            f"{before:g}→{after:g}, deaths later, clears faster",
            simulated_scores(generator, before, clock=0.65),
            simulated_scores(generator, after, late=1.6, clock=0.78),
            "simulated",
        )
        for before, after in ((0.1, 0.3), (0.5, 0.7), (0.7, 0.85))
    ]
    cases += [
        (
            f"{before:g}→{after:g}, clears only",
            pools[f"simulated {before:g}"][0],
            pools[f"simulated {after:g}"][0],
            "simulated",
        )
        for before, after in ((0.1, 0.5), (0.5, 0.85))
    ]
    cases += [
        (f"{a} → {b}", values_of(real[a], "score"), values_of(real[b], "score"), "real pairs")
        for a, b in improving_pairs(real)
    ]
    for name, before, after, source in cases:
        if source == "real pairs":
            a, b = name.split(" → ")
            d = real_pairs(generator, before, after, trials, CAP)
            clears = real_pairs(
                generator, values_of(real[a], "clear"), values_of(real[b], "clear"), trials, CAP
            )
        else:
            d = paired_scores(generator, before, after, trials, CAP)
            clears = paired_scores(
                generator, (before >= 0.5).astype(float), (after >= 0.5).astype(float), trials, CAP
            )
        by_score = run_gate(d, SCORE).summary()
        clear_outcome = run_gate(clears, CLEAR)
        by_clear, clear_units = clear_outcome.summary(), clear_outcome.units
        # Neither gives up: what each needs to find the gain, the cap where it does not.
        stubborn = [
            run_gate(each, rule.model_copy(update={"beta": NEVER})).units.mean()
            for each, rule in ((d, SCORE), (clears, CLEAR))
        ]
        told = best_bet(d, SCORE.alpha)
        _, growth = fastest_bet(d)
        row = {
            "kind": "together", "cell": name, "primary": "score", "source": source,
            "counts_for_target": not name.endswith("clears only"),
            "true_effect": float(after.mean() - before.mean()),
            "gain_beside_clears": beside_clears(before, after),
            "clear_effect": float((after >= 0.5).mean() - (before >= 0.5).mean()),
            **by_score,
            "clear_test_promoted": by_clear["promoted"],
            "clear_test_units_mean": by_clear["units_mean"],
            "units_ratio": by_score["units_mean"] / by_clear["units_mean"],
            "units_ratio_never_giving_up": float(stubborn[0] / stubborn[1]),
            "growth_ratio": fastest_bet(clears)[1] / growth,
            "goal_units": GOAL * by_clear["units_mean"],
            "goal_units_error": GOAL * float(clear_units.std()) / math.sqrt(trials),
            "floor_units": -math.log(SCORE.alpha) / growth,
            "best_bet_units_mean": told["units_mean"],
            "best_bet_promoted": told["promoted"],
            "best_bet_theta": told["theta"],
        }  # fmt: skip
        floor = floors(row)
        row |= {
            "floor_units_equal_power": floor["equal_power"],
            "floor_units_power_.9": floor["power_.9"],
        }
        rows.append(row)
    return rows
