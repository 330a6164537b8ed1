"""Does the gate keep its promises, and at what price? Simulation beside four other tests.

    python benchmarks/gate_calibration.py [--quick] [--trials 5000]

Equal policies, planted regressions and improvements, on clears drawn from known rates and on
scores bootstrapped from real episodes (`benchmarks/data/gate/*.jsonl`, written by `gate_data.py`:
any number of files, among them checkpoints of one long run at many clear rates) or from simulated
pools, which the row's `source` says. "Real pairs" draw units that two real policies both played, so
that what a seed does to both is in them. In every cell the production gate judges some of the
streams again (`gate_simulation.run_gate`). Beside the gate: the fixed-N paired permutation test (on
clears it is the exact McNemar test) at the gate's own power, Wald's SPRT told the truth, and
`savvi`'s sequential test. A full run needs that package (`pip install savvi==0.3.1`) and ends with
2 without it; `--quick` leaves its columns out.
"""

from __future__ import annotations

import argparse
import importlib.util
import itertools
import math
import sys
import time
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from _report import finish, print_table, target
from gate_pools import (
    LEAST_GAIN,
    Pools,
    Real,
    beside_clears,
    better_scores,
    improving_pairs,
    load_pools,
    rate,
    simulated_scores,
    values_of,
)
from gate_production import (
    account_alphas,
    coverage,
    first_champion,
    progress_policies,
    score_levels,
    score_under_the_account,
    stream,
)
from gate_rows import BATCHES, CAP, CLEAR, SCORE, UNLIKE, Row, batched, cell
from gate_simulation import (
    best_bet,
    best_growth,
    mcnemar_power,
    paired_clears,
    paired_scores,
    permutation_power,
    real_pairs,
    run_gate,
    run_savvi,
    run_sprt,
    savvi_boundary,
    units_for_power,
    unlike_levels,
)

from mario.evaluation.statistics import exact_lower_bound

SEED = 20261123
SAVVI = "savvi==0.3.1"
#: Evidence for futility that no stream of CAP units reaches.
NEVER = 1e-300


def equal_policies(
    generator: np.random.Generator, pools: Pools, real: Real, trials: int, batches: int
) -> list[Row]:
    rows = []
    equal = partial(batched, batches, "equal")
    for levels in (4, 32):
        effects = np.resize(UNLIKE, levels)
        draw = partial(unlike_levels, generator, effects, trials, CAP)
        name = f"{levels} unlike levels, .4 up to .4 down, equal on average"
        rows.append(equal(name, CLEAR, draw, levels, source="simulated"))
    names = sorted(real, key=lambda name: rate(real[name]))
    for a, b in itertools.pairwise(names):
        if rate(real[b]) < LEAST_GAIN:
            continue
        for rule in (SCORE, CLEAR):
            sides = [values_of(real[name], rule.primary) for name in (a, b)]
            draw = partial(real_pairs, generator, *sides, trials, CAP, swapped=True)
            name = f"{rule.primary} of {a} and {b}, sides by a coin"
            rows.append(equal(name, rule, draw, source="real pairs",
                              correlation=float(np.corrcoef(*sides)[0, 1])))  # fmt: skip
    for coupling in (0.0, 0.5):
        label = "independent" if coupling == 0 else "seed-coupled"
        for share in (0.02, 0.1, 0.5, 0.85, 0.99):
            draw = partial(paired_clears, generator, share, share, trials, CAP, coupling)
            rows.append(equal(f"clears {share:g}, {label}", CLEAR, draw, source="simulated"))
        for name, (pool, source) in pools.items():
            draw = partial(paired_scores, generator, pool, pool, trials, CAP, coupling)
            rows.append(equal(f"scores of {name}, {label}", SCORE, draw, source=source))
    return rows


def regressions(
    generator: np.random.Generator, pools: Pools, real: Real, trials: int, batches: int
) -> list[Row]:
    rows = []
    worse_cell = partial(batched, batches, "worse")
    for worse, better in improving_pairs(real):
        sides = [values_of(real[name], "score") for name in (better, worse)]
        if sides[1].mean() > sides[0].mean() - SCORE.smallest_effect:
            continue
        draw = partial(real_pairs, generator, *sides, trials, CAP)
        rows.append(worse_cell(f"{better} → {worse}", SCORE, draw, source="real pairs",
                               true_effect=float(sides[1].mean() - sides[0].mean())))  # fmt: skip
    for before, after in ((0.5, 0.4), (0.7, 0.55), (0.85, 0.75), (0.95, 0.85), (0.85, 0.5)):
        draw = partial(paired_clears, generator, before, after, trials, CAP)
        name = f"clears {before:g}→{after:g}"
        rows.append(worse_cell(name, CLEAR, draw, true_effect=after - before))
    for name, (pool, source) in pools.items():
        lost = np.where(generator.random(pool.size) < 0.2, 0.5 * pool, pool)
        draw = partial(paired_scores, generator, pool, lost, trials, CAP)
        effect = float(lost.mean() - pool.mean())
        rows.append(worse_cell(f"a fifth of episodes halved, {name}", SCORE, draw,
                               true_effect=effect, source=source))  # fmt: skip
    return rows


