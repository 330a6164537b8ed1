"""Records of evaluation episodes: frozen, versioned, and checked when they are read.

The fields are those of `mario-eval-v1`, item 5, with level, seed, protocol version and the digest
of the policy that played. The episode score (item 6) is a property computed from these fields;
reading a record recomputes it and refuses a file with another number.

Example:
    >>> record = EpisodeRecord(policy_digest="ab" * 32, level="1-1", seed=7, cleared=False,
    ...     furthest_px=1264, level_length_px=3160, score_points=200, coins=1, time_left=350,
    ...     time_start=400, status=0, steps=180, shaped_return=9.5, action_counts=(100, 80),
    ...     trajectory_hash="cd" * 32, end_reason="death")
    >>> record.episode_score
    0.2
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal, get_args

from mario.config.evaluation import PROTOCOL
from mario.config.levels import LEVEL_NAMES
from mario.errors import EvaluationError

RECORD_VERSION = 1

#: How a record spells the game's `EndReason`.
RecordedEnd = Literal["flag", "death", "clock", "steps"]
RECORDED_ENDS: tuple[str, ...] = get_args(RecordedEnd)

# The score is a ratio of small integers, so a recomputed value differs by rounding at most.
_SCORE_TOLERANCE = 1e-9


def episode_score(
    *, cleared: bool, furthest_px: int, level_length_px: int, time_left: int, time_start: int
) -> float:
    """Score of one episode in [0, 1] (`mario-eval-v1`, item 6).

    Not cleared: half the share of the level that was covered. Cleared: one half plus half the
    share of the game's clock that was left. Both shares are clipped to [0, 1], so every failure
    scores at most every success.

    Args:
        cleared: whether the episode ended at the flag (or the axe).
        furthest_px: greatest x reached, in pixels.
        level_length_px: x of the level's end, in pixels, > 0.
        time_left: the game's clock at the end, in its own ticks.
        time_start: the game's clock at the level's first controllable frame, in its own ticks, > 0.

    Returns:
        The score, a float in [0, 1].

    Raises:
        EvaluationError: length or start time not positive.
    """
    if level_length_px <= 0 or time_start <= 0:
        raise EvaluationError(
            f"got level_length_px={level_length_px}, time_start={time_start}; expected both > 0; "
            "record the level's length and the clock at its first controllable frame"
        )
    if cleared:
        return 0.5 + 0.5 * min(max(time_left / time_start, 0.0), 1.0)
    return 0.5 * min(max(furthest_px / level_length_px, 0.0), 1.0)


@dataclass(frozen=True, slots=True)
class EpisodeRecord:
    """One episode of one policy on one unit (level, seed).

    Attributes:
        policy_digest: SHA-256 of the artefact's `policy.json` (ADR 3), or a name like
            `random:SIMPLE`.
        level: `"1-1"` … `"8-4"`.
        seed: the unit's seed, 0 ≤ seed < 2**64 (see `seeds.py`).
        cleared: the episode ended at the flag.
        furthest_px: greatest x reached, ≥ 0.
        level_length_px: x of the level's end, > 0.
        score_points: the game's own score.
        coins: coins at the end, ≥ 0.
        time_left: the game's clock at the end, in its ticks, ≥ 0.
        time_start: the clock at the first controllable frame, in its ticks, > 0.
        status: 0 small, 1 tall, 2 fireball.
        steps: decisions taken (4 frames each), ≥ 0.
        shaped_return: sum of the shaped reward over the episode, finite.
        action_counts: how often each action index was chosen; sums to `steps`.
        trajectory_hash: hash of the trajectory (hex).
        end_reason: `flag`, `death`, `clock` or `steps`.
        protocol: version of the protocol that was followed.
        record_version: version of this record's layout.
    """

    policy_digest: str
    level: str
    seed: int
    cleared: bool
    furthest_px: int
    level_length_px: int
    score_points: int
    coins: int
    time_left: int
    time_start: int
    status: int
    steps: int
    shaped_return: float
    action_counts: tuple[int, ...]
    trajectory_hash: str
    end_reason: RecordedEnd
    protocol: str = PROTOCOL
    record_version: int = RECORD_VERSION

    def __post_init__(self) -> None:
        problems = [
            f"{name}={value!r} ({expected})"
            for name, value, ok, expected in (
                ("policy_digest", self.policy_digest, bool(self.policy_digest), "not empty"),
                ("level", self.level, self.level in LEVEL_NAMES, "1-1 … 8-4"),
                ("seed", self.seed, 0 <= self.seed < 2**64, "0 … 2**64-1"),
                ("furthest_px", self.furthest_px, self.furthest_px >= 0, "≥ 0"),
                ("level_length_px", self.level_length_px, self.level_length_px > 0, "> 0"),
                ("coins", self.coins, self.coins >= 0, "≥ 0"),
                ("time_left", self.time_left, self.time_left >= 0, "≥ 0"),
                ("time_start", self.time_start, self.time_start > 0, "> 0"),
                ("status", self.status, 0 <= self.status <= 2, "0, 1 or 2"),
                ("steps", self.steps, self.steps >= 0, "≥ 0"),
                ("shaped_return", self.shaped_return, math.isfinite(self.shaped_return), "finite"),
                (
                    "action_counts",
                    self.action_counts,
                    all(c >= 0 for c in self.action_counts)
                    and sum(self.action_counts) == self.steps,
                    f"not negative, sum = steps = {self.steps}",
                ),
                ("trajectory_hash", self.trajectory_hash, bool(self.trajectory_hash), "not empty"),
                (
                    "end_reason",
                    self.end_reason,
                    self.end_reason in RECORDED_ENDS,
                    str(RECORDED_ENDS),
                ),
                (
                    "cleared",
                    self.cleared,
                    self.cleared == (self.end_reason == "flag"),
                    "true exactly when end_reason is flag",
                ),
                (
                    "record_version",
                    self.record_version,
                    self.record_version == RECORD_VERSION,
                    str(RECORD_VERSION),
                ),
            )
            if not ok
        ]
        if problems:
            raise EvaluationError(
                "episode record with impossible values: "
                + "; ".join(f"got {p.replace(' (', ', expected ', 1)[:-1]}" for p in problems)
                + "; correct the runner or the file"
            )

    @property
    def unit(self) -> tuple[str, int]:
        """The identity of the episode within a policy's evaluation: (level, seed)."""
        return (self.level, self.seed)

    @property
    def episode_score(self) -> float:
        """Score in [0, 1], item 6 of the protocol; see `episode_score`."""
        return episode_score(
            cleared=self.cleared,
            furthest_px=self.furthest_px,
            level_length_px=self.level_length_px,
            time_left=self.time_left,
            time_start=self.time_start,
        )

    @property
    def progress(self) -> float:
        """Share of the level covered in [0, 1]; 1 when cleared."""
        return 1.0 if self.cleared else min(self.furthest_px / self.level_length_px, 1.0)

    def to_dict(self) -> dict[str, Any]:
        """Convert to plain JSON types, with the `episode_score`."""
        data = asdict(self)
        data["action_counts"] = list(self.action_counts)
        data["episode_score"] = self.episode_score
        return data

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> EpisodeRecord:
        """Read the form of `to_dict` back and check its score.

        Raises:
            EvaluationError: unknown or missing fields, impossible values, or an `episode_score`
                that differs from the one computed from its fields.
        """
        values = dict(data)
        claimed = values.pop("episode_score", None)
        known = {f.name for f in fields(cls)}
        needed = known - {"protocol", "record_version"}
        if set(values) - known or needed - set(values):
            raise EvaluationError(
                f"got an episode record with unknown fields {sorted(set(values) - known)} and "
                f"missing fields {sorted(needed - set(values))}; expected those of record version "
                f"{RECORD_VERSION}; write it with EpisodeRecord.to_dict"
            )
        try:
            values["action_counts"] = tuple(int(c) for c in values["action_counts"])
            record = cls(**values)
        except TypeError as error:
            raise EvaluationError(
                f"got an episode record with a value of the wrong type ({error}); expected the "
                "types of EpisodeRecord; write it with EpisodeRecord.to_dict"
            ) from error
        if claimed is not None and abs(float(claimed) - record.episode_score) > _SCORE_TOLERANCE:
            raise EvaluationError(
                f"got episode_score={claimed} for unit {record.unit}; its fields give "
                f"{record.episode_score}; the file was edited or written by another protocol: "
                "evaluate again"
            )
        return record


