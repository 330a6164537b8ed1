"""E-processes and confidence sequences: validity by simulation, and their algebra."""

from __future__ import annotations

import math
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mario.errors import EvaluationError
from mario.evaluation import betting
from mario.evaluation.betting import EProcess, confidence_sequence, log_wealth, lower_bound
from mario.evaluation.statistics import clopper_pearson


def paired_clears(generator, trials, units, champion, challenger):
    a = generator.random((trials, units)) < challenger
    b = generator.random((trials, units)) < champion
    return a.astype(float) - b


def test_prior_is_a_distribution_over_fractions():
    for metric in ("clear", "score", "progress"):
        assert betting.prior_for(metric).sum() == pytest.approx(1)
        assert len(betting.prior_for(metric)) == len(betting.THETAS)
    assert ((betting.THETAS > 0) & (betting.THETAS < 1)).all()


def test_wealth_is_the_mixture_of_products_computed_by_hand():
    d = [0.5, -1.0, 0.25]
    expected = sum(
        w * math.prod(1 + t * (x - 0.1) / 1.1 for x in d)
        for t, w in zip(betting.THETAS, betting.PRIOR_CLEAR, strict=True)
    )
    assert math.exp(log_wealth(d, 0.1)[-1]) == pytest.approx(expected, rel=1e-12)
    process = EProcess(0.1)
    process.update(d[:2])
    assert process.update(d[2:]) == pytest.approx(math.log(expected), abs=1e-12)
    assert process.units == 3


def test_expected_wealth_under_the_null_is_exactly_one():
    """Every path of 6 fair tosses, weighted: a martingale at mean 0, below 1 under it."""
    for up, total in ((0.5, 1.0), (0.4, None)):
        paths = np.array(np.meshgrid(*[[1.0, -1.0]] * 6)).reshape(6, -1).T
        chance = np.where(paths > 0, up, 1 - up).prod(axis=1)
        expected = float(chance @ np.exp(log_wealth(paths)[:, -1]))
        assert expected == pytest.approx(1.0, abs=1e-12) if total else expected < 1


def test_blocks_of_unlike_levels_keep_expected_wealth_below_one():
    """Levels with means +.4 and -.4 average to 0: exact expectation over a block is below 1."""
    outcomes = np.array([[a, b] for a in (1.0, -1.0) for b in (1.0, -1.0)])
    chance = np.where(outcomes[:, 0] > 0, 0.7, 0.3) * np.where(outcomes[:, 1] > 0, 0.3, 0.7)
    assert float(chance @ np.exp(log_wealth(outcomes)[:, -1])) < 1


@pytest.mark.parametrize("rate", [0.02, 0.5, 0.85])
def test_equal_policies_cross_the_boundary_in_at_most_alpha_of_streams(rate):
    d = paired_clears(np.random.default_rng(5), 2000, 300, rate, rate)
    crossed = (log_wealth(d) >= math.log(20)).any(axis=1).mean()
    # Bound .05 plus four standard errors of 2,000 trials.
    assert crossed <= 0.05 + 4 * math.sqrt(0.05 * 0.95 / 2000)


def test_better_policies_are_found():
    d = paired_clears(np.random.default_rng(6), 500, 400, 0.5, 0.7)
    assert (log_wealth(d) >= math.log(20)).any(axis=1).mean() > 0.95


def test_confidence_sequence_covers_at_all_times_together():
    generator = np.random.default_rng(7)
    misses = 0
    for _ in range(300):
        d = generator.beta(2, 5, 120) - generator.beta(2, 4, 120)
        lower, upper = confidence_sequence(d, 0.025, points=101)
        truth = 2 / 7 - 2 / 6
        misses += bool((lower > truth).any() or (upper < truth).any())
    assert misses / 300 <= 0.05


@pytest.mark.parametrize("share", [0.1, 0.5, 0.85])
def test_bounds_of_a_share_cover_it_whenever_one_stops(share):
    """Stop where the sequence errs, if it ever does; a fixed-sample interval errs more often."""
    outcomes = np.random.default_rng(13).random((400, 300)) < share
    clears = outcomes.cumsum(axis=1)
    # Of a stream only its number of trials and of clears count: each pair is looked up once.
    bounds, fixed = {}, {}
    missed = np.zeros((2, len(outcomes)), dtype=bool)
    for trials in range(1, 301, 10):
        for i, successes in enumerate(clears[:, trials - 1].tolist()):
            if (successes, trials) not in bounds:
                bounds[successes, trials] = betting.share_bounds(successes, trials)
                fixed[successes, trials] = clopper_pearson(successes, trials)
            for which, found in enumerate((bounds, fixed)):
                low, high = found[successes, trials]
                missed[which, i] |= not low <= share <= high
    # 5% of 400 are 20; four standard errors more are 37.
    assert missed[0].sum() <= 37
    assert missed[1].sum() > 60


