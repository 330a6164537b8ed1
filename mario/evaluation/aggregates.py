"""Aggregates over runs and levels, and their bootstrap intervals.

Definitions of Agarwal et al. 2021 ("Deep reinforcement learning at the edge of the statistical
precipice", NeurIPS): interquartile mean, probability of improvement, performance profiles,
percentile intervals from a bootstrap stratified by level. A test compares them with `rliable`,
which draws from NumPy's global state, so that its intervals do not repeat. Here the generator is
explicit, and the same seed gives the same interval.

Scores are float `(runs, levels)`: one row a training seed, one column a level.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from mario.errors import EvaluationError
from mario.evaluation.statistics import FloatArray


class Interval(NamedTuple):
    """A point estimate with its percentile interval."""

    value: float
    lower: float
    upper: float


def check_scores(scores: NDArray[np.floating]) -> FloatArray:
    """Return scores as float64 `(runs, levels)`.

    Raises:
        EvaluationError: another number of axes, no values, or values that are not finite.
    """
    values = np.asarray(scores, dtype=np.float64)
    if values.ndim != 2 or values.size == 0 or not np.isfinite(values).all():
        raise EvaluationError(
            f"got scores of shape {values.shape}, finite: {bool(np.isfinite(values).all())}; "
            "expected finite (runs, levels) with at least one of each; evaluate every run on "
            "every level"
        )
    return values


def iqm(scores: FloatArray) -> FloatArray:
    """Interquartile mean over runs and levels: mean of the middle half of all values.

    Args:
        scores: float `(…, runs, levels)`; leading axes are resamples.

    Returns:
        float64 `(…)`.
    """
    flat = scores.reshape(*scores.shape[:-2], -1)
    return np.asarray(stats.trim_mean(flat, 0.25, axis=-1), dtype=np.float64)


def mean(scores: FloatArray) -> FloatArray:
    """Mean over runs and levels, `(…, runs, levels)` → `(…)`."""
    return np.asarray(scores.mean(axis=(-2, -1)))


def median(scores: FloatArray) -> FloatArray:
    """Median over levels of the mean over runs, `(…, runs, levels)` → `(…)`."""
    return np.asarray(np.median(scores.mean(axis=-2), axis=-1))


def probability_of_improvement(x: FloatArray, y: FloatArray) -> FloatArray:
    """Chance that a run of X beats a run of Y on a random level, ties counting half.

    Mann & Whitney's U divided by the number of pairs, averaged over levels.

    Args:
        x: float `(…, runs_x, levels)`.
        y: float `(…, runs_y, levels)`.

    Returns:
        float64 `(…)` in [0, 1].
    """
    a, b = x[..., :, None, :], y[..., None, :, :]
    wins = (a > b) + 0.5 * (a == b)
    return np.asarray(wins.mean(axis=(-3, -2, -1)))


def performance_profile(scores: FloatArray, thresholds: FloatArray) -> FloatArray:
    """Share of runs (over all levels) that score more than each threshold.

    Args:
        scores: float `(…, runs, levels)`.
        thresholds: float `(T,)`.

    Returns:
        float64 `(…, T)` in [0, 1], not increasing.
    """
    flat = np.sort(scores.reshape(*scores.shape[:-2], -1), axis=-1)
    if flat.ndim == 1:
        return 1.0 - np.searchsorted(flat, thresholds, side="right") / flat.size
    above = [
        1.0 - np.searchsorted(row, thresholds, side="right") / row.size
        for row in flat.reshape(-1, flat.shape[-1])
    ]
    return np.asarray(above).reshape(*flat.shape[:-1], -1)


def resample_runs(scores: FloatArray, generator: np.random.Generator, resamples: int) -> FloatArray:
    """Resample runs with replacement, separately for each level.

    Args:
        scores: float `(runs, levels)`.
        generator: source of the draws.
        resamples: R ≥ 1.

    Returns:
        float64 `(R, runs, levels)`.
    """
    runs, levels = scores.shape
    picks = generator.integers(0, runs, size=(resamples, runs, levels))
    return np.asarray(scores[picks, np.arange(levels)])


def bootstrap(
    scores: Sequence[FloatArray],
    statistic: Callable[..., FloatArray],
    generator: np.random.Generator,
    *,
    resamples: int = 2_000,
    confidence: float = 0.95,
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Percentile interval of a statistic of one or several score matrices.

    Args:
        scores: matrices `(runs_i, levels)`; each is resampled separately.
        statistic: function of the resampled matrices, with leading axes, to `(…)` or `(…, T)`.
        generator: source of the draws; the same state gives the same interval.
        resamples: R ≥ 1.
        confidence: in (0, 1).

    Returns:
        Point estimate, lower and upper end, each shaped like the statistic of the plain scores.
    """
    checked = [check_scores(s) for s in scores]
    point = np.asarray(statistic(*checked))
    draws = statistic(*[resample_runs(s, generator, resamples) for s in checked])
    tail = 50.0 * (1.0 - confidence)
    lower, upper = np.percentile(draws, [tail, 100.0 - tail], axis=0)
    return point, np.asarray(lower), np.asarray(upper)


def interval(
    scores: Sequence[FloatArray],
    statistic: Callable[..., FloatArray],
    generator: np.random.Generator,
    *,
    resamples: int = 2_000,
    confidence: float = 0.95,
) -> Interval:
    """Percentile interval of a statistic that is one number; see `bootstrap`."""
    point, lower, upper = bootstrap(
        scores, statistic, generator, resamples=resamples, confidence=confidence
    )
    return Interval(float(point), float(lower), float(upper))
