"""The gate: decisions, guards, serialisation, and properties that must always hold."""

from __future__ import annotations

import dataclasses
import json
import math

import jsonschema
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mario.config.gate import GateRule
from mario.config.levels import LEVEL_NAMES
from mario.errors import ConfigError, EvaluationError
from mario.evaluation.gate import SequentialGate, decide
from mario.evaluation.guards.contract import Answers, CallTimes
from mario.evaluation.guards.levels import guard as levels_guard
from mario.evaluation.guards.levels import level_results
from mario.evaluation.records import PairedUnit
from mario.evaluation.verdict import VERDICT_SCHEMA, GuardResult, Verdict
from tests.support.evaluation_helpers import clear_pairs, progress_pairs, record

CLEAR = GateRule(primary="clear")


def swap(pairs):
    return [PairedUnit(challenger=p.champion, champion=p.challenger) for p in pairs]


def test_clear_winner_is_promoted_at_the_first_crossing():
    pairs = clear_pairs([(1, 0)] * 60)
    verdict = decide(pairs, CLEAR)
    assert verdict.decision == "promote"
    assert verdict.units < verdict.units_given == 60
    assert verdict.e_better >= 20 > math.exp(verdict.path[-2].log_e_better)
    assert verdict.p_value == pytest.approx(1 / verdict.e_better)
    assert verdict.effect.lower > 0
    assert verdict.effects["score"].mean > 0


def test_collapsed_challenger_is_rejected_quickly():
    verdict = decide(clear_pairs([(0, 1)] * 60), CLEAR)
    assert verdict.decision == "reject"
    assert verdict.units <= 10
    assert "better in clear by 0.1 or more" in verdict.reasons[0]


def test_equal_policies_are_not_promoted_and_end_at_the_cap():
    pairs = clear_pairs([(1, 0), (0, 1)] * 20)
    verdict = decide(pairs, CLEAR.model_copy(update={"max_units": 40, "beta": 0.001}))
    assert verdict.decision == "inconclusive"
    assert "cap of 40" in verdict.reasons[0]


def test_units_that_end_early_are_inconclusive():
    verdict = decide(clear_pairs([(1, 0)]), CLEAR)
    assert verdict.decision == "inconclusive"
    assert "units ended at 1" in verdict.reasons[0]


def test_policy_that_goes_half_as_far_again_is_promoted_within_60_units():
    generator = np.random.default_rng(3)
    champion = generator.gamma(6.0, 100.0, 60).astype(int)
    challenger = generator.gamma(6.0, 150.0, 60).astype(int)
    rule = GateRule(primary="progress", max_units=60)
    verdict = decide(progress_pairs(challenger, champion), rule)
    assert verdict.decision == "promote", verdict.reasons
    assert verdict.p_permutation < 0.01


def test_block_of_levels_decides_at_its_end_only_and_in_any_order():
    rows = [clear_pairs([(1, 0)] * 12, level) for level in ("1-1", "1-2", "1-3")]
    blocks = [p for block in zip(*rows, strict=True) for p in block]
    levels = ("1-1", "1-2", "1-3")
    verdict = decide(blocks, CLEAR, levels)
    assert verdict.units % 3 == 0
    other = [p for i in range(0, len(blocks), 3) for p in reversed(blocks[i : i + 3])]
    assert decide(other, CLEAR, levels).path == verdict.path


def test_one_collapsed_level_refuses_a_promotion():
    won = {level: clear_pairs([(1, 0)] * 20, level) for level in ("1-1", "1-2", "1-3", "1-4")}
    lost = clear_pairs([(0, 1)] * 20, "2-1")
    pairs = [p for block in zip(*won.values(), lost, strict=True) for p in block]
    verdict = decide(pairs, GateRule(primary="clear", min_units=60))
    assert verdict.test_decision == "promote"
    assert verdict.decision == "reject"
    assert "significantly worse on 2-1" in verdict.reasons[0]
    assert [r.level for r in verdict.level_results if r.p_holm <= 0.05] == ["2-1"]


def test_copied_trajectories_refuse_a_promotion():
    pairs = [
        PairedUnit(dataclasses.replace(p.challenger, trajectory_hash="ee"), p.champion)
        for p in clear_pairs([(1, 0)] * 30)
    ]
    verdict = decide(pairs, CLEAR)
    assert verdict.test_decision == "promote"
    assert verdict.decision == "reject"
    assert any("repeat an earlier trajectory" in r for r in verdict.reasons)