@dataclass(frozen=True, slots=True)
class PairedUnit:
    """The same unit played by both policies.

    Raises:
        EvaluationError: the two records are not of the same unit, protocol and level length.
    """

    challenger: EpisodeRecord
    champion: EpisodeRecord

    def __post_init__(self) -> None:
        a, b = self.challenger, self.champion
        if (a.unit, a.protocol, a.level_length_px) != (b.unit, b.protocol, b.level_length_px):
            raise EvaluationError(
                f"got a pair of units {a.unit} ({a.protocol}, {a.level_length_px} px long) and "
                f"{b.unit} ({b.protocol}, {b.level_length_px} px); expected the same level, seed, "
                "protocol and length on both sides; pair with pair_records"
            )

    @property
    def level(self) -> str:
        """Level both policies played."""
        return self.challenger.level

    @property
    def seed(self) -> int:
        """Seed both policies played."""
        return self.challenger.seed

    def difference(self, metric: str) -> float:
        """Challenger minus champion in `metric` (`score`, `clear` or `progress`), in [-1, 1]."""
        return metric_value(self.challenger, metric) - metric_value(self.champion, metric)


def metric_value(record: EpisodeRecord, metric: str) -> float:
    """Value in [0, 1] of one record under `score`, `clear` or `progress`.

    Raises:
        EvaluationError: another metric.
    """
    if metric == "score":
        return record.episode_score
    if metric == "clear":
        return float(record.cleared)
    if metric == "progress":
        return record.progress
    raise EvaluationError(
        f"got metric {metric!r}; expected score, clear or progress; correct `primary` in the rule"
    )


