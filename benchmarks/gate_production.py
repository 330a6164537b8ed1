"""Rows of `gate_calibration.py` for what production runs.

The first champion against the random policy, the demo's rule (`configs/demo.yaml`), progress as the
metric, several levels by score, the levels that a task's account really gives to a stream of
challengers, and the confidence sequence. What else was weighed is in `gate_alternatives.py`.
"""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path

import numpy as np
from gate_pools import Pools, Real, better_scores, rate, values_of
from gate_rows import CAP, CLEAR, PROGRESS, SCORE, UNLIKE, Row, batched, cell
from gate_simulation import (
    CHECKED,
    CHECKED_UNITS,
    Outcome,
    paired_clears,
    paired_scores,
    run_gate,
    unlike_levels,
)

from mario.config.experiment import load_config
from mario.config.gate import GateRule
from mario.errors import EvaluationError
from mario.evaluation.alpha_budget import AlphaBudget
from mario.evaluation.betting import confidence_sequence, log_wealth, prior_for

#: Error of each end of the sequence whose coverage is counted: the pair's is twice that.
END_ERROR = 0.025


def first_champion(generator: np.random.Generator, real: Real, trials: int) -> list[Row]:
    """Against the random policy within 60 units: 1.5 times as far, by progress and by score."""
    if "random" not in real:
        return []
    progress = np.array([r.progress for r in real["random"]])
    further = np.minimum(progress * 1.5, 1.0)
    rows = []
    for rule, scale in ((PROGRESS, 1.0), (SCORE, 0.5)):
        d = paired_scores(generator, scale * progress, scale * further, trials, 60)
        rows.append(
            cell("first champion", "1.5 × random, 60 units",
                 rule.model_copy(update={"max_units": 60}), d,
                 true_effect=float(scale * (further.mean() - progress.mean())),
                 source="real episodes")
        )  # fmt: skip
    return rows


def coverage(generator: np.random.Generator, pools: Pools, trials: int) -> list[Row]:
    """Streams on which the 95% confidence sequence ever excludes the true mean, CAP units long."""
    unlike = unlike_levels(generator, np.resize(UNLIKE, 4) + 0.1, trials, CAP)
    rows = [_coverage("4 unlike levels, +.1 on average", "clear", unlike, 0.1, levels=4)]
    for before, after in ((0.5, 0.7), (0.85, 0.85), (0.02, 0.1)):
        d = paired_clears(generator, before, after, trials, CAP)
        rows.append(_coverage(f"clears {before:g}→{after:g}", "clear", d, after - before))
    random = pools.get("random", pools["simulated 0.1"])[0]
    for name, (pool, _) in pools.items():
        d = paired_scores(generator, random, pool, trials, CAP)
        effect = float(pool.mean() - random.mean())
        rows.append(_coverage(f"scores of {name} against random", "score", d, effect))
    return rows


def _coverage(name: str, metric: str, d: np.ndarray, truth: float, levels: int = 1) -> Row:
    """One row of coverage: of streams (T, n) with a true mean, looked at after every block.

    The sequence excludes m exactly when a capital against m has reached its threshold, so the
    capitals at the true mean say it without inverting anything. Whether that is the sequence of a
    verdict is not taken on trust: of some streams `confidence_sequence` computes it.
    """
    prior, ends = prior_for(metric), slice(levels - 1, None, levels)
    threshold = -math.log(END_ERROR)
    checked = _check_the_sequence(name, d, truth, prior, levels)
    missed = np.zeros(len(d), dtype=bool)
    for start in range(0, len(d), 500):
        part = d[start : start + 500]
        above = log_wealth(part, truth, prior=prior)[:, ends] >= threshold
        below = log_wealth(-part, -truth, prior=prior)[:, ends] >= threshold
        missed[start : start + 500] = (above | below).any(axis=1)
    least_missed = Outcome(missed, missed, missed).shares()["promoted_low"]
    return {"kind": "coverage", "cell": name, "primary": metric, "trials": len(d),
            "end_error": END_ERROR, "checked_streams": checked,
            "coverage": float(1 - missed.mean()), "coverage_high": 1 - least_missed}  # fmt: skip