def test_single_action_refuses_a_promotion():
    pairs = [
        PairedUnit(dataclasses.replace(p.challenger, action_counts=(0, 100, 0)), p.champion)
        for p in clear_pairs([(1, 0)] * 30)
    ]
    verdict = decide(pairs, CLEAR)
    assert (verdict.test_decision, verdict.decision) == ("promote", "reject")
    assert any("action_distribution" in r for r in verdict.reasons)


def test_exact_bound_needs_59_of_59():
    rule = GateRule(primary="clear", clear_rate_at_least=0.95)
    verdict = decide(clear_pairs([(1, 0)] * 70), rule)
    assert verdict.decision == "promote"
    assert verdict.units == 59
    once = decide(clear_pairs([(1, 0)] * 20 + [(0, 0)] + [(1, 0)] * 49), rule)
    assert once.decision == "reject"
    assert once.units == 21
    assert "can no longer be proven" in once.reasons[0]


LOGITS = np.zeros((4, 3))
OTHER_LOGITS = LOGITS.copy()
OTHER_LOGITS[2, 1] = 1e-3
QUICK = ([0.001, 0.002], [0.001, 0.002])


@dataclasses.dataclass
class FakeNetworks:
    """Measurements made by hand."""

    onnx: np.ndarray = dataclasses.field(default_factory=lambda: LOGITS)
    torch: np.ndarray = dataclasses.field(default_factory=lambda: LOGITS)
    seconds: tuple[list[float], list[float]] | None = QUICK

    def answers(self):
        return Answers(self.onnx, self.torch)

    def call_times(self):
        return self.seconds and CallTimes(*map(np.array, self.seconds))


def test_a_guard_on_the_networks_refuses_a_promotion():
    pairs = clear_pairs([(1, 0)] * 30)
    for networks, name in (
        (FakeNetworks(torch=OTHER_LOGITS), "onnx_agreement"),
        (FakeNetworks(onnx=LOGITS * np.nan), "onnx_agreement"),
        (FakeNetworks(seconds=([0.004, 0.005], [0.001, 0.002])), "inference_latency"),
    ):
        verdict = decide(pairs, CLEAR, networks=networks)
        failed = [guard.name for guard in verdict.guards if not guard.passed]
        assert (verdict.test_decision, verdict.decision, failed) == ("promote", "reject", [name])
    assert decide(pairs, CLEAR, networks=FakeNetworks()).promoted
    alone = decide(pairs, CLEAR, networks=FakeNetworks(seconds=None))
    assert alone.guards[-1].name == "onnx_agreement"


def test_a_timed_guard_keeps_its_first_measurement():
    slow = GuardResult("inference_latency", False, 3.0, 2.0, "measured before")
    verdict = decide(clear_pairs([(1, 0)] * 30), CLEAR, networks=FakeNetworks(), measured=[slow])
    assert (verdict.decision, verdict.guards[-1]) == ("reject", slow)


@pytest.mark.parametrize(
    ("networks", "words"),
    [
        (FakeNetworks(torch=LOGITS[:2]), "shapes"),
        (FakeNetworks(LOGITS[:0], LOGITS[:0]), "shapes"),
        (FakeNetworks(seconds=([], [0.001])), "call times"),
        (FakeNetworks(seconds=([0.0], [0.001])), "call times"),
    ],
)
def test_measurements_that_compare_nothing_are_errors(networks, words):
    with pytest.raises(EvaluationError, match=words):
        decide(clear_pairs([(1, 0)] * 30), CLEAR, networks=networks)


def test_verdict_round_trips_through_json_and_its_schema():
    verdict = decide(clear_pairs([(1, 0), (0, 1), (1, 1)] * 10), CLEAR)
    text = json.dumps(verdict.to_dict(), allow_nan=False)
    jsonschema.Draft202012Validator(VERDICT_SCHEMA).validate(json.loads(text))
    assert Verdict.from_dict(json.loads(text)) == verdict
    broken = json.loads(text)
    del broken["p_value"]
    with pytest.raises(EvaluationError):
        Verdict.from_dict(broken)
    with pytest.raises(EvaluationError):
        Verdict.from_dict({**json.loads(text), "version": "other"})


def test_a_verdict_of_before_the_clear_rates_confidence_sequence_is_read():
    """Stored verdicts stay readable, valid under the schema, and equal to the same test's now."""
    verdict = decide(clear_pairs([(1, 0), (0, 1), (1, 1)] * 10), CLEAR)
    old = verdict.to_dict()
    for side in ("challenger", "champion"):
        for end in ("clear_low_anytime", "clear_high_anytime"):
            del old[side][end]
    jsonschema.Draft202012Validator(VERDICT_SCHEMA).validate(old)
    assert Verdict.from_dict(old) == verdict
    ends = VERDICT_SCHEMA["properties"]["champion"]["properties"]
    assert "as if the number of units had been fixed" in ends["clear_low"]["description"]
    assert "whenever the test stopped" in ends["clear_low_anytime"]["description"]


