"""The vectorised gate of the benchmark decides and stops like the gate on single streams."""

from __future__ import annotations

import importlib.util
import math
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import binomtest

from mario.config.gate import GateRule
from mario.errors import EvaluationError
from mario.evaluation.betting import PRIOR_BOLD
from mario.evaluation.gate import SequentialGate
from mario.evaluation.guards.levels import level_results
from mario.evaluation.records import PairedUnit
from mario.evaluation.statistics import paired_permutation
from tests.support.evaluation_helpers import clear_pairs, record
from tests.support.paths import ROOT

sys.path.append(str(ROOT / "benchmarks"))
import gate_alternatives
import gate_calibration
import gate_production
import gate_simulation
from gate_floor import floor_units
from gate_pools import better_scores, load_pools, read_jsonl
from gate_simulation import (
    best_bet,
    fastest_bet,
    fixed_units,
    level_guard,
    mcnemar_power,
    paired_clears,
    paired_scores,
    real_pairs,
    run_gate,
    run_sprt,
    unlike_levels,
)


@pytest.mark.parametrize(("champion", "challenger"), [(0.5, 0.5), (0.5, 0.8), (0.8, 0.5)])
def test_vectorised_gate_agrees_with_the_sequential_one(champion, challenger):
    generator = np.random.default_rng(9)
    rule = GateRule(primary="clear", max_units=80)
    mine = generator.random((12, 80)) < challenger
    theirs = generator.random((12, 80)) < champion
    outcome = run_gate(mine.astype(float) - theirs, rule)
    for i in range(12):
        gate = SequentialGate(rule, ("1-1",))
        state = gate.feed(clear_pairs(list(zip(mine[i], theirs[i], strict=True))))
        expected = ("promote" if outcome.promoted[i]
                    else "reject" if outcome.rejected[i] else "inconclusive")  # fmt: skip
        assert (state.decision, state.units) == (expected, outcome.units[i])


@pytest.mark.parametrize(
    ("rule", "levels"),
    [
        (GateRule(primary="score", max_units=120), 1),
        (GateRule(primary="progress", max_units=120, min_units=50), 1),
        (GateRule(primary="clear", max_units=120, min_units=30, alpha=0.3), 4),
    ],
)
def test_every_cell_is_checked_by_the_production_gate(rule, levels):
    """`run_gate` raises when the gate decides a stream of the cell otherwise."""
    generator = np.random.default_rng(4)
    effects = np.array([0.3, -0.1, 0.2, 0.0])[:levels]
    d = unlike_levels(generator, effects, 100, 120)
    outcome = run_gate(d, rule, levels)
    assert outcome.promoted.any()
    assert (outcome.units % levels == 0).all()
    assert outcome.units.min() >= rule.min_units


@pytest.mark.parametrize("fault", ["prior", "boundary", "early"])
def test_a_simulation_that_is_not_the_gate_is_noticed(fault, monkeypatch):
    d = paired_clears(np.random.default_rng(4), 0.5, 0.7, 100, 120)
    rule = GateRule(primary="clear", max_units=120, min_units=40)
    if fault == "prior":
        monkeypatch.setattr(gate_simulation, "prior_for", lambda _: PRIOR_BOLD)
    elif fault == "boundary":
        mixture = gate_simulation.log_mixture
        monkeypatch.setattr(gate_simulation, "log_mixture", lambda *a: mixture(*a) + 0.5)
    else:
        checked = gate_simulation._check_with_the_gate
        monkeypatch.setattr(
            gate_simulation,
            "_check_with_the_gate",
            lambda d, rule, levels, outcome: checked(
                d, rule.model_copy(update={"min_units": 1}), levels, outcome
            ),
        )
    with pytest.raises(EvaluationError, match="as the gate says"):
        run_gate(d, rule)


def test_unlike_levels_average_to_their_effects():
    effects = np.array([0.4, -0.4, 0.2, -0.2])
    d = unlike_levels(np.random.default_rng(5), effects, 500, 403)
    assert d.shape == (500, 400)
    assert d.mean() == pytest.approx(0.0, abs=0.01)
    # Each level once in a block, in any order: the first place is no level's own.
    assert d[:, ::4].mean() == pytest.approx(0.0, abs=0.02)
    blocks = d.reshape(-1, 4)
    # Had every unit a level of its own choice, the sum of a block would spread more.
    assert blocks.sum(axis=1).var() < 0.95 * 4 * d.var()


def mcnemar_exact(wins: int, losses: int) -> float:
    """McNemar's exact test, one-sided: the sign test on discordant pairs."""
    return float(binomtest(wins, wins + losses, alternative="greater").pvalue)