def clear_power(generator: np.random.Generator, trials: int, savvi: np.ndarray | None) -> list[Row]:
    rows = []
    for before, after in ((0.5, 0.7), (0.7, 0.85), (0.85, 0.95), (0.9, 0.95)):
        d = paired_clears(generator, before, after, trials, CAP)
        win, lose = after * (1 - before), before * (1 - after)
        row = cell("better", f"clears {before:g}→{after:g}", CLEAR, d, true_effect=after - before)
        power = row["promoted"]
        fixed = units_for_power(lambda n, w=win, x=lose: mcnemar_power(w, x, n, 0.05), power)
        at_90 = units_for_power(lambda n, w=win, x=lose: mcnemar_power(w, x, n, 0.05), 0.9)
        sprt = run_sprt(d, win, lose, 0.05, 0.1).summary()
        row |= {
            "fixed_permutation_units": fixed,
            "fixed_mcnemar_units": fixed,
            "fixed_units_at_power_.9": at_90,
            "sprt_promoted": sprt["promoted"],
            "sprt_units_mean": sprt["units_mean"],
        }
        if savvi is not None:
            other = run_savvi(d, savvi).summary()
            row |= {"savvi_promoted": other["promoted"], "savvi_units_mean": other["units_mean"]}
        rows.append(row)
    return rows


def score_power(generator: np.random.Generator, pools: Pools, trials: int) -> list[Row]:
    """Scores .05 better with no change in clears: every kind of episode a little better."""
    rows = []
    for name, (pool, source) in pools.items():
        better = better_scores(pool)
        d = paired_scores(generator, pool, better, trials, CAP)
        row = cell("score only", f"+.05, {name}", SCORE, d, source=source,
                   true_effect=float(better.mean() - pool.mean()),
                   spread_of_differences=float(d.std()))  # fmt: skip
        small = d[: min(trials, 1000)]
        seed = int(generator.integers(2**32))
        row["fixed_permutation_units"] = units_for_power(
            lambda n, s=small, k=seed: permutation_power(
                s[:, :n], 0.05, np.random.default_rng(k), 499
            ),
            min(row["promoted"], 0.995),
            CAP,
        )
        row["fixed_units_at_power_.9"] = units_for_power(
            lambda n, s=small, k=seed: permutation_power(
                s[:, :n], 0.05, np.random.default_rng(k), 499
            ),
            0.9,
            CAP,
        )
        rows.append(row)
    return rows


