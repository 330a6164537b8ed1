"""Compare recipes: training configurations, each trained with several seeds.

One lucky seed is not a better recipe. Each recipe has several independently trained runs, all
evaluated on the same levels. A comparison reports the interquartile mean with a stratified
bootstrap interval, the probability that a run of one recipe beats a run of the other, and the
performance profile (definitions in `aggregates.py`).

    >>> scores = {"a": np.array([[.1], [.2], [.3]]), "b": np.array([[.3], [.4], [.5]])}
    >>> result = compare_scores(scores, ("1-1",), np.random.default_rng(0))
    >>> [round(r.iqm.value, 2) for r in result.recipes]
    [0.2, 0.4]
    >>> round(result.improvements[0].probability.value, 3)
    0.944
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from mario.config.gate import GateMetric
from mario.errors import EvaluationError
from mario.evaluation.aggregates import (
    Interval,
    bootstrap,
    check_scores,
    interval,
    iqm,
    mean,
    median,
    performance_profile,
    probability_of_improvement,
)
from mario.evaluation.records import EpisodeRecord, metric_value
from mario.evaluation.statistics import FloatArray

COMPARISON = "mario-comparison-v1"
#: Below this many runs a percentile interval is narrower than its name (3 runs: about 75%).
FEW_RUNS = 5
#: Thresholds of the performance profile: the metric's whole range.
THRESHOLDS = np.linspace(0.0, 1.0, 101)


@dataclass(frozen=True, slots=True)
class RecipeSummary:
    """One recipe.

    Attributes:
        name: its name.
        runs: training seeds.
        iqm: interquartile mean with interval.
        mean: mean with interval.
        median: median over levels of the mean over runs, with interval.
        per_level: mean over runs, by level.
        profile: share of runs above each threshold, `(T,)` in [0, 1].
        profile_lower: lower pointwise end.
        profile_upper: upper pointwise end.
    """

    name: str
    runs: int
    iqm: Interval
    mean: Interval
    median: Interval
    per_level: Mapping[str, float]
    profile: tuple[float, ...]
    profile_lower: tuple[float, ...]
    profile_upper: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Improvement:
    """Whether a later recipe beats an earlier one.

    Attributes:
        better: the later recipe.
        than: the earlier one.
        probability: chance in [0, 1] that a run of `better` beats one of `than`, with interval.
        iqm_difference: difference of the interquartile means, with interval.
        clear_cut: whether the interval of the probability lies on one side of one half.
    """

    better: str
    than: str
    probability: Interval
    iqm_difference: Interval
    clear_cut: bool


@dataclass(frozen=True, slots=True)
class Comparison:
    """The result of `compare_scores`.

    Attributes:
        metric: the value of an episode that was averaged.
        levels: columns.
        confidence: of every interval.
        resamples: bootstrap draws.
        recipes: one summary each, in the given order.
        improvements: every later recipe against every earlier one.
        thresholds: of the profiles.
        warnings: reasons for which its intervals are too narrow.
        version: of this layout.
    """

    metric: str
    levels: tuple[str, ...]
    confidence: float
    resamples: int
    recipes: tuple[RecipeSummary, ...]
    improvements: tuple[Improvement, ...]
    thresholds: tuple[float, ...]
    warnings: tuple[str, ...]
    version: str = COMPARISON

    def to_dict(self) -> dict[str, Any]:
        """Convert to plain JSON types; intervals become `[value, lower, upper]`."""
        return asdict(self)


def score_matrix(
    runs: Sequence[Sequence[EpisodeRecord]], levels: Sequence[str], metric: GateMetric = "score"
) -> FloatArray:
    """Average the metric of each run on each level.

    Args:
        runs: the records of one evaluation for each training seed.
        levels: columns.
        metric: `score`, `clear` or `progress`.

    Returns:
        float64 `(runs, levels)` in [0, 1].

    Raises:
        EvaluationError: a run without an episode on a level, or two runs of the same policy.
    """
    rows = []
    digests: set[str] = set()
    for number, records in enumerate(runs):
        own = {r.policy_digest for r in records}
        if len(own) != 1 or own & digests:
            raise EvaluationError(
                f"got run {number} with {len(own)} policies, {len(own & digests)} of them already "
                "in another run; expected one policy a run, each once; pass one file a seed"
            )
        digests |= own
        by_level: dict[str, list[float]] = {level: [] for level in levels}
        for record in records:
            if record.level in by_level:
                by_level[record.level].append(metric_value(record, metric))
        empty = [level for level, values in by_level.items() if not values]
        if empty:
            raise EvaluationError(
                f"got run {number} without episodes on {', '.join(empty)}; expected every level; "
                "evaluate it there"
            )
        rows.append([float(np.mean(by_level[level])) for level in levels])
    return check_scores(np.array(rows, dtype=np.float64).reshape(len(rows), -1))


def compare_scores(
    scores: Mapping[str, FloatArray],
    levels: Sequence[str],
    generator: np.random.Generator,
    *,
    metric: str = "score",
    resamples: int = 2_000,
    confidence: float = 0.95,
) -> Comparison:
    """Compare recipes by their score matrices.

    Args:
        scores: recipe name → float `(runs, levels)`; at least two recipes, the baseline first.
        levels: names of the columns.
        generator: source of every resample, in a fixed order: the same seed, the same intervals.
        metric: named in the comparison.
        resamples: bootstrap draws.
        confidence: of the percentile intervals, in (0, 1).

    Returns:
        The comparison.

    Raises:
        EvaluationError: fewer than two recipes, or matrices that do not fit the levels.
    """
    matrices = _checked(scores, levels)
    settings = {"resamples": resamples, "confidence": confidence}
    summaries = [
        _summary(name, matrix, levels, generator, settings) for name, matrix in matrices.items()
    ]
    improvements = [
        _improvement(b, a, matrices, generator, settings)
        for a, b in itertools.combinations(matrices, 2)
    ]
    few = [f"{s.name} ({s.runs})" for s in summaries if s.runs < FEW_RUNS]
    warning = (
        f"fewer than {FEW_RUNS} training seeds: {', '.join(few)}; bootstrap intervals are "
        "too narrow there"
    )
    return Comparison(
        metric=metric,
        levels=tuple(levels),
        confidence=confidence,
        resamples=resamples,
        recipes=tuple(summaries),
        improvements=tuple(improvements),
        thresholds=tuple(THRESHOLDS.tolist()),
        warnings=(warning,) if few else (),
    )


def _checked(scores: Mapping[str, FloatArray], levels: Sequence[str]) -> dict[str, FloatArray]:
    """Refuse fewer than two recipes, and matrices that do not fit the levels."""
    if len(scores) < 2:
        raise EvaluationError(
            f"got {len(scores)} recipes; expected at least two; name another configuration"
        )
    matrices = {name: check_scores(matrix) for name, matrix in scores.items()}
    for name, matrix in matrices.items():
        if matrix.shape[1] != len(levels):
            raise EvaluationError(
                f"got {matrix.shape[1]} columns for recipe {name}; expected {len(levels)}, one a "
                "level; evaluate all recipes on the same levels"
            )
    return matrices


def _summary(
    name: str,
    matrix: FloatArray,
    levels: Sequence[str],
    generator: np.random.Generator,
    settings: Mapping[str, Any],
) -> RecipeSummary:
    profile = bootstrap(
        [matrix], lambda s: performance_profile(s, THRESHOLDS), generator, **settings
    )
    point, low, high = (tuple(values.tolist()) for values in profile)
    return RecipeSummary(
        name=name,
        runs=matrix.shape[0],
        iqm=interval([matrix], iqm, generator, **settings),
        mean=interval([matrix], mean, generator, **settings),
        median=interval([matrix], median, generator, **settings),
        per_level=dict(zip(levels, matrix.mean(axis=0).tolist(), strict=True)),
        profile=point,
        profile_lower=low,
        profile_upper=high,
    )


def _improvement(
    better: str,
    than: str,
    matrices: Mapping[str, FloatArray],
    generator: np.random.Generator,
    settings: Mapping[str, Any],
) -> Improvement:
    x, y = matrices[better], matrices[than]
    probability = interval([x, y], probability_of_improvement, generator, **settings)
    difference = interval([x, y], lambda a, b: iqm(a) - iqm(b), generator, **settings)
    return Improvement(
        better=better,
        than=than,
        probability=probability,
        iqm_difference=difference,
        clear_cut=probability.lower > 0.5 or probability.upper < 0.5,
    )