def test_real_pairs_keep_what_a_seed_does_to_both():
    champion = np.array([0.1, 0.5, 0.9])
    d = real_pairs(np.random.default_rng(6), champion, champion + 0.05, 50, 60)
    assert np.allclose(d, 0.05)
    swapped = real_pairs(np.random.default_rng(6), champion, champion + 0.05, 500, 60, swapped=True)
    assert set(np.unique(swapped.round(9))) == {-0.05, 0.05}
    assert swapped.mean() == pytest.approx(0.0, abs=0.002)


def test_on_clears_the_permutation_test_is_mcnemars():
    generator = np.random.default_rng(7)
    for wins, losses, ties in ((9, 2, 5), (12, 9, 0), (3, 3, 20)):
        d = np.repeat([1.0, -1.0, 0.0], [wins, losses, ties])
        permuted = paired_permutation(d, generator, 99_999)
        assert permuted == pytest.approx(mcnemar_exact(wins, losses), abs=0.006)


def test_coupled_draws_keep_their_margins():
    generator = np.random.default_rng(1)
    for coupling in (0.0, 0.5, 1.0):
        d = paired_clears(generator, 0.3, 0.6, 400, 400, coupling)
        assert d.mean() == pytest.approx(0.3, abs=0.01)
    assert d.min() == 0.0  # full coupling: whoever is better never loses a unit
    pool = np.array([0.1, 0.2, 0.9])
    assert paired_scores(generator, pool, pool, 50, 50, 1.0).any() == np.False_
    assert paired_scores(generator, pool, pool + 0.05, 400, 400).mean() == pytest.approx(
        0.05, abs=0.01
    )


def test_mcnemar_power_agrees_with_simulation():
    generator = np.random.default_rng(2)
    d = paired_clears(generator, 0.5, 0.7, 2000, 100)
    wins, losses = (d > 0).sum(axis=1), (d < 0).sum(axis=1)
    simulated = np.mean([mcnemar_exact(int(w), int(x)) <= 0.05
                         for w, x in zip(wins, losses, strict=True)])  # fmt: skip
    assert mcnemar_power(0.35, 0.15, 100, 0.05) == pytest.approx(simulated, abs=0.03)


def test_the_best_growth_of_a_coin_is_its_divergence_from_a_fair_one():
    d = np.repeat([1.0, -1.0], [70, 30])
    expected = math.log(2) + 0.7 * math.log(0.7) + 0.3 * math.log(0.3)
    assert fastest_bet(d) == pytest.approx((0.4, expected), rel=1e-5)
    # Ties slow it down by their share.
    assert fastest_bet(np.append(d, np.zeros(100)))[1] == pytest.approx(expected / 2, rel=1e-6)


def test_the_best_single_bet_is_no_worse_than_one_chosen_beforehand_and_obeys_the_floor():
    d = paired_clears(np.random.default_rng(3), 0.5, 0.7, 400, 1_000)
    told = best_bet(d, 0.05)
    crossed = np.cumsum(np.log1p(0.4 * d), axis=1) >= math.log(20)
    assert crossed.any(axis=1).all()
    assert told["promoted"] == 1.0
    assert told["units_mean"] <= (crossed.argmax(axis=1) + 1).mean()
    # Evidence ends a little above the line: the floor of ln 20 over the growth holds.
    assert told["units_mean"] >= 0.97 * math.log(20) / fastest_bet(d)[1]


def test_walds_test_told_the_truth_is_the_one_on_discordant_pairs():
    d = paired_clears(np.random.default_rng(8), 0.5, 0.7, 300, 600)
    win, lose = 0.35, 0.15
    outcome = run_sprt(d, (win - lose) / (win + lose), 0.05, 0.1)
    step = np.where(d > 0, math.log(0.7 / 0.5), np.where(d < 0, math.log(0.3 / 0.5), 0.0))
    path = np.cumsum(step, axis=1)
    up, down = path >= math.log(0.9 / 0.05), path <= math.log(0.1 / 0.95)
    expected = gate_simulation.Outcome(*gate_simulation.first_crossing(up, down))
    for column in ("promoted", "rejected", "units"):
        np.testing.assert_array_equal(getattr(outcome, column), getattr(expected, column))
    assert outcome.promoted.mean() > 0.87
    # What is told the truth on scores needs fewer units than the gate, which is not.
    pool = load_pools(np.random.default_rng(0))[0]["ppo_0401k"][0]
    scores = paired_scores(np.random.default_rng(1), pool, better_scores(pool), 300, 1_000)
    theta, growth = fastest_bet(scores)
    told = run_sprt(scores, theta, 0.05, 0.1)
    assert 0.85 < told.promoted.mean() < 0.97
    assert told.units.mean() < run_gate(scores, GateRule(primary="score")).units.mean()
    assert told.units.mean() > 0.95 * floor_units(growth, float(told.promoted.mean()), 0.0556)


