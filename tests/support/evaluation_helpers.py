"""Records and pairs made by hand for the evaluation tests."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

from mario.evaluation.protocol import play_units
from mario.evaluation.records import EpisodeRecord, PairedUnit
from mario.policy.policy import Policy


def evaluate_units(
    policy: Policy, units: Sequence[tuple[str, int]], **more: Any
) -> tuple[EpisodeRecord, ...]:
    """Play units under the protocol, and return their records in the order of `units`."""
    records = {each.unit: each for each in play_units(policy, units, **more)}
    return tuple(records[unit] for unit in units)


def record(policy: str = "a" * 64, level: str = "1-1", seed: int = 1, **changes) -> EpisodeRecord:
    """A plausible failed episode, or a cleared one with `cleared=True`."""
    cleared = changes.get("cleared", False)
    trajectory = hashlib.sha256(f"{policy}{level}{seed}".encode()).hexdigest()
    values = {
        "furthest_px": 3161 if cleared else 800,
        "level_length_px": 3161,
        "score_points": 400,
        "coins": 1,
        "time_left": 300,
        "time_start": 400,
        "status": 0,
        "steps": 100,
        "shaped_return": 12.5,
        "action_counts": (60, 30, 10),
        "trajectory_hash": trajectory,
        "end_reason": "flag" if cleared else "death",
        "cleared": cleared,
    }
    values.update(changes)
    return EpisodeRecord(policy_digest=policy, level=level, seed=seed, **values)


def clear_pairs(outcomes: Sequence[tuple[int, int]], level: str = "1-1") -> list[PairedUnit]:
    """Pairs from (challenger cleared, champion cleared)."""
    return [
        PairedUnit(
            record("a" * 64, level, seed, cleared=bool(c)),
            record("b" * 64, level, seed, cleared=bool(h)),
        )
        for seed, (c, h) in enumerate(outcomes)
    ]


def progress_pairs(
    challenger_px: Sequence[int], champion_px: Sequence[int], level: str = "1-1"
) -> list[PairedUnit]:
    """Pairs of failed episodes from furthest positions in px."""
    return [
        PairedUnit(
            record("a" * 64, level, seed, furthest_px=c),
            record("b" * 64, level, seed, furthest_px=h),
        )
        for seed, (c, h) in enumerate(zip(challenger_px, champion_px, strict=True))
    ]