def together(generator: np.random.Generator, pools: Pools, real: Real, trials: int) -> list[Row]:
    """Pairs of policies whose clear rate improves: score test against clear test.

    A clear is worth about .6 of score by itself, so that the score always improves with the clears.
    What decides is whether it also improves beside them: failures get further, clears are faster.
    `growth_ratio` is what a pair's own distribution leaves room for: how fast the best bet on
    clears grows over how fast the best bet on scores does, the limit of the ratio of units for
    small α and the best tests that there are. The target counts every real pair and leaves out
    only the simulated ones that are made to improve in nothing but clears. A clear test that gives
    up needs few units and finds nothing: see `clear_test_promoted`, and the units of both without
    the stop for futility. `goal_units` is what the target leaves the score test. Beside it stand
    the units of the best single bet on scores that is told the pair's own distribution, and
    `floor_units`, log(1/α) over the growth: what a test that is sure to find the gain needs on
    average at least.
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
        by_clear = run_gate(clears, CLEAR).summary()
        # Neither gives up: what each needs to find the gain, the cap where it does not.
        stubborn = [
            run_gate(each, replace(rule, beta=NEVER)).units.mean()
            for each, rule in ((d, SCORE), (clears, CLEAR))
        ]
        told = best_bet(d, SCORE.alpha)
        growth = best_growth(d)
        rows.append(
            {
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
                "growth_ratio": best_growth(clears) / growth,
                "goal_units": 0.8 * by_clear["units_mean"],
                "floor_units": -math.log(SCORE.alpha) / growth,
                "best_bet_units_mean": told["units_mean"],
                "best_bet_promoted": told["promoted"],
                "best_bet_theta": told["theta"],
            }
        )  # fmt: skip
    return rows


def targets_of(rows: list[Row], quick: bool) -> list[dict[str, Any]]:
    by = {(r["kind"], r["cell"]): r for r in rows}
    equal = [r for r in rows if r["kind"] == "equal"]
    worse = [r for r in rows if r["kind"] == "worse"]
    only = [r for r in rows if r["kind"] == "score only"]
    both = [r for r in rows if r["kind"] == "together"]
    main = by["better", "clears 0.5→0.7"]
    # The account of a stream gives each test less than that; the rows of kind "account" say it.
    one = "α=.05, one test"

    def greatest(cells: list[Row]) -> float:
        """The greatest promoted share; its lower end, for all cells together, in a quick run."""
        if not quick:
            return max(r["promoted"] for r in cells)
        confidence = 1 - 0.05 / len(cells)  # of 200 trials some cell's share passes it by luck
        return max(
            exact_lower_bound(round(r["promoted"] * r["trials"]), r["trials"], confidence)
            for r in cells
        )

    shares = [target("equal: greatest promoted share", 0.05, greatest(equal), at_most=True)]
    if not quick:
        shares.append(
            target("equal: greatest upper 95% end of the promoted share", 0.05,
                   max(r["promoted_high"] for r in equal), at_most=True)
        )  # fmt: skip
    found = [
        *shares,
        target("worse: greatest promoted share", 0.005, greatest(worse), at_most=True),
        target(f".50→.70, {one}: power", 0.9, main["promoted"]),
        target(f".50→.70, {one}: mean units", 85, main["units_mean"], at_most=True),
        target(f"equal at .85, {one}: median units", 160,
               by["equal", "clears 0.85, independent"]["units_median"], at_most=True),
        target("collapsed .85→.50: rejected", 0.999, by["worse", "clears 0.85→0.5"]["rejected"]),
        target(f"collapsed .85→.50, {one}: mean units", 20,
               by["worse", "clears 0.85→0.5"]["units_mean"], at_most=True),
        target("least coverage of the confidence sequence", 0.95,
               min(r["coverage_high" if quick else "coverage"] for r in rows
                   if r["kind"] == "coverage")),
        target("any of 50 equal challengers promoted", 0.05,
               greatest([r for r in rows if r["kind"] == "stream"]), at_most=True),
    ]  # fmt: skip
    for r in both:
        if not r["counts_for_target"]:
            continue
        found.append(
            target(f"together, {r['cell']}, {one}: units of score test / clear test", 0.8,
                   r["units_ratio"], at_most=True)
        )  # fmt: skip
    for r in only:
        if r["source"] != "real episodes":
            continue
        found.append(target(f"score only {r['cell']}, {one}: power", 0.9, r["promoted"]))
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="under a minute, nothing written")
    parser.add_argument("--trials", type=int, default=5_000)
    arguments = parser.parse_args()
    if not arguments.quick and importlib.util.find_spec("savvi") is None:
        print(
            "got no package savvi; expected it for a full run, whose tables stand beside its test; "
            f"run `pip install {SAVVI}`, or leave its columns out with --quick",
            file=sys.stderr,
        )
        return 2
    trials = 200 if arguments.quick else arguments.trials
    generator = np.random.default_rng(SEED)
    started = time.perf_counter()
    pools, real = load_pools(generator)
    savvi = None if arguments.quick else savvi_boundary(CAP, 0.05, 10.0)
    batches = 1 if arguments.quick else BATCHES
    rows = [
        *equal_policies(generator, pools, real, trials, batches),
        *regressions(generator, pools, real, trials, batches),
        *clear_power(generator, trials, savvi),
        *score_power(generator, pools, trials),
        *together(generator, pools, real, trials),
        *first_champion(generator, real, trials),
        *coverage(generator, pools, trials),
        *stream(generator, 40 if arguments.quick else trials),
        *account_alphas(generator, trials),
        *score_under_the_account(generator, pools, trials),
        *progress_policies(generator, real, trials, batches),
        *score_levels(generator, real, trials, batches),
    ]
    common = ["cell", "source", "true_effect", "promoted", "promoted_high", "rejected",
              "units_mean", "units_median", "units_p90"]  # fmt: skip
    extra = {
        "better": ["fixed_permutation_units", "fixed_units_at_power_.9", "sprt_promoted",
                   "sprt_units_mean", "savvi_promoted", "savvi_units_mean"],
        "score only": ["spread_of_differences", "fixed_permutation_units",
                       "fixed_units_at_power_.9"],
        "together": ["gain_beside_clears", "clear_effect", "clear_test_promoted",
                     "clear_test_units_mean", "units_ratio", "units_ratio_never_giving_up",
                     "growth_ratio", "goal_units", "floor_units", "best_bet_units_mean",
                     "best_bet_promoted", "best_bet_theta"],
        "coverage": ["coverage"],
        "account": ["alpha"],
    }  # fmt: skip
    for kind in dict.fromkeys(r["kind"] for r in rows):
        shown = [c for c in common if kind not in ("coverage", "stream") or c == "cell"]
        shown += extra.get(kind, ["promoted"] if kind == "stream" else [])
        print_table(kind, [r for r in rows if r["kind"] == kind], shown)
    took = time.perf_counter() - started
    print(f"\n{trials} trials a cell ({batches * trials} of equal and worse ones), {took:.0f} s")
    return finish(
        "gate_calibration", rows, targets_of(rows, arguments.quick), quick=arguments.quick
    )


if __name__ == "__main__":
    raise SystemExit(main())