def test_units_of_the_fixed_test_come_with_their_spread():
    d = paired_clears(np.random.default_rng(9), 0.5, 0.7, 400, 400)
    found = fixed_units(d, 0.9, 1, 3)
    assert found["least"] <= found["units"] <= found["most"]
    assert found["least"] < found["most"] < 1.6 * found["least"]
    # The exact McNemar test, which it is on clears, needs 111.
    assert found["least"] - 15 < 111 < found["most"] + 15
    assert fixed_units(d, 0.9, 1, 3) == found


def scored(policy: str, seed: int, score: float):
    """A record whose episode score is about `score`."""
    if score >= 0.5:
        return record(policy, seed=seed, cleared=True, time_left=round((2 * score - 1) * 400))
    return record(policy, seed=seed, furthest_px=round(2 * score * 3161))


@pytest.mark.parametrize("primary", ["clear", "score"])
def test_the_simulated_level_guard_is_the_productions(primary):
    """Challengers that get further and clear less: the guard may refuse what the test promotes."""
    generator = np.random.default_rng(12)
    won = {"challenger": 0.4, "champion": 0.6}
    rows = []
    for _ in range(40):
        sides = {
            who: np.where(generator.random(60) < rate, generator.uniform(0.6, 0.9, 60),
                          generator.uniform(0.05, 0.45, 60))
            for who, rate in won.items()
        }  # fmt: skip
        rows.append(
            [
                PairedUnit(scored("a" * 64, i, mine), scored("b" * 64, i, theirs))
                for i, (mine, theirs) in enumerate(zip(*sides.values(), strict=True))
            ]
        )
    rule = GateRule(primary=primary, max_units=60)
    metrics = dict.fromkeys((primary, "clear"))
    losses = [np.array([[p.difference(m) for p in pairs] for pairs in rows]) for m in metrics]
    units = generator.integers(5, 61, len(rows))
    everyone = np.ones(len(rows), dtype=bool)
    refused = level_guard(gate_simulation.Outcome(everyone, ~everyone, units), losses, rule, 7)
    said = [
        level_results(pairs[:stop], rule, ("1-1",))[0].p_holm <= rule.level_alpha
        for pairs, stop in zip(rows, units, strict=True)
    ]
    assert refused.tolist() == said
    assert 5 < sum(said) < 35


def test_the_level_guard_takes_about_a_hundredth_of_what_the_test_promotes():
    """Of a gain of .05 between policies that clear, and nothing of a gain in clears."""
    pools, _ = load_pools(np.random.default_rng(0))
    few = {"ppo_0602k": pools["ppo_0602k"]}
    rows = gate_alternatives.after_the_guard(np.random.default_rng(2), few, 2_000)
    by = {row["cell"]: row for row in rows}
    for label in ("α=.05, one test", "challenger 1"):
        row = by[f"+.05, ppo_0602k, {label}"]
        assert 0.005 < row["refused_of_promoted"] < 0.015
        assert row["promoted_after_guard"] == pytest.approx(
            row["promoted"] * (1 - row["refused_of_promoted"])
        )
        for cell in ("0.5→0.7", "0.85→0.95"):
            assert by[f"clears {cell}, {label}"]["refused_of_promoted"] == 0


def test_bold_stakes_reach_the_goal_on_one_pair_and_let_more_spoilt_ones_through():
    pools, real = load_pools(np.random.default_rng(0))
    own, bold = gate_alternatives.bold_on_a_pair(np.random.default_rng(2), real, 3_000)
    assert own["units_ratio"] == pytest.approx(0.86, abs=0.02)
    assert bold["units_ratio"] == pytest.approx(0.75, abs=0.02)
    assert own["promoted"] == bold["promoted"] == 1
    own, bold = gate_alternatives.bold_on_a_spoilt_one(np.random.default_rng(3), pools, 5_000, 6)
    # As the guide says: .0043 for .0018.
    assert (bold["promoted"], own["promoted"]) == pytest.approx((0.0043, 0.0018), abs=1e-4)
    assert own["promoted_high"] < bold["promoted_low"]


def test_a_challenger_on_units_that_chose_it_is_promoted_more_often_than_alpha():
    old, new = gate_alternatives.reused_units(np.random.default_rng(1), 2_000)
    assert old["alpha"] == pytest.approx(0.0219, abs=1e-4)
    assert old["promoted_low"] > 2 * old["alpha"]
    # As the guide says: .07 and .016.
    assert (old["promoted"], new["promoted"]) == pytest.approx((0.07, 0.016), abs=0.002)