def _check_the_sequence(
    name: str, d: np.ndarray, truth: float, prior: np.ndarray, levels: int
) -> int:
    """Hold the production sequence on the starts of some streams against their capitals.

    Its ends lie on a grid, rounded outwards. So at every block's end and for the grid's points
    around the truth and some further off it must say of each point what the capital against it
    says, and exclude the truth only where that capital does.

    Returns:
        How many streams were checked.

    Raises:
        EvaluationError: the sequence says something else than the capitals.
    """
    chosen = np.unique(np.linspace(0, len(d) - 1, CHECKED).astype(int))
    units = CHECKED_UNITS // CHECKED // levels * levels
    ends = slice(levels - 1, None, levels)
    grid = np.linspace(-1.0, 1.0, 401)
    near = np.searchsorted(grid, truth) + np.array([-100, -60, -30, -1, 0, 1, 30, 60, 100])
    probes = grid[np.unique(np.clip(near, 1, len(grid) - 2))]
    threshold = -math.log(END_ERROR)
    for i in chosen:
        part = d[i, :units]
        lower, upper = confidence_sequence(part, END_ERROR, prior=prior, block=levels)
        for sign, end in ((1.0, lower), (-1.0, -upper)):
            for mean in probes:
                said = end >= sign * mean - 1e-12
                known = log_wealth(sign * part, sign * mean, prior=prior)[ends] >= threshold
                if (said != known).any():
                    raise EvaluationError(
                        f"got a confidence sequence of {name} that differs from its capitals "
                        f"against {mean:g} on stream {i}; expected the same; mend coverage"
                    )
            above = log_wealth(sign * part, sign * truth, prior=prior)[ends] >= threshold
            if ((end > sign * truth + 1e-9) & ~above).any():
                raise EvaluationError(
                    f"got a confidence sequence of {name} that excludes {truth:g} on stream {i}; "
                    "expected it where a capital does; mend coverage"
                )
    return len(chosen)


def stream(generator: np.random.Generator, trials: int, challengers: int = 50) -> list[Row]:
    """Streams of 50 equal challengers under the α budget: the share with any promotion."""
    budget = AlphaBudget.open(0.05)
    any_with = np.zeros(trials, dtype=bool)
    any_without = np.zeros(trials, dtype=bool)
    for _ in range(challengers):
        d = paired_clears(generator, 0.85, 0.85, trials, CAP)
        any_with |= run_gate(d, CLEAR.with_alpha(budget.next_alpha)).promoted
        any_without |= run_gate(d, CLEAR).promoted if trials <= 1000 else False
        budget = budget.spend()
    row = {"kind": "stream", "cell": f"{challengers} equal challengers at .85", "primary": "clear",
           "trials": trials, **Outcome(any_with, any_with, any_with).shares()}  # fmt: skip
    if trials <= 1000:
        row["promoted_without_account"] = float(any_without.mean())
    return [row]


def account_alphas(generator: np.random.Generator, trials: int) -> list[Row]:
    """The same power at the alphas that a task's account really gives: its 1st, 2nd, … challenger.

    The declared level is for the whole stream, so each challenger has less than it.
    """
    rows = []
    for challenger, alpha in granted(1, 2, 3, 5, 10):
        for before, after in ((0.5, 0.7), (0.7, 0.85), (0.85, 0.95), (0.85, 0.5)):
            d = paired_clears(generator, before, after, trials, CAP)
            name = f"challenger {challenger}, clears {before:g}→{after:g}"
            rows.append(
                cell("account", name, CLEAR.with_alpha(alpha), d, true_effect=after - before,
                     alpha=alpha)
            )  # fmt: skip
    return rows


def granted(*challengers: int) -> list[tuple[int, float]]:
    """The n-th challenger since the last promotion, and its alpha of a declared .05."""
    budget, alphas = AlphaBudget.open(0.05), []
    for _ in range(max(challengers)):
        alphas.append(budget.next_alpha)
        budget = budget.spend()
    return [(challenger, alphas[challenger - 1]) for challenger in challengers]


def score_under_the_account(generator: np.random.Generator, pools: Pools, trials: int) -> list[Row]:
    """Scores .05 better with no change in clears, at the alphas of a stream of challengers."""
    rows = []
    for name, (pool, source) in pools.items():
        if source != "real episodes":
            continue
        better = better_scores(pool)
        d = paired_scores(generator, pool, better, trials, CAP)
        for challenger, alpha in granted(1, 3, 10):
            rows.append(
                cell("account", f"challenger {challenger}, +.05, {name}", SCORE.with_alpha(alpha),
                     d, alpha=alpha, source=source, true_effect=float(better.mean() - pool.mean()))
            )  # fmt: skip
    return rows


def demo_rule() -> GateRule:
    """The rule of the demo: progress, no decision before 60 units, at most 120."""
    path = Path(__file__).resolve().parents[1] / "configs" / "demo.yaml"
    return load_config(path).gate


