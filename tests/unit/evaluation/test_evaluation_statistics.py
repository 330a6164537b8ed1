"""Fixed-sample statistics, aggregates and α budget against independent implementations."""

from __future__ import annotations

import itertools
import warnings

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import proportion_confint

from mario.errors import EvaluationError
from mario.evaluation import aggregates, statistics
from mario.evaluation.alpha_budget import AlphaBudget, replay, spending_share
from mario.evaluation.comparison import compare_scores, score_matrix
from tests.support.evaluation_helpers import record


@pytest.mark.parametrize("trials", [1, 7, 59, 400])
def test_exact_interval_agrees_with_scipy_and_statsmodels(trials):
    for successes in {0, 1, trials // 3, trials - 1, trials}:
        ours = statistics.clopper_pearson(successes, trials)
        assert ours == pytest.approx(proportion_confint(successes, trials, method="beta"), abs=1e-9)
        exact = stats.binomtest(successes, trials).proportion_ci(0.95, "exact")
        assert ours == pytest.approx((exact.low, exact.high), abs=1e-9)
        one_sided = stats.binomtest(successes, trials, alternative="greater").proportion_ci(0.95)
        assert statistics.exact_lower_bound(successes, trials) == pytest.approx(
            one_sided.low, abs=1e-9
        )


def test_59_of_59_proves_95_percent():
    assert statistics.exact_lower_bound(59, 59) >= 0.95 > statistics.exact_lower_bound(58, 58)
    assert statistics.successes_needed(59, 0.95) == 59
    assert statistics.successes_needed(58, 0.95) is None
    needed = statistics.successes_needed(200, 0.8)
    assert statistics.exact_lower_bound(needed, 200) >= 0.8
    assert statistics.exact_lower_bound(needed - 1, 200) < 0.8


def test_holm_agrees_with_statsmodels():
    p = np.random.default_rng(0).random(32) ** 3
    np.testing.assert_allclose(statistics.holm(p), multipletests(p, method="holm")[1], atol=1e-12)


def test_permutation_agrees_with_full_enumeration_and_scipy():
    d = np.random.default_rng(1).normal(0.3, 0.5, 12).clip(-1, 1)
    signs = np.array(list(itertools.product((1, -1), repeat=12)))
    exact = float(np.mean(signs @ d >= d.sum() - 1e-12))
    ours = statistics.paired_permutation(d, np.random.default_rng(2), 99_999)
    assert ours == pytest.approx(exact, abs=0.004)
    theirs = stats.permutation_test(
        (d, np.zeros(12)),
        lambda x, y: (x - y).mean(),
        permutation_type="samples",
        alternative="greater",
        n_resamples=5000,
    ).pvalue
    assert exact == pytest.approx(theirs, abs=1e-12)
    assert statistics.paired_permutation(np.zeros(9), np.random.default_rng(0)) == 1.0
    again = [statistics.paired_permutation(d, np.random.default_rng(2)) for _ in range(2)]
    assert again[0] == again[1]


@pytest.mark.parametrize(("successes", "trials"), [(-1, 5), (6, 5), (0, 0)])
def test_impossible_counts_are_refused(successes, trials):
    with pytest.raises(EvaluationError):
        statistics.clopper_pearson(successes, trials)


@pytest.fixture
def matrices():
    generator = np.random.default_rng(11)
    return generator.beta(2, 5, (10, 4)), generator.beta(3, 4, (8, 4)).round(2)


def test_point_estimates_are_rliables(matrices):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from rliable import library, metrics
    x, y = matrices
    assert aggregates.iqm(x) == pytest.approx(metrics.aggregate_iqm(x), abs=1e-12)
    assert aggregates.mean(x) == pytest.approx(metrics.aggregate_mean(x), abs=1e-12)
    assert aggregates.median(x) == pytest.approx(metrics.aggregate_median(x), abs=1e-12)
    assert aggregates.probability_of_improvement(x, y) == pytest.approx(
        metrics.probability_of_improvement(x, y), abs=1e-12
    )
    taus = np.linspace(0, 1, 21)
    theirs, _ = library.create_performance_profile({"x": x}, taus, reps=10)
    np.testing.assert_allclose(aggregates.performance_profile(x, taus), theirs["x"], atol=1e-12)


@pytest.fixture
def rliables_seed():
    """Seed NumPy's global state, from which rliable draws, and restore it afterwards."""
    state = np.random.get_state()  # noqa: NPY002
    np.random.seed(20261123)  # noqa: NPY002
    yield
    np.random.set_state(state)  # noqa: NPY002


@pytest.mark.usefixtures("rliables_seed")
def test_bootstrap_intervals_are_rliables_to_monte_carlo_error(matrices):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from rliable import library, metrics
    x, y = matrices
    _, theirs = library.get_interval_estimates(
        {"x": x}, lambda s: np.array([metrics.aggregate_iqm(s)]), reps=3_000
    )
    ours = aggregates.interval([x], aggregates.iqm, np.random.default_rng(0), resamples=20_000)
    # Percentiles of 3,000 draws of a statistic with sd ≈ .025 move by about .001.
    assert (ours.lower, ours.upper) == pytest.approx(tuple(theirs["x"].ravel()), abs=0.006)
    _, theirs = library.get_interval_estimates(
        {"xy": [x, y]},
        lambda a, b: np.array([metrics.probability_of_improvement(a, b)]),
        reps=1_000,
    )
    ours = aggregates.interval(
        [x, y], aggregates.probability_of_improvement, np.random.default_rng(0), resamples=10_000
    )
    assert (ours.lower, ours.upper) == pytest.approx(tuple(theirs["xy"].ravel()), abs=0.02)


def test_same_seed_same_interval_and_nobody_elses_randomness(matrices):
    x, _ = matrices
    draws = []
    for noise in (1, 2):
        np.random.seed(noise)  # noqa: NPY002 - rliable's way; must not matter here
        draws.append(aggregates.interval([x], aggregates.iqm, np.random.default_rng(4)))
    assert draws[0] == draws[1]
    assert draws[0] != aggregates.interval([x], aggregates.iqm, np.random.default_rng(5))


def test_profiles_of_resamples_have_the_plain_definition(matrices):
    x, _ = matrices
    draws = aggregates.resample_runs(x, np.random.default_rng(0), 3)
    taus = np.linspace(0, 1, 11)
    expected = [[(one > t).mean() for t in taus] for one in draws]
    np.testing.assert_allclose(aggregates.performance_profile(draws, taus), expected)


def test_resampling_is_stratified_by_level():
    scores = np.arange(12.0).reshape(3, 4)
    draws = aggregates.resample_runs(scores, np.random.default_rng(0), 50)
    for level in range(4):
        assert set(draws[:, :, level].ravel()) <= set(scores[:, level])
    assert any(len({v % 4 for v in row}) == 4 and len(set(row // 4)) > 1 for row in draws[:, 0])


def test_comparison_of_recipes_from_records():
    def run(digest, pixels):
        return [record(digest, s_level, seed, furthest_px=pixels + 10 * seed)
                for s_level in ("1-1", "1-2") for seed in range(4)]  # fmt: skip

    weak = score_matrix([run(f"w{i}", 300 + 40 * i) for i in range(5)], ("1-1", "1-2"))
    strong = score_matrix([run(f"s{i}", 900 + 40 * i) for i in range(5)], ("1-1", "1-2"))
    both = {"weak": weak, "strong": strong}
    result = compare_scores(both, ("1-1", "1-2"), np.random.default_rng(0), resamples=300)
    assert result.improvements[0].probability == (1.0, 1.0, 1.0)
    assert result.improvements[0].clear_cut
    assert result.improvements[0].iqm_difference.lower > 0
    assert result.recipes[0].iqm.value == pytest.approx(aggregates.iqm(weak))
    assert not result.warnings
    same = compare_scores(both, ("1-1", "1-2"), np.random.default_rng(0), resamples=300)
    assert same.to_dict() == result.to_dict()
    few = compare_scores({"a": weak[:3], "b": weak[:3]}, ("1-1", "1-2"), np.random.default_rng(0),
                         resamples=50)  # fmt: skip
    assert few.warnings
    assert not few.improvements[0].clear_cut
    with pytest.raises(EvaluationError, match="without episodes"):
        score_matrix([run("x", 300)], ("1-1", "1-3"))
    with pytest.raises(EvaluationError, match="already"):
        score_matrix([run("x", 300), run("x", 300)], ("1-1",))
    with pytest.raises(EvaluationError, match="two"):
        compare_scores({"a": weak}, ("1-1", "1-2"), np.random.default_rng(0))


def test_the_budget_never_spends_more_than_declared():
    budget = AlphaBudget.open(0.05)
    spent = 0.0
    for _ in range(5000):
        spent += budget.next_alpha
        budget = budget.spend()
    assert 0.04 < spent < 0.05
    assert budget.left == pytest.approx(0.05 - spent)
    assert budget.next_alpha > 0
    assert budget.earn() == AlphaBudget.open(0.05)
    assert sum(spending_share(k) for k in range(1, 200_000)) < 1


def test_the_budget_replays_from_the_ledger():
    budget = replay(0.1, [False, False, True, False])
    assert budget == AlphaBudget.open(0.1).spend()
    with pytest.raises(EvaluationError):
        AlphaBudget.open(0.0)
    with pytest.raises(EvaluationError):
        spending_share(0)
