"""Episode records and seed families."""

from __future__ import annotations

import dataclasses
import itertools
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mario.errors import EvaluationError
from mario.evaluation import seeds
from mario.evaluation.records import (
    EpisodeRecord,
    PairedUnit,
    episode_score,
    metric_value,
    pair_records,
    write_jsonl,
)
from tests.support.evaluation_helpers import record


def test_score_follows_item_6():
    common = {"level_length_px": 3161, "time_start": 400}
    assert episode_score(cleared=False, furthest_px=3161, time_left=0, **common) == 0.5
    assert episode_score(cleared=False, furthest_px=0, time_left=400, **common) == 0.0
    assert episode_score(cleared=True, furthest_px=3161, time_left=100, **common) == 0.625
    assert episode_score(cleared=False, furthest_px=9999, time_left=1, **common) == 0.5
    with pytest.raises(EvaluationError):
        episode_score(cleared=False, furthest_px=1, level_length_px=0, time_left=1, time_start=400)


@settings(deadline=None)
@given(st.booleans(), st.integers(0, 6000), st.integers(0, 401))
def test_every_clear_scores_at_least_every_failure(cleared, furthest, left):
    value = episode_score(
        cleared=cleared, furthest_px=furthest, level_length_px=3161, time_left=left, time_start=400
    )
    assert (0.5 <= value <= 1) if cleared else (0 <= value <= 0.5)


def test_record_round_trips_and_its_score_is_recomputed(tmp_path):
    one = record(cleared=True)
    assert EpisodeRecord.from_dict(one.to_dict()) == one
    write_jsonl(tmp_path / "deep" / "r.jsonl", [one, record(seed=2**63 - 1)])
    lines = (tmp_path / "deep" / "r.jsonl").read_text().splitlines()
    read = [EpisodeRecord.from_dict(json.loads(line)) for line in lines]
    assert read == [one, record(seed=2**63 - 1)]
    with pytest.raises(EvaluationError, match="evaluate again"):
        EpisodeRecord.from_dict({**one.to_dict(), "episode_score": 0.9})
    with pytest.raises(EvaluationError, match="unknown fields"):
        EpisodeRecord.from_dict({**one.to_dict(), "luck": 1})


@pytest.mark.parametrize(
    "change",
    [
        {"level": "9-1"}, {"seed": -1}, {"seed": 2**64}, {"action_counts": (1, 2, 3)},
        {"end_reason": "bored"}, {"cleared": True}, {"shaped_return": float("nan")},
        {"status": 3}, {"time_start": 0}, {"policy_digest": ""}, {"record_version": 2},
    ],
)  # fmt: skip
def test_impossible_records_are_refused(change):
    with pytest.raises(EvaluationError, match="expected"):
        dataclasses.replace(record(), **change)


def test_pairs_are_joined_on_units_in_the_asked_order():
    left = [record("a", seed=s) for s in (1, 2, 3)]
    right = [record("b", seed=s) for s in (3, 1, 2)]
    pairs = pair_records(left, right, order=[("1-1", 2), ("1-1", 3)])
    assert [p.seed for p in pairs] == [2, 3]
    assert [p.seed for p in pair_records(left, right)] == [1, 2, 3]
    with pytest.raises(EvaluationError, match="twice"):
        pair_records([*left, left[0]], right)
    with pytest.raises(EvaluationError, match="both sides"):
        pair_records(left, right[:2])
    for other in (
        right[0],
        dataclasses.replace(right[1], protocol="mario-eval-v0"),
        dataclasses.replace(right[1], level_length_px=3000),
    ):
        with pytest.raises(EvaluationError, match="same level"):
            PairedUnit(left[0], other)


def test_metrics():
    won, lost = record(cleared=True), record()
    assert metric_value(won, "clear") == metric_value(won, "progress") == 1.0
    assert metric_value(lost, "progress") == 2 * metric_value(lost, "score")
    with pytest.raises(EvaluationError):
        metric_value(won, "beauty")


def test_families_are_disjoint_by_their_bits():
    found = {
        family: {seeds.unit_seed(family, "k", "1-1", i) for i in range(500)}
        for family in seeds.FAMILIES
    }
    assert all(len(s) == 500 for s in found.values())
    for a, b in itertools.combinations(found.values(), 2):
        assert not a & b
    for family, own in found.items():
        assert {s >> 61 for s in own} == {1 + seeds.FAMILIES.index(family)}
        assert all(2**61 <= s < 2**63 for s in own)


def test_confirmation_seeds_come_from_the_challengers_digest():
    one = {seeds.unit_seed("confirmation", "a" * 64, "1-1", i) for i in range(100)}
    assert one == {seeds.unit_seed("confirmation", "a" * 64, "1-1", i) for i in range(100)}
    assert not one & {seeds.unit_seed("confirmation", "b" * 64, "1-1", i) for i in range(100)}
    assert not one & {seeds.unit_seed("confirmation", "a" * 64, "1-2", i) for i in range(100)}
    with pytest.raises(EvaluationError, match="digest"):
        seeds.unit_seed("confirmation", "", "1-1", 0)


def test_seeds_are_part_of_the_protocol_and_must_not_change():
    assert seeds.unit_seed("selection", "", "1-1", 0) == 4533193521742189318
    assert seeds.unit_seed("confirmation", "ab" * 32, "8-4", 7) == 7429683291495164978


def test_schedule_has_each_level_once_a_block_in_random_order():
    levels = ("1-1", "1-2", "1-3", "1-4")
    blocks = list(seeds.schedule(levels, "screening", units=43))
    assert len(blocks) == 10
    assert all(sorted(u.level for u in b) == sorted(levels) for b in blocks)
    assert len({tuple(u.level for u in b) for b in blocks}) > 3
    assert blocks == list(seeds.schedule(levels, "screening", units=43))
    assert len({u for b in blocks for u in b}) == 40
    with pytest.raises(EvaluationError):
        list(seeds.schedule(("1-1", "1-1"), "screening", units=4))
    with pytest.raises(EvaluationError):
        list(seeds.schedule(levels, "screening", units=3))