def progress_policies(
    generator: np.random.Generator, real: Real, trials: int, batches: int
) -> list[Row]:
    """Equal, worse and better by `progress`, under its own cap and under the demo's rule."""
    rows = []
    demo = demo_rule()
    random = values_of(real["random"], "progress") if "random" in real else None
    for name, records in real.items():
        pool = values_of(records, "progress")
        lost = np.where(generator.random(pool.size) < 0.2, 0.5 * pool, pool)
        for rule, units, label, couplings in (
            (PROGRESS, CAP, "progress", {"independent": 0.0}),
            (demo, demo.max_units, "demo's rule", {"independent": 0.0, "seed-coupled": 0.5}),
        ):
            for how, coupling in couplings.items():
                draw = partial(paired_scores, generator, pool, pool, trials, units, coupling)
                rows.append(batched(batches, "equal", f"{label} of {name}, {how}", rule, draw,
                                    source="real episodes"))  # fmt: skip
            draw = partial(paired_scores, generator, pool, lost, trials, units)
            rows.append(
                batched(batches, "worse", f"a fifth of episodes halved, {label} of {name}", rule,
                        draw, source="real episodes", true_effect=float(lost.mean() - pool.mean()))
            )  # fmt: skip
        if random is None or name == "random":
            continue
        d = paired_scores(generator, random, pool, trials, CAP)
        rows.append(
            _coverage(f"progress of {name} against random", "progress", d,
                      float(pool.mean() - random.mean()))
        )  # fmt: skip
    waiting = demo.model_copy(update={"primary": "clear"})
    for share in (0.1, 0.5, 0.85):
        draw = partial(paired_clears, generator, share, share, trials, demo.max_units)
        name = f"demo's rule on clears {share:g}, independent"
        rows.append(batched(batches, "equal", name, waiting, draw, source="simulated"))
    if random is None:
        return rows
    further = np.minimum(random * 1.5, 1.0)
    d = paired_scores(generator, random, further, trials, demo.max_units)
    for challenger, alpha in granted(1, 2, 3, 10):
        rows.append(
            cell("first champion", f"1.5 × random, demo's rule, challenger {challenger}",
                 demo.with_alpha(alpha), d, alpha=alpha, source="real episodes",
                 true_effect=float(further.mean() - random.mean()))
        )  # fmt: skip
    return rows


def score_levels(
    generator: np.random.Generator, real: Real, trials: int, batches: int
) -> list[Row]:
    """Several levels by score: equal on average, a fifth of the episodes spoilt, and +.05.

    A real policy's episodes stand for a level's. Levels come in twos: what the challenger plays on
    the one is what the champion plays on the other, so that they differ much by level and not on
    average.
    """
    names = sorted(real, key=lambda name: (rate(real[name]), name))
    pools = [values_of(real[name], "score") for name in names]
    twos = list(zip(pools[: len(pools) // 2], pools[len(pools) // 2 :], strict=False))
    rows = []
    for levels in (4, 32):
        chosen = [twos[i % len(twos)] for i in range(levels // 2)]
        equal = [side for one, other in chosen for side in ((one, other), (other, one))]
        draw = partial(_unlike_scores, generator, equal, trials)
        rows.append(batched(batches, "equal", f"{levels} unlike levels by score", SCORE, draw,
                            levels, source="real episodes"))  # fmt: skip
        own = [pool for pair in chosen for pool in pair]
        spoilt = [
            (pool, np.where(generator.random(pool.size) < 0.2, 0.5 * pool, pool)) for pool in own
        ]
        draw = partial(_unlike_scores, generator, spoilt, trials)
        effect = float(np.mean([after.mean() - before.mean() for before, after in spoilt]))
        rows.append(batched(batches, "worse", f"a fifth of episodes halved, {levels} levels", SCORE,
                            draw, levels, source="real episodes", true_effect=effect))  # fmt: skip
        gained = _unlike_scores(generator, [(pool, better_scores(pool)) for pool in own], trials)
        rows.append(cell("several levels", f"+.05, {levels} levels", SCORE, gained, levels,
                         source="real episodes", true_effect=0.05))  # fmt: skip
    return rows


def _unlike_scores(
    generator: np.random.Generator, sides: list[tuple[np.ndarray, np.ndarray]], trials: int
) -> np.ndarray:
    """Differences (T, n) in blocks of levels, in random order; (champion, challenger) of each."""
    blocks = CAP // len(sides)
    d = np.stack([paired_scores(generator, *side, trials, blocks) for side in sides], axis=2)
    return generator.permuted(d, axis=2).reshape(trials, -1)
