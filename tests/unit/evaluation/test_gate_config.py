"""The gate's section of a configuration is the gate's rule; a test's name gives it its units."""

from __future__ import annotations

import dataclasses
from dataclasses import asdict

import pytest

from mario.config.gate import GateConfig
from mario.evaluation.rule import GateRule
from mario.evaluation.seeds import schedule
from mario.jobs.evaluate import units_of
from mario.jobs.gate import _rounds, key_of_test, rule_from


def test_every_key_of_the_rule_can_be_configured_and_has_the_same_default() -> None:
    expected = asdict(GateRule())
    expected.pop("version")
    assert GateConfig().model_dump() == expected
    assert rule_from(GateConfig()) == GateRule()


def test_every_other_test_is_paid_for_and_plays_other_units() -> None:
    """Else a challenger that was lucky against one champion brings its luck to the next."""
    rule = GateRule(primary="clear")
    first = ("a" * 64, "b" * 64, ("1-1",), rule)
    others = [
        ("c" * 64, *first[1:]),
        (first[0], "c" * 64, *first[2:]),
        (*first[:2], ("1-2",), rule),
        (*first[:3], dataclasses.replace(rule, delta=0.11)),
        (*first[:3], dataclasses.replace(rule, primary="score")),
    ]
    assert key_of_test(*first) == key_of_test(*first[:3], GateRule(primary="clear"))
    keys = {key_of_test(*test) for test in (first, *others)}
    assert len(keys) == len(others) + 1
    played = [unit for key in keys for unit in units_of(("1-1", "1-2"), "confirmation", key, 200)]
    assert len(set(played)) == 200 * len(keys)


def test_another_protocol_is_another_test(monkeypatch: pytest.MonkeyPatch) -> None:
    test = ("a" * 64, "b" * 64, ("1-1",), GateRule(primary="clear"))
    before = key_of_test(*test)
    monkeypatch.setattr("mario.jobs.gate.PROTOCOL", "mario-eval-v2")
    assert key_of_test(*test) != before


def test_rounds_grow_with_the_test_and_hold_every_block_once() -> None:
    """Little is played for nothing when the test stops; a long test has few rounds."""
    for levels, cap in ((("1-1",), 2_000), (("1-1", "1-2"), 600)):
        blocks = list(schedule(levels, "confirmation", key="a" * 64, units=cap))
        rounds = list(_rounds(iter(blocks), 8))
        assert [unit for each in rounds for unit in each] == [unit for b in blocks for unit in b]
        played = 0
        for each in rounds:
            assert len(each) % len(levels) == 0
            assert len(each) <= max(8, played / 8)
            played += len(each)
        assert [len(each) for each in rounds[:8]] == [8] * 8
    assert len(rounds) < 35