def pair_records(
    challenger: Iterable[EpisodeRecord],
    champion: Iterable[EpisodeRecord],
    order: Sequence[tuple[str, int]] | None = None,
) -> tuple[PairedUnit, ...]:
    """Join two policies' records on their units.

    Args:
        challenger: one record per unit, any order.
        champion: one record per unit, any order.
        order: the units in order of play; None keeps the challenger's order.

    Returns:
        One pair per unit, in that order.

    Raises:
        EvaluationError: a unit twice on one side, or present on one side only.
    """
    left, right = _by_unit(challenger, "challenger"), _by_unit(champion, "champion")
    units = list(left) if order is None else list(order)
    missing = [u for u in units if u not in left or u not in right]
    if missing or (order is None and len(left) != len(right)):
        raise EvaluationError(
            f"got {len(left)} challenger and {len(right)} champion units, of which "
            f"{len(missing)} are not on both sides (first: {missing[:1]}); expected every unit "
            "played by both; let the evaluation finish"
        )
    return tuple(PairedUnit(left[u], right[u]) for u in units)


def _by_unit(records: Iterable[EpisodeRecord], side: str) -> dict[tuple[str, int], EpisodeRecord]:
    found: dict[tuple[str, int], EpisodeRecord] = {}
    for record in records:
        if record.unit in found:
            raise EvaluationError(
                f"got unit {record.unit} twice among the {side}'s records; expected once; "
                "remove the copy"
            )
        found[record.unit] = record
    return found


def write_jsonl(path: str | os.PathLike[str], records: Iterable[EpisodeRecord]) -> None:
    """Write one JSON object a line, aside first and renamed when complete."""
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    aside = target.with_name(target.name + ".part")
    with aside.open("w", encoding="utf-8") as file:
        for record in records:
            file.write(json.dumps(record.to_dict(), sort_keys=True) + "\n")
    aside.replace(target)
