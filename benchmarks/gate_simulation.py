"""Vectorised simulation of the gate and of the tests beside it: thousands of trials a cell.

The gate's own functions (`log_factors` and `log_mixture` of `mario.evaluation.betting`) do the
betting; this file only runs them over many streams at once and reads off the stopping times.
Whether that is the gate is not taken on trust: in every cell `run_gate` plays some of its streams
through `SequentialGate`, which judges in production, and ends with an error when a decision or a
stop differs. It is the test alone: the guards look at more than differences. `level_guard` is the
one that refuses what the test promotes now and then.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import optimize, stats

from mario.config.gate import GateRule
from mario.config.levels import LEVEL_NAMES
from mario.errors import EvaluationError
from mario.evaluation.betting import THETAS, log_factors, log_mixture, prior_for
from mario.evaluation.gate import SequentialGate
from mario.evaluation.guards.levels import log_evidence_worse

CHUNK = 500
#: Units of every stream that are bet on at once; then those that have stopped drop out.
SEGMENT = 100
#: Streams of every cell that the production gate judges again, until they have so many units.
CHECKED = 25
CHECKED_UNITS = 1_500


@dataclass(frozen=True)
class Outcome:
    """Many trials of one test.

    Attributes:
        promoted: bool (T,).
        rejected: bool (T,).
        units: int (T,), units at the stop.
    """

    promoted: np.ndarray
    rejected: np.ndarray
    units: np.ndarray

    @classmethod
    def joined(cls, parts: Sequence[Outcome]) -> Outcome:
        """The trials of several outcomes."""
        columns = ("promoted", "rejected", "units")
        return cls(*(np.concatenate([getattr(part, name) for part in parts]) for name in columns))

    def shares(self) -> dict[str, float]:
        """Share promoted with its exact 95% interval."""
        n, k = len(self.promoted), int(self.promoted.sum())
        interval = stats.binomtest(k, n).proportion_ci(0.95, "exact")
        return {"promoted": k / n, "promoted_low": interval.low, "promoted_high": interval.high}

    def summary(self) -> dict[str, float]:
        """Shares, and the units at the stop."""
        return {
            "trials": len(self.units),
            **self.shares(),
            "rejected": float(self.rejected.mean()),
            "units_mean": float(self.units.mean()),
            "units_median": float(np.median(self.units)),
            "units_p90": float(np.percentile(self.units, 90)),
        }


def run_gate(
    differences: np.ndarray, rule: GateRule, levels: int = 1, *, prior: np.ndarray | None = None
) -> Outcome:
    """The sequential test on streams of differences, without its guards.

    Args:
        differences: float (T, n), n = the cap; with several levels the units of a block stand
            together, n a multiple of `levels`.
        rule: without `clear_rate_at_least`, whose bound needs more than differences.
        levels: of the task; decisions fall at the ends of blocks.
        prior: over THETAS, float (J,); None takes the gate's own. Another one is another test,
            which the production gate cannot judge again.

    Raises:
        EvaluationError: the rule asks for a clear rate, or the production gate disagrees.
    """
    if rule.clear_rate_at_least is not None:
        raise EvaluationError("got a rule with clear_rate_at_least; expected one without")
    parts = []
    for start in range(0, len(differences), CHUNK):
        parts.append(_run_chunk(differences[start : start + CHUNK], rule, levels, prior))
    promoted, rejected, blocks = (np.concatenate(column) for column in zip(*parts, strict=True))
    outcome = Outcome(promoted, rejected, blocks * levels)
    if prior is None:
        _check_with_the_gate(differences, rule, levels, outcome)
    return outcome


def _run_chunk(
    differences: np.ndarray, rule: GateRule, levels: int, prior: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Promoted, rejected and blocks at the stop of some streams (T, n), a segment at a time.

    A stream that has stopped is not bet on any further: under a cap of thousands of units most
    have stopped long before it.
    """
    trials, total = differences.shape[0], differences.shape[1] // levels
    prior = prior_for(rule.primary) if prior is None else prior
    bounds = -math.log(rule.alpha), -math.log(rule.beta)
    early = max(0, -(-rule.min_units // levels) - 1)  # blocks before min_units
    segment = max(1, SEGMENT // levels)
    capitals = np.zeros((2, len(THETAS), trials))
    promoted, rejected = np.zeros((2, trials), dtype=bool)
    blocks = np.full(trials, total)
    going = np.arange(trials)
    for start in range(0, total, segment):
        stop = min(start + segment, total)
        d = differences[going, start * levels : stop * levels]
        crossed = np.empty((2, len(going), stop - start), dtype=bool)
        for side, (values, mean) in enumerate(((d, 0.0), (-d, -rule.smallest_effect))):
            factors = log_factors(values, mean)
            # Inside a block the capital is no evidence: whole blocks are added.
            steps = factors.reshape(*factors.shape[:2], -1, levels).sum(axis=-1)
            path = capitals[side][:, going, None] + steps.cumsum(axis=-1)
            capitals[side][:, going] = path[..., -1]
            crossed[side] = log_mixture(path, prior) >= bounds[side]
        # What is there before min_units and gone by then decides nothing.
        crossed[..., : max(early - start, 0)] = False
        up, down, at = first_crossing(*crossed)
        promoted[going], rejected[going] = up, down
        stopped = up | down
        blocks[going[stopped]] = start + at[stopped]
        going = going[~stopped]
        if not going.size:
            break
    return promoted, rejected, blocks


def _check_with_the_gate(
    differences: np.ndarray, rule: GateRule, levels: int, outcome: Outcome
) -> None:
    """Play some streams through `SequentialGate` and compare decision and stop."""
    rule = rule.model_copy(update={"max_units": differences.shape[1]})
    units = 0
    for i in np.unique(np.linspace(0, len(differences) - 1, CHECKED).astype(int)):
        gate = SequentialGate(rule, LEVEL_NAMES[:levels])
        for block in differences[i].reshape(-1, levels):
            if gate.count_block(block, [False] * levels).done:
                break
        decision = (
            "promote" if outcome.promoted[i] else "reject" if outcome.rejected[i] else
            "inconclusive"
        )  # fmt: skip
        if (gate.state.decision, gate.state.units) != (decision, outcome.units[i]):
            raise EvaluationError(
                f"got {decision} after {outcome.units[i]} units from the simulation; expected "
                f"{gate.state.decision} after {gate.state.units}, as the gate says; mend run_gate"
            )
        units += gate.state.units
        if units >= CHECKED_UNITS:
            break


def level_guard(
    outcome: Outcome, losses: Sequence[np.ndarray], rule: GateRule, chunk: int = 250
) -> np.ndarray:
    """Which of the promoted streams the level guard then refuses, on a task of one level.

    Args:
        outcome: of the test alone.
        losses: the differences (T, n) in the primary metric and, where that is another, in clears.
        rule: gives the guard's level and margin.
        chunk: streams at a time.

    Returns:
        bool (T,).
    """
    refused = np.zeros_like(outcome.promoted)
    promoted = np.flatnonzero(outcome.promoted)
    # Those that stopped together stand together, so that few are looked at beyond their stop.
    promoted = promoted[np.argsort(outcome.units[promoted], kind="stable")]
    for start in range(0, len(promoted), chunk):
        some = promoted[start : start + chunk]
        stops = outcome.units[some]
        most = int(stops.max())
        log_e = log_evidence_worse([d[some, :most] for d in losses], rule.level_margin)
        seen = np.where(np.arange(most) < stops[:, None], log_e, -np.inf)
        refused[some] = seen.max(axis=1) >= -math.log(rule.level_alpha)
    return refused


def first_crossing(up: np.ndarray, down: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Promoted, rejected, units from boolean crossings (T, n); `up` wins a tie."""
    n = up.shape[1]
    at_up = np.where(up.any(axis=1), up.argmax(axis=1) + 1, n + 1)
    at_down = np.where(down.any(axis=1), down.argmax(axis=1) + 1, n + 1)
    promoted = (at_up <= at_down) & (at_up <= n)
    rejected = (at_down < at_up) & (at_down <= n)
    return promoted, rejected, np.minimum(np.minimum(at_up, at_down), n)


def paired_clears(
    generator: np.random.Generator,
    champion: float,
    challenger: float,
    trials: int,
    units: int,
    coupling: float = 0.0,
) -> np.ndarray:
    """Clear differences (T, n); with probability `coupling` a unit's luck is the same for both."""
    luck = generator.random((trials, units))
    other = generator.random((trials, units))
    shared = generator.random((trials, units)) < coupling
    return (luck < challenger).astype(float) - (np.where(shared, luck, other) < champion)


def paired_scores(
    generator: np.random.Generator,
    champion: np.ndarray,
    challenger: np.ndarray,
    trials: int,
    units: int,
    coupling: float = 0.0,
) -> np.ndarray:
    """Score differences (T, n) bootstrapped from two pools of episodes."""
    mine, theirs = paired_episodes(generator, champion, challenger, trials, units, coupling)
    return mine - theirs


def paired_episodes(
    generator: np.random.Generator,
    champion: np.ndarray,
    challenger: np.ndarray,
    trials: int,
    units: int,
    coupling: float = 0.0,
) -> tuple[np.ndarray, np.ndarray]:
    """Scores (T, n) of the challenger and of the champion, bootstrapped from two pools.

    With probability `coupling` both take the same quantile of their (sorted) pools: a lucky seed
    is lucky for both.
    """
    a, b = np.sort(challenger), np.sort(champion)
    luck = generator.random((trials, units))
    shared = generator.random((trials, units)) < coupling
    other = np.where(shared, luck, generator.random((trials, units)))
    return a[(luck * len(a)).astype(int)], b[(other * len(b)).astype(int)]


def real_pairs(
    generator: np.random.Generator,
    champion: np.ndarray,
    challenger: np.ndarray,
    trials: int,
    units: int,
    *,
    swapped: bool = False,
) -> np.ndarray:
    """Differences (T, n) bootstrapped from units that two real policies both played.

    Whatever a seed does to both of them is in it, as in production.

    Args:
        generator: source of the draws.
        champion: a value for each unit, float (U,).
        challenger: the same units, float (U,).
        trials: T.
        units: n.
        swapped: at every unit a coin says which of the two is the challenger: two players that are
            equal on average, with a real spread and a real coupling.
    """
    d = challenger - champion
    chosen = d[generator.integers(0, len(d), (trials, units))]
    return chosen * generator.choice([-1.0, 1.0], (trials, units)) if swapped else chosen


def unlike_levels(
    generator: np.random.Generator, effects: np.ndarray, trials: int, units: int
) -> np.ndarray:
    """Clear differences (T, n) in blocks of unlike levels, in random order within each.

    Args:
        generator: source of the draws.
        effects: by how much the challenger's clear rate differs on each level, float (L,); the
            champion's is the middle of what that leaves room for.
        trials: T.
        units: n, rounded down to whole blocks.
    """
    levels = len(effects)
    blocks = units // levels
    champion = 0.5 - 0.5 * effects
    d = (generator.random((trials, blocks, levels)) < champion + effects).astype(float)
    d -= generator.random((trials, blocks, levels)) < champion
    return generator.permuted(d, axis=2).reshape(trials, -1)


def fastest_bet(differences: np.ndarray) -> tuple[float, float]:
    """The single bet whose capital against "no better" grows fastest, told the distribution.

    Its growth is the least Kullback-Leibler divergence from the differences' distribution to one
    with mean at most 0 (Honda & Takemura 2010, COLT), and no valid test's evidence grows faster:
    `gate_floor.floor_units` says what that leaves any test.

    Args:
        differences: draws in [-1, 1], any shape, with a mean above 0.

    Returns:
        Its theta, in (0, 1), and the log capital that it gains per unit.
    """
    values, counts = np.unique(differences, return_counts=True)
    weights = counts / counts.sum()

    def negative(theta: float) -> float:
        return -float(weights @ np.log1p(theta * values))

    found = optimize.minimize_scalar(negative, bounds=(0, 1 - 1e-9), method="bounded")
    return float(found.x), -float(found.fun)


def best_bet(differences: np.ndarray, alpha: float) -> dict[str, float]:
    """The single bet that needs the fewest units on average, told the distribution.

    One stake θ from the first unit to the last, the same for every stream; which one is chosen by
    looking at the streams themselves. No gate can do that; it says what any one bet could reach.

    Args:
        differences: float (T, n), n = the cap, which is what a stream counts that never crosses.
        alpha: its evidence promotes at 1/alpha.

    Returns:
        theta, the share of streams promoted, and their mean units.
    """
    best = {"theta": 0.0, "promoted": 0.0, "units_mean": float(differences.shape[1])}
    for theta in np.append(np.linspace(0.05, 0.95, 19), 0.99):
        crossed = np.cumsum(np.log1p(theta * differences), axis=1) >= -math.log(alpha)
        found = crossed.any(axis=1)
        units = float(np.where(found, crossed.argmax(axis=1) + 1, differences.shape[1]).mean())
        if units < best["units_mean"]:
            best = {"theta": float(theta), "promoted": float(found.mean()), "units_mean": units}
    return best


def mcnemar_power(win: float, lose: float, units: int, alpha: float) -> float:
    """Exact power of the one-sided exact McNemar test with `units` pairs.

    On clears the paired sign-flip permutation test is the same test: given the discordant pairs,
    a flip's sum reaches the observed one exactly when its wins do.
    """
    discordant = np.arange(units + 1)
    weights = stats.binom.pmf(discordant, units, win + lose)
    # Least wins that are significant among m discordant pairs, then the chance of so many.
    critical = stats.binom.isf(alpha, discordant, 0.5) + 1
    critical[0] = 1
    power = stats.binom.sf(critical - 1, discordant, win / (win + lose))
    return float(weights @ power)


def units_for_power(power_at: object, goal: float, highest: int = 4000) -> int:
    """Least number of units, to within the test's saw-tooth, at which `power_at(n)` ≥ goal."""
    low, high = 1, highest
    while low < high:
        middle = (low + high) // 2
        if power_at(middle) >= goal:  # type: ignore[operator]
            high = middle
        else:
            low = middle + 1
    return low


def permutation_power(
    differences: np.ndarray, alpha: float, generator: np.random.Generator, flips: int = 999
) -> float:
    """Power of the fixed-N paired sign-flip test over trials (T, n), with shared random flips."""
    signs = generator.choice([-1.0, 1.0], size=(differences.shape[1], flips))
    observed = differences.sum(axis=1, keepdims=True)
    at_least = (differences @ signs >= observed - 1e-9).sum(axis=1)
    return float(((1 + at_least) / (1 + flips) <= alpha).mean())


def run_sprt(differences: np.ndarray, theta: float, alpha: float, beta: float) -> Outcome:
    """Wald's SPRT told the truth, which no test can know, against the nearest "no better".

    The likelihood ratio of the two is the capital of the best single bet: the nearest distribution
    with mean at most 0 weighs a difference d by 1 / (1 + theta d). On clears it is the SPRT on
    discordant pairs with the true share of wins.

    Args:
        differences: float (T, n) in [-1, 1].
        theta: of that bet, from `fastest_bet`; for clears (wins - losses) / (wins + losses).
        alpha: chance of promoting what is no better.
        beta: chance of missing what is told.
    """
    path = np.cumsum(np.log1p(theta * differences), axis=1)
    return Outcome(
        *first_crossing(path >= math.log((1 - beta) / alpha), path <= math.log(beta / (1 - alpha)))
    )


def savvi_boundary(units: int, alpha: float, concentration: float) -> np.ndarray:
    """For each count of wins and losses, whether savvi's sequential test favours the challenger.

    `savvi.multinomial.Multinomial` (Lindon & Malek 2022) on discordant pairs against (½, ½). It is
    two-sided: level 2 alpha, and only wins over losses count. Its odds depend on the counts alone,
    so a table over counts, filled by its own updates, is the test itself.

    Returns:
        bool (units + 1, units + 1), indexed by wins and losses.
    """
    from savvi.multinomial import Multinomial

    crossed = np.zeros((units + 1, units + 1), dtype=bool)
    wins = 1
    for losses in range(units):
        # A loss more takes as many wins at least, so the search goes on where the last one ended.
        test = Multinomial(2 * alpha, np.array([0.5, 0.5]), k=concentration)
        test.update(np.array([wins, losses]))
        while wins <= losses or test.odds < 1 / (2 * alpha):
            wins += 1
            test.update(np.array([1, 0]))
        if wins + losses > units:
            break
        crossed[wins:, losses] = True  # more wins against the same losses only add evidence
    return crossed


def fixed_units(
    differences: np.ndarray, power: float, seed: int, repeats: int, flips: int = 499
) -> dict[str, int]:
    """Units that the fixed-N permutation test at level .05 needs for a power, and their spread.

    Args:
        differences: float (T, n), n = the most units looked at.
        power: asked for.
        seed: of the flips and of the repeats.
        repeats: with trials drawn anew from the given ones and with other flips.
        flips: of the signs in a test.

    Returns:
        `units` of the trials as they are; `least` and `most` over them and the repeats.
    """
    generator = np.random.default_rng(seed)
    found = []
    for repeat in range(1 + repeats):
        trials = generator.integers(0, len(differences), len(differences))
        own = differences[trials] if repeat else differences
        chosen = int(generator.integers(2**32))
        found.append(
            units_for_power(
                lambda n, own=own, chosen=chosen: permutation_power(
                    own[:, :n], 0.05, np.random.default_rng(chosen), flips
                ),
                power,
                differences.shape[1],
            )
        )
    return {"units": found[0], "least": min(found), "most": max(found)}


def run_savvi(differences: np.ndarray, boundary: np.ndarray) -> Outcome:
    """Streams of clear differences (T, n) against a boundary over counts; no futility stop."""
    wins = np.cumsum(differences > 0, axis=1)
    losses = np.cumsum(differences < 0, axis=1)
    up = boundary[wins, losses]
    return Outcome(*first_crossing(up, np.zeros_like(up)))