def test_a_verdict_says_that_no_network_was_compared():
    """A challenger that is no network has no such guard, and the verdict must not hide that."""
    for outcomes in ([(1, 0)] * 30, [(0, 1)] * 30):
        pairs = clear_pairs(outcomes)
        silent = decide(pairs, CLEAR)
        assert "no guard onnx_agreement was run" in silent.reasons[-1]
        seen = decide(pairs, CLEAR, networks=FakeNetworks())
        assert seen.reasons == silent.reasons[:-1]


def test_same_records_same_verdict():
    pairs = clear_pairs([(1, 0), (0, 1), (1, 1)] * 10)
    assert decide(pairs, CLEAR) == decide(pairs, CLEAR)


@pytest.mark.parametrize(
    "change",
    [
        {"primary": "speed"}, {"alpha": 0}, {"alpha": 1}, {"alpha": "0.05"}, {"beta": -0.1},
        {"delta": 0.0}, {"max_units": 0}, {"max_units": 2.5}, {"min_units": 2_500},
        {"clear_rate_at_least": 1.0}, {"clear_rate_at_least": 0.9, "max_units": 20},
        {"level_margin": 1.0}, {"max_duplicate_share": 2}, {"alpha": True}, {"colour": "red"},
        {"alpha": float("nan")}, {"version": "mario-gate-v0"},
    ],
)  # fmt: skip
def test_impossible_rules_are_refused(change):
    with pytest.raises(ConfigError, match=r"demo\.yaml"):
        GateRule.from_dict(change, "demo.yaml: gate")


def test_a_rule_says_itself_in_a_line():
    assert GateRule().in_words == (
        "score, smallest effect 0.03, alpha 0.05, beta 0.1, at most 2000 units"
    )
    demo = GateRule(primary="progress", min_units=60, max_units=120, clear_rate_at_least=0.9)
    assert demo.in_words == (
        "progress, smallest effect 0.05, alpha 0.05, beta 0.1, 60 to 120 units, clear rate proven "
        "to be at least 0.9"
    )


def test_rule_round_trips():
    rule = GateRule(primary="progress", delta=0.07, clear_rate_at_least=0.9)
    assert GateRule.from_dict(json.loads(json.dumps(rule.to_dict())), "test") == rule
    assert rule.smallest_effect == 0.07
    assert GateRule(primary="clear").smallest_effect == 0.10


def test_broken_blocks_and_mixed_policies_are_refused():
    pairs = clear_pairs([(1, 0)] * 4)
    with pytest.raises(EvaluationError, match="blocks of 2"):
        SequentialGate(CLEAR, ("1-1", "1-2")).feed(pairs[:3])
    with pytest.raises(EvaluationError, match="each of"):
        SequentialGate(CLEAR, ("1-1", "1-2")).feed(pairs[:2])
    with pytest.raises(EvaluationError, match="no units"):
        decide([], CLEAR)
    mixed = [*pairs, PairedUnit(record("c" * 64, seed=77), record("b" * 64, seed=77))]
    with pytest.raises(EvaluationError, match="2 policies"):
        decide(mixed, CLEAR)
    with pytest.raises(EvaluationError, match="whole blocks"):
        SequentialGate(GateRule(max_units=3), ("1-1", "1-2", "1-3", "1-4"))


outcomes = st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=40)
positions = st.lists(st.tuples(st.integers(0, 3161), st.integers(0, 3161)), min_size=1, max_size=40)


@settings(max_examples=25, deadline=None)
@given(positions, st.sampled_from(["score", "progress"]))
def test_swapping_the_policies_flips_the_sign(pixels, primary):
    pairs = progress_pairs(*zip(*pixels, strict=True))
    rule = GateRule(primary=primary, alpha=1e-9, beta=1e-9)  # never stops early
    one, other = decide(pairs, rule), decide(swap(pairs), rule)
    assert other.effect.mean == -one.effect.mean
    assert other.effect.lower == pytest.approx(-one.effect.upper, abs=1e-12)
    assert other.effect.upper == pytest.approx(-one.effect.lower, abs=1e-12)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(*[st.booleans()] * 8), min_size=1, max_size=10), st.randoms())
