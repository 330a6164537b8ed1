"""The nightly check on the real game: a champion is steady until another policy answers for it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from mario.config.game import ConsoleName
from mario.config.gate import GateRule
from mario.errors import EvaluationError
from mario.evaluation.records import EpisodeRecord
from mario.jobs.context import JobContext, JobSettings
from mario.jobs.engines.local import LOCAL
from mario.jobs.gate import champion_for, judge
from mario.jobs.nightly import check_champion, drift_lines
from mario.jobs.policies import LoadedPolicy, load_policy
from mario.jobs.promote import promote_verdict
from tests.support.policies import GOOD, POOR, write_odds_policy

TASK, MODEL = "1-1", "mario-1-1"
UNITS = 24
RULE = GateRule(primary="progress", alpha=0.4, max_units=100, min_units=8)


@dataclass(frozen=True)
class Swapped:
    """An engine in which another policy answers, as with a damaged library."""

    other: LoadedPolicy

    def at_once(self, environments: int) -> int:
        return environments

    def play(
        self,
        loaded: LoadedPolicy,
        units: Sequence[tuple[str, int]],
        *,
        environments: int,
        console: ConsoleName,
    ) -> Iterator[EpisodeRecord]:
        return LOCAL.play(
            replace(loaded, policy=self.other.policy),
            units,
            environments=environments,
            console=console,
        )


@pytest.fixture
def context(tmp_path: Path) -> JobContext:
    context = JobContext(JobSettings.embedded(tmp_path / "runs"))
    write_odds_policy(tmp_path / "good", GOOD)
    registry = context.registry
    version = registry.register(MODEL, tmp_path / "good").version
    store = context.store
    challenger = load_policy(str(version), TASK, context)
    champion = champion_for(challenger, TASK, context)
    outcome = judge(challenger, champion, RULE, TASK, ("1-1",), store)
    promote_verdict(outcome.verdict_id, context)
    return context


def test_the_baseline_shares_no_units_with_the_promotion(
    context: JobContext, tmp_path: Path
) -> None:
    first = check_champion(TASK, "2026-11-01", context, units=UNITS)
    second = check_champion(TASK, "2026-11-02", context, units=UNITS)
    assert not first.drift.drifted, first.drift.reasons
    assert not second.drift.drifted, second.drift.reasons
    assert "steady" in drift_lines(second)[0]
    store = context.store
    verdict = store.evaluations.verdict(first.verdict_id)
    played = store.evaluations.list(policy_digest=verdict.challenger_digest)
    (baseline_id,) = [each.id for each in played if each.key.seed_source == "nightly baseline"]
    promotion, baseline, *nights = (
        {record.unit for record in store.evaluations.records(evaluation)}
        for evaluation in (verdict.challenger_evaluation_id, baseline_id,
                           first.evaluation_id, second.evaluation_id)
    )  # fmt: skip
    # Its size is that of a night, not of the test, which stopped when it looked good.
    assert len(baseline) == len(nights[0]) == len(nights[1]) == UNITS != len(promotion)
    assert (second.drift.units_before, second.drift.units_now) == (UNITS, UNITS)
    assert len(promotion | baseline | nights[0] | nights[1]) == 3 * UNITS + len(promotion)
    assert second.drift.replayed_units == 4

    write_odds_policy(tmp_path / "poor", POOR)
    other = load_policy(str(tmp_path / "poor"), TASK, context)
    changed = check_champion(TASK, "2026-11-03", context, units=UNITS, engine=Swapped(other))
    assert changed.drift.drifted
    assert changed.drift.changed_units == 4
    assert changed.drift.p_value < 0.001, "the fresh units alone say it, too"
    assert "DRIFTED" in drift_lines(changed)[0]


def test_a_task_without_a_champion_is_not_checked(tmp_path: Path) -> None:
    with pytest.raises(EvaluationError, match="no champion"):
        check_champion(
            TASK,
            "2026-11-01",
            JobContext(JobSettings.embedded(tmp_path / "runs")),
            units=UNITS,
        )