def test_what_production_runs_is_among_the_cells():
    """The demo's rule, progress, several levels by score, and the alphas of a stream.

    A smoke test: 30 trials show that the cells are drawn, judged by the right rule and named. What
    the shares are is for the full calibration; the limits here catch only what is upside down.
    """
    rule = gate_production.demo_rule()
    assert (rule.primary, rule.min_units, rule.max_units) == ("progress", 60, 120)
    generator = np.random.default_rng(2)
    pools, real = load_pools(generator)
    few = {name: real[name] for name in ("random", "demo_v1", "ppo_0602k", "ppo_1703k")}
    rows = [
        *gate_production.progress_policies(generator, few, 30, 1),
        *gate_production.score_levels(generator, few, 30, 1),
        *gate_production.score_under_the_account(generator, {"ppo_0602k": pools["ppo_0602k"]}, 30),
    ]
    by = {(row["kind"], row["cell"]): row for row in rows}
    waited = [row for (_, name), row in by.items() if "demo's rule" in name]
    assert len(waited) > 15
    assert all(60 <= row["units_median"] <= 120 for row in waited)
    for kind in ("equal", "worse"):
        assert by[kind, "4 unlike levels by score" if kind == "equal" else
                  "a fifth of episodes halved, 4 levels"]["promoted"] <= 0.2  # fmt: skip
    covered = by["coverage", "progress of demo_v1 against random"]
    assert covered["coverage"] > 0.8
    assert (covered["end_error"], covered["checked_streams"]) == (0.025, 25)
    units = [by["account", f"challenger {k}, +.05, ppo_0602k"]["units_mean"] for k in (1, 3, 10)]
    assert units == sorted(units)


@pytest.mark.parametrize("fault", ["level", "prior", "side"])
def test_a_sequence_that_is_not_the_verdicts_is_noticed(fault, monkeypatch):
    d = paired_clears(np.random.default_rng(4), 0.5, 0.7, 60, 200)
    checked = gate_production._coverage("clears", "clear", d, 0.2)["checked_streams"]
    assert checked == 25
    sequence = gate_production.confidence_sequence

    def other(values, alpha, **more):
        if fault == "level":
            return sequence(values, 2 * alpha, **more)
        if fault == "prior":
            return sequence(values, alpha, **{**more, "prior": PRIOR_BOLD})
        lower, upper = sequence(values, alpha, **more)
        return lower, upper - 0.02

    monkeypatch.setattr(gate_production, "confidence_sequence", other)
    with pytest.raises(EvaluationError, match="mend coverage"):
        gate_production._coverage("clears", "clear", d, 0.2)


def test_unlike_levels_by_score_are_equal_on_average():
    generator = np.random.default_rng(1)
    one, other = np.array([0.1, 0.2]), np.array([0.6, 0.9])
    d = gate_production._unlike_scores(generator, [(one, other), (other, one)], 300)
    assert d.shape == (300, gate_production.CAP)
    assert d.mean() == pytest.approx(0.0, abs=0.005)
    # Each block holds both levels: what the one gains the other loses.
    assert np.abs(d.reshape(300, -1, 2).sum(axis=2)).max() < 0.45 < np.abs(d).min() + 0.1


def test_a_gain_of_5_points_is_found_under_the_rules_own_cap():
    """Between policies that clear .6 of their episodes; under a cap of 400 it is found in .4."""
    pools, _ = load_pools(np.random.default_rng(0))
    pool = pools["ppo_0901k"][0]
    rule = GateRule(primary="score")
    better = better_scores(pool)
    assert better.mean() == pytest.approx(pool.mean() + 0.05, abs=1e-6)
    assert ((better >= 0.5) == (pool >= 0.5)).all()
    d = paired_scores(np.random.default_rng(1), pool, better, 400, rule.max_units)
    outcome = run_gate(d, rule)
    # Of 5,000 trials .945; four standard errors of 400 below.
    assert outcome.promoted.mean() > 0.9
    assert np.median(outcome.units) < 600


def test_a_full_run_without_savvi_says_what_to_install(monkeypatch, capsys):
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "savvi" else found(name)
    )
    monkeypatch.setattr(sys, "argv", ["gate_calibration.py"])
    assert gate_calibration.main() == 2
    assert f"pip install {gate_calibration.SAVVI}" in capsys.readouterr().err


def test_a_file_that_holds_no_records_is_refused(tmp_path: Path) -> None:
    (tmp_path / "cut.jsonl").write_text('{"a": ')
    for path in (tmp_path / "cut.jsonl", tmp_path / "none.jsonl"):
        with pytest.raises(EvaluationError):
            read_jsonl(path)