def test_order_within_a_block_does_not_matter(rows, random):
    levels = ("1-1", "1-2", "1-3", "1-4")
    blocks = []
    for seed, row in enumerate(rows):
        blocks.append(
            [
                PairedUnit(
                    record("a" * 64, level, seed, cleared=row[i]),
                    record("b" * 64, level, seed, cleared=row[4 + i]),
                )
                for i, level in enumerate(levels)
            ]
        )
    straight = decide([p for b in blocks for p in b], GateRule(primary="score"), levels)
    for block in blocks:
        random.shuffle(block)
    shuffled = decide([p for b in blocks for p in b], GateRule(primary="score"), levels)
    assert shuffled.path == straight.path
    assert shuffled.decision == straight.decision
    assert shuffled.level_results == straight.level_results


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(*[st.integers(0, 3161)] * 8), min_size=7, max_size=12),
    st.sampled_from(["score", "progress", "clear"]),
    st.booleans(),
    st.randoms(),
)
def test_no_number_of_a_verdict_depends_on_the_order_within_a_block(rows, primary, bound, random):
    """The clear rate's 10 units end within a block of 4, and averages are sums of floats."""
    levels = ("1-1", "1-2", "1-3", "1-4")
    blocks = [
        [
            PairedUnit(
                record("a" * 64, level, seed, furthest_px=row[i], cleared=row[i] > 1_000),
                record("b" * 64, level, seed, furthest_px=row[4 + i], cleared=row[4 + i] > 2_000),
            )
            for i, level in enumerate(levels)
        ]
        for seed, row in enumerate(rows)
    ]
    rule = GateRule(
        primary=primary,
        alpha=0.5,
        clear_rate_at_least=0.3 if bound else None,
        clear_units=10,
    )
    straight = decide([p for b in blocks for p in b], rule, levels)
    for block in blocks:
        random.shuffle(block)
    shuffled = [p for b in blocks for p in b]
    assert decide(shuffled, rule, levels) == straight
    assert decide(shuffled, rule) == straight


def test_a_clear_rate_is_proven_on_whole_blocks():
    levels = ("1-1", "1-2", "1-3")
    rows = [clear_pairs([(1, 0)] * 10, level) for level in levels]
    pairs = [p for block in zip(*rows, strict=True) for p in block]
    rule = GateRule(primary="clear", clear_rate_at_least=0.5, clear_units=16)
    verdict = decide(pairs, rule, levels)
    assert (verdict.decision, verdict.units) == ("promote", 18)
    (guard,) = [guard for guard in verdict.guards if guard.name == "clear_rate"]
    assert "18 of the first 18 units" in guard.detail
    with pytest.raises(EvaluationError, match="at least 18"):
        SequentialGate(rule.model_copy(update={"max_units": 17}), levels)


@settings(max_examples=25, deadline=None)
@given(outcomes, st.booleans(), st.integers(1, 30))
def test_adding_tied_units_never_promotes(rows, both, ties):
    pairs = clear_pairs(rows)
    tied = clear_pairs([*rows, *[(both, both)] * ties])
    before, after = decide(pairs, CLEAR), decide(tied, CLEAR)
    if not before.promoted:
        assert not after.promoted
    assert after.e_better == before.e_better


@settings(max_examples=50, deadline=None)
@given(positions, st.data(), st.sampled_from(["score", "progress"]))
def test_a_tied_unit_anywhere_never_promotes(pixels, data, primary):
    rule = GateRule(primary=primary, alpha=0.5)
    ties = [(p, p) for p in data.draw(st.lists(st.integers(0, 3161), min_size=1, max_size=20))]
    place = data.draw(st.integers(0, len(pixels)))
    tied = [*pixels[:place], *ties, *pixels[place:]]
    before, after = (
        decide(progress_pairs(*zip(*rows, strict=True)), rule) for rows in (pixels, tied)
    )
    assert before.promoted or not after.promoted
    # A tie is evidence of futility, so the tied stream stops no later; it never adds to the other.
    assert after.e_better <= before.e_better


@settings(max_examples=25, deadline=None)
@given(outcomes)
def test_promotion_means_the_interval_excludes_zero_and_back(rows):
    verdict = decide(clear_pairs(rows), CLEAR)
    assert (verdict.test_decision == "promote") == (verdict.effect.lower > 0)


@pytest.mark.parametrize(("won", "lost"), [(9, 11), (10, 14), (12, 18)])
def test_evidence_that_is_gone_when_the_wait_ends_promotes_nobody(won, lost):
    """The evidence passes 1/alpha during the wait; at its end the challenger is behind."""
    pairs = clear_pairs([(1, 0)] * won + [(0, 1)] * lost)
    rule = CLEAR.model_copy(update={"min_units": won + lost})
    verdict = decide(pairs, rule)
    assert max(point.log_e_better for point in verdict.path) >= math.log(20)
    assert verdict.effect.mean < 0
    assert verdict.test_decision != "promote", verdict.reasons
    assert verdict.p_value > 0.5
    assert verdict.effect.lower <= verdict.effect.mean <= verdict.effect.upper
    # The same for futility: a bad start that is made up for is not given up.
    back = decide(
        clear_pairs([(0, 1)] * 10 + [(1, 0)] * 14), rule.model_copy(update={"min_units": 24})
    )
    assert max(point.log_e_futility for point in back.path) >= math.log(10)
    assert back.test_decision == "inconclusive"
    assert back.e_futility < 10


