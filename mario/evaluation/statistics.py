"""Fixed-sample statistics: exact intervals, paired tests, and Holm's correction.

Pure: the standard library, NumPy and SciPy; randomness is always an explicit generator. These
functions are valid for a number of units that was fixed beforehand; the gate reports them as
secondary numbers. Statistics that are valid at any stopping time are in `betting.py`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from mario.errors import EvaluationError

FloatArray = NDArray[np.float64]


def clopper_pearson(successes: int, trials: int, confidence: float = 0.95) -> tuple[float, float]:
    """Exact two-sided interval of a proportion (Clopper & Pearson 1934, Biometrika 26).

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
    tail = (1.0 - confidence) / 2.0
    low = 0.0 if successes == 0 else float(stats.beta.ppf(tail, successes, trials - successes + 1))
    high = (
        1.0
        if successes == trials
        else float(stats.beta.ppf(1.0 - tail, successes + 1, trials - successes))
    )
    return low, high


def exact_lower_bound(successes: int, trials: int, confidence: float = 0.95) -> float:
    """Exact one-sided lower bound of a proportion; 59 of 59 gives 0.950 at 95%.

    Args:
        successes: 0 … trials.
        trials: ≥ 1.
        confidence: in (0, 1).

    Returns:
        The bound in [0, 1] (Clopper & Pearson 1934, one tail).

    Raises:
        EvaluationError: impossible counts or confidence.
    """
    check_counts(successes, trials, confidence)
    if successes == 0:
        return 0.0
    return float(stats.beta.ppf(1.0 - confidence, successes, trials - successes + 1))


def successes_needed(trials: int, rate: float, confidence: float = 0.95) -> int | None:
    """Least successes in `trials` whose exact bound is at least `rate`; None if no number is."""
    for successes in range(trials, -1, -1):
        if exact_lower_bound(successes, trials, confidence) < rate:
            return None if successes == trials else successes + 1
    return 0


def check_counts(successes: int, trials: int, confidence: float) -> None:
    """Refuse counts and a confidence for which there is no interval.

    Raises:
        EvaluationError: impossible counts or confidence.
    """
    if not 0 <= successes <= trials or trials < 1 or not 0.0 < confidence < 1.0:
        raise EvaluationError(
            f"got {successes} successes in {trials} trials at confidence {confidence}; expected "
            "0 ≤ successes ≤ trials, trials ≥ 1, 0 < confidence < 1; correct the call"
        )


def paired_permutation(
    differences: NDArray[np.floating] | Sequence[float],
    generator: np.random.Generator,
    resamples: int = 9_999,
) -> float:
    """One-sided paired sign-flip test of "not better" (Fisher 1935; Phipson & Smyth 2010).

    Under the null the sign of each difference is a coin flip. Valid for a number of units fixed
    beforehand. Ties (0) carry no information and change nothing.

    Args:
        differences: float `(n,)`, challenger minus champion.
        generator: source of the flips.
        resamples: random flips R.

    Returns:
        (1 + number of flips with a sum at least the observed) / (1 + R), in (0, 1].
    """
    values = np.asarray(differences, dtype=np.float64)
    values = values[values != 0.0]
    if values.size == 0:
        return 1.0
    observed = values.sum() - 1e-9 * np.abs(values).sum()
    at_least = 0
    # In chunks, so that memory stays bounded whatever the number of units.
    chunk = max(1, 2_000_000 // values.size)
    for start in range(0, resamples, chunk):
        rows = min(chunk, resamples - start)
        signs = generator.integers(0, 2, size=(rows, values.size), dtype=np.int8)
        flipped = (signs * 2.0 - 1.0) @ values
        at_least += int(np.count_nonzero(flipped >= observed))
    return (1 + at_least) / (1 + resamples)


def holm(p_values: Sequence[float] | NDArray[np.floating]) -> FloatArray:
    """Holm's step-down adjusted p-values (Holm 1979, Scand. J. Statist. 6).

    Args:
        p_values: float `(k,)` in [0, 1]; anytime-valid ones stay anytime-valid, because the
            correction needs nothing but each one's validity.

    Returns:
        float64 `(k,)` in the given order; rejecting those ≤ alpha keeps the chance of any false
        rejection ≤ alpha.
    """
    values = np.asarray(p_values, dtype=np.float64)
    order = np.argsort(values, kind="stable")
    stepped = values[order] * np.arange(values.size, 0, -1)
    adjusted = np.empty_like(values)
    adjusted[order] = np.minimum(np.maximum.accumulate(stepped), 1.0)
    return adjusted
