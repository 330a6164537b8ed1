"""E-processes and confidence sequences for a bounded mean, by betting; valid whenever one stops.

Observations are paired differences d in [-1, 1] (challenger minus champion on the same unit). To
test "the mean is at most m", start with capital 1 and bet at every unit: capital is multiplied by

    1 + theta * (d - m) / (1 + m),        0 < theta < 1.

The factor is never negative and, when the mean is at most m, at most 1 in expectation: capital is
a non-negative supermartingale, and by Ville's inequality it ever reaches 1/alpha with probability
at most alpha (the capital process of Waudby-Smith & Ramdas 2024, "Estimating means of bounded
random variables by betting", JRSS-B 86(1); Ville 1939). We split the capital once over a fixed grid
of theta (the method of mixtures, Robbins 1970; the hedged capital of the same paper is one).
A fixed mixture needs no tuning while the test runs, is within a constant of the best theta in
hindsight, and does not depend on the order of the units.

**Blocks.** With several levels a block holds one unit of each, in random order, and the level
means mu_l differ. Units of a block are independent given the past, so for one theta the block's
expected factor is the product over l of (1 + theta (mu_l - m)/(1 + m)), which by the inequality of
arithmetic and geometric means is at most (1 + theta (mean(mu) - m)/(1 + m))^L. So capital looked
at the ends of blocks is valid for the *average over levels* without assuming the levels alike.
Inside a block it is not a supermartingale: decide at the ends of blocks only.

The confidence sequence inverts the test: at any time it holds every m whose capital is below the
threshold (the same paper's confidence sequences by betting). For fixed theta, capital decreases in
m, so bisection finds each end. Intersecting the intervals over time would be valid, too. We do not,
because the interval of one moment agrees with the test at that moment, and always contains the
average so far: by Jensen's inequality the capital against a mean of that value is at most 1. An
intersection is empty when there was evidence for one side that later units took back.

All functions are pure; arrays are float64.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from mario.errors import EvaluationError
from mario.evaluation.statistics import FloatArray, check_counts

# The grid and its priors are part of mario-gate-v1. For a difference of clear rates of .1 to .3 the
# best theta is .3 to .6. Progress without clears also needs the greatest theta: its differences are
# small and alike, and the largest bet is the best. Scores of policies that clear spread like clears
# and differ by less: theta .3 detects a gain of .05 soonest, and large bets mostly reward lucky
# streaks.
THETAS: Final[FloatArray] = np.array([0.1, 0.2, 0.3, 0.4, 0.5, 0.65, 0.8, 0.99])
PRIOR_CLEAR: Final[FloatArray] = np.array([0.05, 0.10, 0.20, 0.20, 0.20, 0.10, 0.10, 0.05])
PRIOR_SCORE: Final[FloatArray] = np.array([0.05, 0.12, 0.18, 0.12, 0.10, 0.08, 0.08, 0.27])
PRIOR_PROGRESS: Final[FloatArray] = np.array([0.03, 0.05, 0.10, 0.12, 0.15, 0.10, 0.10, 0.35])
# The per-level guard has few units a level and detects collapses: mostly the largest bet.
PRIOR_BOLD: Final[FloatArray] = np.array([0.02, 0.03, 0.05, 0.05, 0.10, 0.10, 0.15, 0.50])
# Means times units that a confidence sequence computes together: about 20 MB.
_GRID_CELLS: Final = 100_000
# Differences of scores are computed in floating point; this much outside [-1, 1] is rounding.
_ROUNDING = 1e-9


def _checked(differences: NDArray[np.floating] | list[float]) -> FloatArray:
    values = np.asarray(differences, dtype=np.float64)
    if values.size and not np.all(np.abs(values) <= 1 + _ROUNDING):
        raise EvaluationError(
            f"got differences between {values.min()} and {values.max()}; expected every "
            "one in [-1, 1]; use score, clear or progress, which lie in [0, 1]"
        )
    return np.clip(values, -1.0, 1.0)


def log_factors(differences: FloatArray, mean: float | FloatArray) -> FloatArray:
    """Log of the capital factors against "mean at most `mean`", for each theta.

    Args:
        differences: any shape S, values in [-1, 1].
        mean: the null value in (-1, 1); a scalar or an array that broadcasts against S.

    Returns:
        float64 `(J, *S)` with J = len(THETAS).
    """
    values = np.asarray(differences, dtype=np.float64)
    ratio = (values - mean) / (1.0 + np.asarray(mean))
    shape = (-1,) + (1,) * ratio.ndim
    return np.asarray(np.log1p(THETAS.reshape(shape) * ratio), dtype=np.float64)


def prior_for(metric: str) -> FloatArray:
    """Prior over THETAS, float `(J,)`, for a metric: `clear`, `score` or `progress`."""
    return {"clear": PRIOR_CLEAR, "score": PRIOR_SCORE, "progress": PRIOR_PROGRESS}[metric]


def log_mixture(log_capitals: FloatArray, prior: FloatArray) -> FloatArray:
    """Log of the mixed capital from log capitals `(J, *S)` and a prior `(J,)`; returns `S`."""
    shape = (-1,) + (1,) * (log_capitals.ndim - 1)
    weighted = log_capitals + np.log(prior).reshape(shape)
    top = weighted.max(axis=0)
    return np.asarray(top + np.log(np.exp(weighted - top).sum(axis=0)), dtype=np.float64)


def log_wealth(
    differences: NDArray[np.floating] | list[float],
    mean: float = 0.0,
    *,
    prior: FloatArray = PRIOR_CLEAR,
    axis: int = -1,
) -> FloatArray:
    """Log capital over time against "mean at most `mean`".

    Args:
        differences: float `(…, n)` in [-1, 1], in order of play along `axis`.
        mean: the null value, in (-1, 1).
        prior: over THETAS, float `(J,)`, sums to 1.
        axis: the axis of time.

    Returns:
        float64, same shape: log capital after each unit. `exp` of it is an e-process at the ends
        of blocks; evidence for "mean below b" is `log_wealth(-d, -b)`.

    Raises:
        EvaluationError: a difference outside [-1, 1].
    """
    values = np.moveaxis(_checked(differences), axis, -1)
    out = log_mixture(np.cumsum(log_factors(values, mean), axis=-1), prior)
    return np.moveaxis(out, -1, axis)


class EProcess:
    """Capital against "mean at most `mean`", updated block by block.

    Attributes:
        mean: the null value.
        units: units seen.
        log_e: log capital now, after the last block.
    """

    def __init__(self, mean: float = 0.0, prior: FloatArray = PRIOR_CLEAR) -> None:
        if not -1.0 < mean < 1.0:
            raise EvaluationError(f"got null mean {mean}; expected it in (-1, 1)")
        self.mean = mean
        self._prior = prior
        self.units = 0
        self.log_e = 0.0
        self._log_capitals: FloatArray = np.zeros(len(THETAS))

    def update(self, block: NDArray[np.floating] | list[float]) -> float:
        """Bet on a whole block, float `(L,)` in [-1, 1]; return the log capital after it."""
        values = _checked(block)
        # Sorted first, so that not even rounding depends on the order within a block.
        self._log_capitals += log_factors(np.sort(values), self.mean).sum(axis=-1)
        self.units += values.size
        self.log_e = float(log_mixture(self._log_capitals, self._prior))
        return self.log_e


def lower_bound(
    differences: NDArray[np.floating] | list[float],
    alpha: float,
    *,
    prior: FloatArray = PRIOR_CLEAR,
    iterations: int = 50,
) -> float:
    """Lower end of the confidence sequence after the last unit.

    Args:
        differences: float `(n,)` in [-1, 1].
        alpha: chance, in (0, 1), that the bound is ever above the mean.
        prior: over THETAS, float `(J,)`, sums to 1.
        iterations: halvings of [-1, 1]; 50 gives 2e-15.

    Returns:
        The greatest m in [-1, 1] whose "mean at most m" is rejected at level alpha; -1 for none.
    """
    values = _checked(differences)
    if values.size == 0:
        return -1.0
    threshold = -np.log(alpha)
    low, high = -1.0, 1.0
    for _ in range(iterations):
        middle = 0.5 * (low + high)
        capital = float(log_mixture(log_factors(values, middle).sum(axis=-1), prior))
        if capital >= threshold:
            low = middle
        else:
            high = middle
    return low


def share_bounds(successes: int, trials: int, confidence: float = 0.95) -> tuple[float, float]:
    """Both ends of the confidence sequence of a share of successes, after the last trial.

    A success counts as 1 and a failure as -1, so that the bets use the whole range; each end errs
    at any time with probability at most (1 - confidence) / 2. Whenever a test stops, the pair
    covers the share with probability at least `confidence`. Clopper and Pearson's interval, made
    for a number of trials fixed beforehand, does not. With unlike levels the share is the average
    over levels, at the ends of blocks. The order of trials does not matter.

    Args:
        successes: 0 … trials.
        trials: ≥ 1.
        confidence: in (0, 1).

    Returns:
        Lower and upper end in [0, 1].

    Raises:
        EvaluationError: impossible counts or confidence.
    """
    check_counts(successes, trials, confidence)
    outcomes = np.repeat([1.0, -1.0], [successes, trials - successes])
    end_error = (1.0 - confidence) / 2.0
    lower, upper = lower_bound(outcomes, end_error), -lower_bound(-outcomes, end_error)
    return 0.5 * (1.0 + lower), 0.5 * (1.0 + upper)


def confidence_sequence(
    differences: NDArray[np.floating] | list[float],
    alpha: float,
    *,
    prior: FloatArray = PRIOR_CLEAR,
    block: int = 1,
    points: int = 401,
) -> tuple[FloatArray, FloatArray]:
    """Both ends of the confidence sequence at every block's end.

    Each end alone errs at any time with probability at most alpha, so the pair covers the mean at
    all times together with probability at least 1 - 2 alpha. It contains the average so far at
    every time. The ends are rounded outwards to a grid; bisection refines the last ones.

    Args:
        differences: float `(n,)` in [-1, 1], n a multiple of `block`.
        alpha: error of each end, in (0, 0.5).
        prior: over THETAS, float `(J,)`, sums to 1.
        block: units in a block, ≥ 1.
        points: grid points on [-1, 1].

    Returns:
        Two float64 arrays `(n / block,)`: lower and upper ends, in [-1, 1].

    Raises:
        EvaluationError: n not a multiple of `block`, or values outside [-1, 1].
    """
    values = _checked(differences)
    if values.size % block:
        raise EvaluationError(
            f"got {values.size} units in blocks of {block}; expected whole blocks; feed the rest"
        )
    if values.size == 0:
        return np.empty(0), np.empty(0)
    # Sorted within blocks, so that not even rounding depends on the order there.
    values = np.sort(values.reshape(-1, block), axis=1).ravel()
    lower = _lower_ends(values, alpha, prior, block, points)
    upper = -_lower_ends(-values, alpha, prior, block, points)
    return lower, upper


def _lower_ends(
    values: FloatArray, alpha: float, prior: FloatArray, block: int, points: int
) -> FloatArray:
    # The grid leaves out -1 itself, where the factor divides by 0.
    grid = np.linspace(-1.0, 1.0, points)[1:-1]
    count = np.zeros(values.size // block, dtype=np.int64)  # rejected means, from the least upwards
    still = np.ones(count.size, dtype=bool)
    # A part of the grid at a time: thousands of units would fill hundreds of megabytes at once.
    for means in np.array_split(grid, max(1, grid.size * values.size // _GRID_CELLS)):
        capitals = log_factors(values[None, :], means[:, None]).cumsum(axis=-1)
        at_ends = log_mixture(capitals[..., block - 1 :: block], prior)
        below = still & np.logical_and.accumulate(at_ends >= -np.log(alpha), axis=0)
        count += below.sum(axis=0)
        still = below[-1]
        if not still.any():
            break
    lower = np.concatenate(([-1.0], grid))[count]
    lower[-1] = lower_bound(values, alpha, prior=prior)
    return np.asarray(lower, dtype=np.float64)