def test_bounds_of_a_share_hold_its_estimate_and_narrow():
    wide, narrow = betting.share_bounds(10, 20), betting.share_bounds(500, 1_000)
    assert 0.15 < wide[0] < narrow[0] < 0.5 < narrow[1] < wide[1] < 0.85
    assert betting.share_bounds(0, 20)[0] == 0.0
    assert betting.share_bounds(20, 20)[1] == 1.0
    low, high = betting.share_bounds(3, 20)
    assert betting.share_bounds(17, 20) == pytest.approx((1 - high, 1 - low), abs=1e-12)
    for successes, trials in ((-1, 5), (6, 5), (0, 0)):
        with pytest.raises(EvaluationError):
            betting.share_bounds(successes, trials)


bounded = st.lists(st.floats(-1, 1), min_size=1, max_size=60)


@settings(max_examples=60, deadline=None)
@given(bounded, st.randoms())
def test_wealth_does_not_depend_on_the_order(values, random):
    shuffled = values.copy()
    random.shuffle(shuffled)
    assert log_wealth(shuffled)[-1] == pytest.approx(log_wealth(values)[-1], abs=1e-9)


@settings(max_examples=60, deadline=None)
@given(bounded, st.floats(0.01, 0.4))
def test_bound_is_where_the_test_stops_rejecting(values, alpha):
    bound = lower_bound(values, alpha)
    assert -1 <= bound <= np.mean(values) + 1e-9
    if bound > -1:
        assert log_wealth(values, min(bound + 1e-6, 0.999999))[-1] < -math.log(alpha)
    assert lower_bound(values, alpha / 2) <= bound + 1e-12


@settings(max_examples=30, deadline=None)
@given(bounded)
def test_sequence_holds_the_average_at_every_time_and_is_the_test_inverted(values):
    lower, upper = confidence_sequence(values, 0.05)
    means = np.cumsum(values) / np.arange(1, len(values) + 1)
    assert (lower <= means + 1e-9).all()
    assert (means - 1e-9 <= upper).all()
    assert lower[-1] == lower_bound(values, 0.05)
    for units in range(1, len(values)):
        # On the grid of 401 points, rounded outwards.
        refined = lower_bound(values[:units], 0.05)
        assert lower[units - 1] <= refined + 1e-9
        assert refined - lower[units - 1] <= 2 / 400 + 1e-9
    mirrored = confidence_sequence([-v for v in values], 0.05)
    np.testing.assert_allclose(mirrored[0], -upper, atol=1e-12)


@pytest.mark.parametrize("block", [1, 4])
def test_a_long_sequence_in_parts_of_the_grid_is_the_same_as_at_once(block, monkeypatch):
    """With thousands of units memory stays bounded, and the numbers are the same."""
    d = paired_clears(np.random.default_rng(3), 1, 1_200, 0.3, 0.6)[0]
    parts = confidence_sequence(d, 0.05, block=block)
    monkeypatch.setattr(betting, "_GRID_CELLS", d.size * 401)
    at_once = confidence_sequence(d, 0.05, block=block)
    np.testing.assert_array_equal(parts, at_once)
    tracemalloc.start()
    confidence_sequence(d, 0.05, block=block)
    _, much = tracemalloc.get_traced_memory()
    monkeypatch.undo()
    tracemalloc.reset_peak()
    confidence_sequence(d, 0.05, block=block)
    _, little = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert little < 0.5 * much


def test_nonsense_is_refused():
    with pytest.raises(EvaluationError):
        log_wealth([1.5])
    with pytest.raises(EvaluationError):
        log_wealth([float("nan")])
    with pytest.raises(EvaluationError):
        EProcess(1.0)
    with pytest.raises(EvaluationError):
        confidence_sequence([0.1, 0.2, 0.3], 0.05, block=2)
