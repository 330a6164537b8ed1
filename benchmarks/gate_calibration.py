"""Does the gate keep its promises, and at what price? Simulation beside four other tests.

    python benchmarks/gate_calibration.py [--quick] [--trials 5000]

Equal policies, planted regressions and improvements, on clears drawn from known rates and on
scores bootstrapped from real episodes (`benchmarks/data/gate/*.jsonl`, written by `gate_data.py`:
any number of files, among them checkpoints of one long run at many clear rates) or from simulated
pools, which the row's `source` says. "Real pairs" draw units that two real policies both played, so
that what a seed does to both is in them. In every cell the production gate judges some of the
streams again (`gate_simulation.run_gate`). "Promoted" is the test alone, before the guards; the
rows "guard" say what the level guard takes of it. Beside the gate: the fixed-N paired permutation
test (on clears it is the exact McNemar test) at the gate's own power, Wald's SPRT told the truth,
and `savvi`'s sequential test. A full run needs that package (`pip install savvi==0.3.1`) and ends
with 2 without it; `--quick` leaves its columns out.
"""

from __future__ import annotations

import argparse
import importlib.util
import itertools
import sys
import time
from functools import partial
from typing import Any

import numpy as np
from _report import finish, print_table, target
from gate_alternatives import after_the_guard, bold_stakes, reused_units
from gate_floor import count, floor_units
from gate_pools import (
    LEAST_GAIN,
    Pools,
    Real,
    better_scores,
    improving_pairs,
    load_pools,
    rate,
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
    fastest_bet,
    fixed_units,
    mcnemar_power,
    paired_clears,
    paired_scores,
    real_pairs,
    run_savvi,
    run_sprt,
    savvi_boundary,
    units_for_power,
    unlike_levels,
)
from gate_together import together

from mario.evaluation.statistics import exact_lower_bound

SEED = 20261123
SAVVI = "savvi==0.3.1"
#: Trials drawn anew for the spread of the fixed-N test's units.
REPEATS = 4


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
        sprt = run_sprt(d, (win - lose) / (win + lose), 0.05, 0.1).summary()
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
    """Scores .05 better with no change in clears: every kind of episode a little better.

    Beside the gate the fixed-N permutation test, with the spread of its units over trials drawn
    anew, Wald's SPRT told the truth, and the best single bet told it.
    """
    rows = []
    for name, (pool, source) in pools.items():
        better = better_scores(pool)
        d = paired_scores(generator, pool, better, trials, CAP)
        row = cell("score only", f"+.05, {name}", SCORE, d, source=source,
                   true_effect=float(better.mean() - pool.mean()),
                   spread_of_differences=float(d.std()))  # fmt: skip
        seed = int(generator.integers(2**32))
        for column, power in (
            ("fixed_permutation_units", min(row["promoted"], 0.995)),
            ("fixed_units_at_power_.9", 0.9),
        ):
            # Few trials are only looked at: one more draw, and fewer flips.
            effort = (REPEATS, 499) if trials >= 1000 else (1, 99)
            found = fixed_units(d[:1000], power, seed, *effort)
            row |= {column: found["units"], f"{column}_least": found["least"],
                    f"{column}_most": found["most"]}  # fmt: skip
        theta, growth = fastest_bet(d)
        told, sprt = best_bet(d, SCORE.alpha), run_sprt(d, theta, 0.05, 0.1).summary()
        row |= {
            "sprt_promoted": sprt["promoted"],
            "sprt_units_mean": sprt["units_mean"],
            "best_bet_units_mean": told["units_mean"],
            "best_bet_promoted": told["promoted"],
            "floor_units_equal_power": floor_units(growth, row["promoted"]),
        }
        rows.append(row)
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
        *after_the_guard(generator, pools, trials),
        *bold_stakes(generator, pools, real, trials, batches),
        *reused_units(generator, trials),
    ]
    common = ["cell", "source", "true_effect", "promoted", "promoted_high", "rejected",
              "units_mean", "units_median", "units_p90"]  # fmt: skip
    extra = {
        "better": ["fixed_permutation_units", "fixed_units_at_power_.9", "sprt_promoted",
                   "sprt_units_mean", "savvi_promoted", "savvi_units_mean"],
        "score only": ["spread_of_differences", "fixed_permutation_units",
                       "fixed_units_at_power_.9", "fixed_units_at_power_.9_least",
                       "fixed_units_at_power_.9_most", "sprt_promoted", "sprt_units_mean",
                       "best_bet_promoted", "best_bet_units_mean", "floor_units_equal_power"],
        "together": ["gain_beside_clears", "clear_effect", "clear_test_promoted",
                     "clear_test_units_mean", "units_ratio", "units_ratio_never_giving_up",
                     "growth_ratio", "goal_units", "floor_units", "floor_units_equal_power",
                     "floor_units_power_.9", "best_bet_units_mean",
                     "best_bet_promoted", "best_bet_theta"],
        "coverage": ["end_error", "coverage", "checked_streams"],
        "account": ["alpha"],
        "guard": ["alpha", "promoted_after_guard", "refused_of_promoted"],
        "stakes": ["units_ratio"],
        "reuse": ["alpha"],
    }  # fmt: skip
    for kind in dict.fromkeys(r["kind"] for r in rows):
        shown = [c for c in common if kind not in ("coverage", "stream") or c == "cell"]
        shown += extra.get(kind, ["promoted"] if kind == "stream" else [])
        print_table(kind, [r for r in rows if r["kind"] == kind], shown)
    print(f"\n{count(rows)}")
    took = time.perf_counter() - started
    print(f"\n{trials} trials a cell ({batches * trials} of equal and worse ones), {took:.0f} s")
    return finish(
        "gate_calibration", rows, targets_of(rows, arguments.quick), quick=arguments.quick
    )


if __name__ == "__main__":
    raise SystemExit(main())
