"""A gate test's identity gives it its units, and they are played in rounds."""

from __future__ import annotations

import pytest

from mario.config.gate import GateRule
from mario.config.identities import identity_of_test
from mario.evaluation.seeds import schedule, units_of
from mario.jobs.gate import _rounds


def test_every_other_test_is_paid_for_and_plays_other_units() -> None:
    """Otherwise a challenger that was lucky on these units would be lucky on them again."""
    rule = GateRule(primary="clear")
    first = ("a" * 64, "b" * 64, ("1-1",), rule)
    others = [
        ("c" * 64, *first[1:]),
        (first[0], "c" * 64, *first[2:]),
        (*first[:2], ("1-2",), rule),
        (*first[:3], rule.model_copy(update={"delta": 0.11})),
        (*first[:3], rule.model_copy(update={"primary": "score"})),
    ]
    assert identity_of_test(*first) == identity_of_test(*first[:3], GateRule(primary="clear"))
    keys = {identity_of_test(*test) for test in (first, *others)}
    assert len(keys) == len(others) + 1
    played = [unit for key in keys for unit in units_of(("1-1", "1-2"), "confirmation", key, 200)]
    assert len(set(played)) == 200 * len(keys)


def test_another_protocol_is_another_test(monkeypatch: pytest.MonkeyPatch) -> None:
    test = ("a" * 64, "b" * 64, ("1-1",), GateRule(primary="clear"))
    before = identity_of_test(*test)
    monkeypatch.setattr("mario.config.identities.PROTOCOL", "mario-eval-v2")
    assert identity_of_test(*test) != before


def test_rounds_grow_with_the_test_and_hold_every_block_once() -> None:
    """Few units are wasted when the test stops, and a long test has few rounds."""
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