def test_evidence_that_is_gone_when_the_clear_rate_is_known_promotes_nobody():
    start = [(1, 0)] * 8 + [(0, 1)] * 12
    rule = GateRule(primary="clear", clear_rate_at_least=0.2, clear_units=40, beta=1e-6)
    verdict = decide(clear_pairs([*start, *[(1, 1)] * 20]), rule)
    assert max(point.log_e_better for point in verdict.path) >= math.log(20)
    assert verdict.test_decision == "inconclusive", verdict.reasons
    assert verdict.p_value > 0.05


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 3161), st.integers(0, 3161)), min_size=4, max_size=60),
    st.integers(1, 40),
    st.sampled_from(["score", "progress", "clear"]),
    st.sampled_from([1, 2]),
    st.sampled_from([0.05, 0.4]),
)
def test_whoever_is_promoted_is_ahead_whenever_the_rule_may_decide(
    pixels, least, primary, levels, alpha
):
    names = ("1-1", "1-2")[:levels]
    rows = [
        PairedUnit(
            record("a" * 64, level, seed, furthest_px=mine, cleared=mine > 1_500),
            record("b" * 64, level, seed, furthest_px=theirs, cleared=theirs > 1_500),
        )
        for seed, (mine, theirs) in enumerate(pixels)
        for level in names
    ]
    rule = GateRule(primary=primary, min_units=least, alpha=alpha)
    verdict = decide(rows, rule, names)
    effect = verdict.effect
    assert effect.lower <= effect.mean + 1e-9
    assert effect.mean - 1e-9 <= effect.upper
    assert all(p.lower <= p.mean + 1e-9 and p.mean - 1e-9 <= p.upper for p in verdict.path)
    promoted = verdict.test_decision == "promote"
    if promoted:
        assert verdict.units >= least
        assert effect.mean > 0
    if verdict.units >= least:
        assert promoted == (effect.lower > 0) == (verdict.p_value <= alpha)
        assert all(p.log_e_better < -math.log(alpha) for p in verdict.path[:-1] if p.units >= least)


def test_level_guard_sees_a_lost_level_among_32_in_12_blocks():
    levels = LEVEL_NAMES
    for primary in ("clear", "score"):
        rule = GateRule(primary=primary, delta=0.01, beta=1e-6)
        blocks = []
        for seed in range(12):
            for level in levels:
                won = (False, True) if level == "5-3" else (True, True)
                blocks.append(
                    PairedUnit(
                        record("a" * 64, level, seed, cleared=won[0]),
                        record("b" * 64, level, seed, cleared=won[1]),
                    )
                )
        verdict = decide(blocks, rule, levels)
        guard = next(g for g in verdict.guards if g.name == "levels")
        assert not guard.passed
        assert "on 5-3" in guard.detail


def test_level_guard_does_not_prove_that_a_level_is_as_good():
    """It is a test of inferiority: a weakened level on few units passes it."""
    pairs = clear_pairs([(1, 1)] * 8 + [(0, 1)] * 4)
    verdict = decide(pairs, GateRule(primary="clear"))
    (level,) = verdict.level_results
    assert (verdict.guards[0].name, verdict.guards[0].passed) == ("levels", True)
    assert level.mean < -0.3 < level.upper
    assert "test of inferiority" in (levels_guard.__doc__ or "")


def test_level_guard_seldom_alarms_on_equal_policies():
    generator = np.random.default_rng(8)
    levels = ("1-1", "1-2", "1-3", "1-4")
    alarms = 0
    for _ in range(60):
        won = generator.random((2, 40, 4)) < 0.6
        pairs = [
            PairedUnit(
                record("a" * 64, level, seed, cleared=bool(won[0, seed, i])),
                record("b" * 64, level, seed, cleared=bool(won[1, seed, i])),
            )
            for seed in range(40)
            for i, level in enumerate(levels)
        ]
        results = level_results(pairs, GateRule(primary="clear"), levels)
        alarms += any(result.p_holm <= 0.05 for result in results)
    # At .05 three are expected; ten have probability .001 then.
    assert alarms < 10
