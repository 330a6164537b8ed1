"""Drift: test whether a champion still plays as it did when it was promoted. Pure.

The policy and the console are deterministic, so a real difference means that something else
changed: a version of a library, the console, the protocol's code, or a damaged artefact. There are
two tests:

- *Replay.* Some units of the promotion are played again; each must give the same trajectory. One
  that does not proves a change.
- *Fresh units.* New units are compared with a baseline: units whose number was fixed beforehand,
  played after the promotion. The units of the promotion are no baseline: the gate stopped because
  they went well, so the same policy scores lower on any others, and that would look like a loss.
  The two samples are independent, so the tests are Mann and Whitney's on the episode score (ties
  allowed, normal approximation with continuity correction; Mann & Whitney 1947,
  `scipy.stats.mannwhitneyu`) and Fisher's exact test on clears, two-sided, with Holm's correction
  (1979) over the two and over all levels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from mario.errors import EvaluationError
from mario.evaluation.records import EpisodeRecord
from mario.evaluation.statistics import holm


@dataclass(frozen=True)
class Drift:
    """The result of a drift check.

    Attributes:
        drifted: whether to raise an alarm.
        reasons: sentences that say why or why not.
        p_value: smallest corrected p-value of the fresh units, 0 to 1.
        score_before, score_now: mean episode score, 0 to 1.
        clear_before, clear_now: share cleared, 0 to 1.
        units_before, units_now: units of each sample.
        changed_units: replayed units whose trajectory differs.
        replayed_units: units that were replayed.
    """

    drifted: bool
    reasons: tuple[str, ...]
    p_value: float
    score_before: float
    score_now: float
    clear_before: float
    clear_now: float
    units_before: int
    units_now: int
    changed_units: int
    replayed_units: int


def compare_drift(
    before: Sequence[EpisodeRecord],
    now: Sequence[EpisodeRecord],
    *,
    replayed: Sequence[tuple[EpisodeRecord, EpisodeRecord]] = (),
    alpha: float = 0.001,
) -> Drift:
    """Compare fresh units with a baseline, and replayed units with their first trajectories.

    Args:
        before: the baseline: units whose number and choice did not depend on their results.
        now: fresh units of the same policy on the same levels.
        replayed: units as played at the promotion, each with the same unit as played now.
        alpha: chance that the fresh units raise an alarm although nothing changed, in (0, 1).

    Raises:
        EvaluationError: a sample is empty, samples share a unit, the policies or levels differ, or
            a replay is of another unit.
    """
    _check(before, now, replayed)
    levels = sorted({record.level for record in before})
    p_values: list[float] = []
    named: list[str] = []
    for level in levels:
        old = [record for record in before if record.level == level]
        new = [record for record in now if record.level == level]
        scores = ([r.episode_score for r in old], [r.episode_score for r in new])
        p_values.append(_mann_whitney(*scores))
        named.append(f"score on {level}: {np.mean(scores[0]):.3f}, now {np.mean(scores[1]):.3f}")
        clears = (sum(r.cleared for r in old), sum(r.cleared for r in new))
        table = [[clears[0], len(old) - clears[0]], [clears[1], len(new) - clears[1]]]
        p_values.append(float(stats.fisher_exact(table).pvalue))
        named.append(
            f"cleared on {level}: {clears[0]} of {len(old)}, now {clears[1]} of {len(new)}"
        )
    corrected = holm(p_values)
    changed = [again.unit for first, again in replayed
               if first.trajectory_hash != again.trajectory_hash]  # fmt: skip
    reasons = [
        f"{name} (p = {p:.2g})" for name, p in zip(named, corrected, strict=True) if p <= alpha
    ]
    if changed:
        reasons.insert(
            0,
            f"{len(changed)} of {len(replayed)} replayed units have another trajectory: level "
            f"{changed[0][0]} seed {changed[0][1]}",
        )
    drifted = bool(reasons)
    if not drifted:
        reasons = [
            f"no difference over {len(now)} fresh units (smallest p = {corrected.min():.2g}); "
            f"{len(replayed)} replayed units repeat"
        ]
    return Drift(
        drifted=drifted,
        reasons=tuple(reasons),
        p_value=float(corrected.min()),
        score_before=_mean([r.episode_score for r in before]),
        score_now=_mean([r.episode_score for r in now]),
        clear_before=_mean([r.cleared for r in before]),
        clear_now=_mean([r.cleared for r in now]),
        units_before=len(before),
        units_now=len(now),
        changed_units=len(changed),
        replayed_units=len(replayed),
    )


def _check(
    before: Sequence[EpisodeRecord],
    now: Sequence[EpisodeRecord],
    replayed: Sequence[tuple[EpisodeRecord, EpisodeRecord]],
) -> None:
    if not before or not now:
        raise EvaluationError(
            f"got {len(before)} units of the baseline and {len(now)} fresh ones; expected some of "
            "each; evaluate the champion first"
        )
    twice = {record.unit for record in before} & {record.unit for record in now}
    if twice:
        raise EvaluationError(
            f"got {len(twice)} units in both samples, such as {min(twice)}; expected fresh ones; "
            "take them from other seeds"
        )
    again = [record for pair in replayed for record in pair]
    policies = {record.policy_digest for record in (*before, *now, *again)}
    if len(policies) != 1:
        raise EvaluationError(
            f"got units of {len(policies)} policies; expected those of one; pass the champion's"
        )
    levels = ({record.level for record in before}, {record.level for record in now})
    if levels[0] != levels[1]:
        raise EvaluationError(
            f"got levels {sorted(levels[0])} and {sorted(levels[1])}; expected the same; play the "
            "task's levels in whole blocks"
        )
    strangers = [(a.unit, b.unit) for a, b in replayed if a.unit != b.unit]
    if strangers:
        raise EvaluationError(
            f"got a replay of unit {strangers[0][1]} for unit {strangers[0][0]}; expected the same "
            "unit; pair them by level and seed"
        )


def _mann_whitney(before: Sequence[float], now: Sequence[float]) -> float:
    if len({*before, *now}) == 1:
        return 1.0  # the statistic has no variance: all are the same
    result = stats.mannwhitneyu(before, now, alternative="two-sided", method="asymptotic")
    return float(result.pvalue)


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values))
