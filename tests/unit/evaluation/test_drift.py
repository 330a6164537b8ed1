"""Drift: an unchanged champion raises no alarm; a worse one, or one changed replay, does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from mario.config.gate import GateRule
from mario.errors import EvaluationError
from mario.evaluation.drift import compare_drift
from mario.evaluation.gate import SequentialGate
from mario.evaluation.records import EpisodeRecord, pair_records


def records(
    scores: Sequence[float], *, first_seed: int = 0, level: str = "1-1", policy: str = "p"
) -> list[EpisodeRecord]:
    """Episodes with these scores: up to 0.5 by distance, above it by the clock."""
    made = []
    for index, score in enumerate(scores):
        cleared = score > 0.5
        made.append(
            EpisodeRecord(
                policy_digest=policy,
                level=level,
                seed=first_seed + index,
                cleared=cleared,
                furthest_px=3000 if cleared else round(score * 2 * 3000),
                level_length_px=3000,
                score_points=0,
                coins=0,
                time_left=round((score - 0.5) * 2 * 400) if cleared else 0,
                time_start=400,
                status=0,
                steps=10,
                shaped_return=0.0,
                action_counts=(10,),
                trajectory_hash=f"{first_seed + index:064x}",
                end_reason="flag" if cleared else "death",
            )
        )
    return made


def draw(generator: np.random.Generator, units: int, clear_rate: float) -> list[float]:
    cleared = generator.random(units) < clear_rate
    return list(np.where(cleared, generator.uniform(0.6, 0.9, units),
                         generator.uniform(0.05, 0.45, units)))  # fmt: skip


def test_an_honest_champion_rarely_alarms() -> None:
    generator = np.random.default_rng(0)
    alarms = sum(
        compare_drift(
            records(draw(generator, 60, 0.5)),
            records(draw(generator, 100, 0.5), first_seed=1000),
            alpha=0.05,
        ).drifted
        for _ in range(400)
    )
    # 400 nights at 5%: more than 36 happen by chance less than once in 10,000 times.
    assert alarms <= 36


def test_a_champion_that_got_worse_alarms() -> None:
    generator = np.random.default_rng(1)
    before = records(draw(generator, 100, 0.8))
    drift = compare_drift(before, records(draw(generator, 100, 0.3), first_seed=1000))
    assert drift.drifted
    assert drift.p_value < 0.001
    assert drift.clear_now < drift.clear_before
    assert "1-1" in drift.reasons[0]


def test_one_unit_that_takes_another_course_is_proof() -> None:
    generator = np.random.default_rng(2)
    before = records(draw(generator, 50, 0.5))
    fresh = records(draw(generator, 50, 0.5), first_seed=1000)
    played = records(draw(generator, 4, 0.5), first_seed=2000)
    same = [(record, record) for record in played]
    assert not compare_drift(before, fresh, replayed=same).drifted
    changed = [*same[:3], (played[3], replace(played[3], trajectory_hash="f" * 64))]
    drift = compare_drift(before, fresh, replayed=changed)
    assert drift.drifted
    assert (drift.changed_units, drift.replayed_units) == (1, 4)


def test_policies_that_always_do_the_same_have_no_variance() -> None:
    drift = compare_drift(records([0.25] * 20), records([0.25] * 20, first_seed=1000))
    assert not drift.drifted
    assert drift.p_value == 1.0


@pytest.mark.parametrize(
    ("before", "now", "replayed"),
    [
        ([], records([0.2]), []),
        (records([0.2]), [], []),
        (records([0.2]), records([0.2], first_seed=9, policy="q"), []),
        (records([0.2]), records([0.2], first_seed=9, level="1-2"), []),
        (records([0.2]), records([0.2]), []),
        (
            records([0.2]),
            records([0.2], first_seed=9),
            [(records([0.2], first_seed=70)[0], records([0.2], first_seed=77)[0])],
        ),
        (
            records([0.2]),
            records([0.2], first_seed=9),
            [tuple(records([0.2], first_seed=70, policy="q")) * 2],
        ),
    ],
)
def test_what_cannot_be_compared_is_refused(
    before: list[EpisodeRecord],
    now: list[EpisodeRecord],
    replayed: list[tuple[EpisodeRecord, EpisodeRecord]],
) -> None:
    with pytest.raises(EvaluationError, match="expected"):
        compare_drift(before, now, replayed=replayed)


def test_the_units_of_a_promotion_are_no_baseline() -> None:
    """The gate stops because units go well; compared with them, the same policy seems worse."""
    generator = np.random.default_rng(3)
    rule = GateRule(primary="clear", delta=0.02)
    alarms, gains = {"promotion": 0, "baseline": 0}, []
    while len(gains) < 100:
        champion = records(draw(generator, 100, 0.5), policy="q")
        challenger = records(draw(generator, 100, 0.55))
        pairs = pair_records(challenger, champion)
        gate = SequentialGate(rule, ("1-1",))
        if gate.feed(pairs).decision != "promote":
            continue
        promotion = challenger[: gate.state.units]
        gains.append(np.mean([record.cleared for record in promotion]) - 0.55)
        fresh = records(draw(generator, 400, 0.55), first_seed=1000)
        baseline = records(draw(generator, 100, 0.55), first_seed=5000)
        for name, before in (("promotion", promotion), ("baseline", baseline)):
            alarms[name] += compare_drift(before, fresh, alpha=0.05).drifted
    assert np.mean(gains) > 0.08
    assert alarms["promotion"] > 12, "far more than alpha promises"
    # 100 nights at 5%: more than 13 happen by chance less than once in 1,000 times.
    assert alarms["baseline"] <= 13
    assert alarms["baseline"] < alarms["promotion"]
