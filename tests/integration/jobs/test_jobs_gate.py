"""Register, test and promote policies of known skill on the real game, store and MLflow."""

from __future__ import annotations

import json
import re
from pathlib import Path

import jsonschema
import pytest

from mario.config.gate import GateRule
from mario.errors import ArtefactError, EvaluationError, PromotionConflict, RegistryError
from mario.evaluation.seeds import units_of
from mario.evaluation.verdict import VERDICT_SCHEMA, Verdict
from mario.jobs.context import JobContext, JobSettings
from mario.jobs.evaluate import evaluate_stored, evaluation_key
from mario.jobs.gate import champion_for, judge, repeat_verdict
from mario.jobs.pipeline import gate_stage
from mario.jobs.policies import load_policy, policy_from_artefact
from mario.jobs.promote import promote_verdict
from mario.jobs.report import report_verdict
from mario.jobs.versions import champion_version, reconcile, rollback, show_ledger
from tests.support.killed_pipeline import config
from tests.support.policies import GOOD, POOR, write_odds_policy

# A high α keeps the tests short; each further challenger is tested at a lower one.
RULE = GateRule(primary="progress", alpha=0.4, max_units=100, min_units=8)
MODEL, TASK, LEVELS = "mario-1-1", "1-1", ("1-1",)


def register(context: JobContext, folder: Path, odds: tuple[float, ...]) -> int:
    write_odds_policy(folder, odds)
    registry = context.registry
    version = registry.register(MODEL, folder).version
    assert version is not None
    return version


def judged(context: JobContext, version: int):  # type: ignore[no-untyped-def]
    store = context.store
    challenger = load_policy(str(version), TASK, context)
    champion = champion_for(challenger, TASK, context)
    return judge(challenger, champion, RULE, TASK, LEVELS, store, environments=4)


def test_the_loop_from_first_champion_to_rollback(context: JobContext, tmp_path: Path) -> None:
    good = register(context, tmp_path / "good", GOOD)
    first = judged(context, good)
    assert first.champion.label == "random policy"
    assert first.verdict.decision == "promote"
    assert first.verdict.p_value < RULE.alpha
    assert champion_version(TASK, context) is None, "a verdict alone promotes nobody"
    promote_verdict(first.verdict_id, context)
    assert champion_version(TASK, context) == good
    with pytest.raises(EvaluationError, match="two policies"):
        judged(context, good)

    poor = register(context, tmp_path / "poor", POOR)
    second = judged(context, poor)
    assert second.champion.version == good
    assert second.verdict.decision == "reject"
    with pytest.raises(RegistryError):
        promote_verdict(second.verdict_id, context)
    assert champion_version(TASK, context) == good

    written = report_verdict(first.verdict_id, context)
    page = written.read_text(encoding="utf-8")
    assert page.count("<video ") == page.count('src="data:video/mp4;base64,') == 2
    assert re.findall(r"<figcaption><b>(\w+)</b>: ", page) == ["median", "worst"]
    assert "src='http" not in page
    assert 'src="http' not in page
    assert written.name == f"{first.verdict_id}.html"
    document = json.loads(written.with_suffix(".json").read_text(encoding="utf-8"))
    jsonschema.Draft202012Validator(VERDICT_SCHEMA).validate(document)
    assert Verdict.from_dict(document) == first.verdict
    with pytest.raises(EvaluationError, match="HTML"):
        report_verdict(first.verdict_id, context, tmp_path / "page.json")

    # Promoting the champion again changes nothing; an older version needs a rollback.
    promote_verdict(first.verdict_id, context)
    assert show_ledger(TASK, context).count("\n") == 0
    with pytest.raises(RegistryError, match="roll"):
        rollback(TASK, context, version=poor, note="never was champion")


@pytest.mark.slow
def test_a_repeated_test_resumes_and_gives_the_same_verdict(
    context: JobContext, tmp_path: Path
) -> None:
    good = register(context, tmp_path / "good", GOOD)
    first = judged(context, good)
    store = context.store
    stored = store.evaluations.verdict(first.verdict_id)
    before = len(store.evaluations.records(stored.challenger_evaluation_id))
    again = judged(context, good)
    store = context.store
    after = len(store.evaluations.records(stored.challenger_evaluation_id))
    assert again.pairs == first.pairs
    assert again.verdict.p_value == first.verdict.p_value
    assert after == before, "no unit is played or stored twice"


@pytest.mark.slow
def test_a_verdict_against_a_former_champion_promotes_nobody(
    context: JobContext, tmp_path: Path
) -> None:
    """Of two challengers tested against the same champion, the second verdict is outdated."""
    versions = [
        register(context, tmp_path / "a", GOOD),
        register(context, tmp_path / "b", (0.01, *GOOD[1:])),
    ]
    outcomes = [judged(context, version) for version in versions]
    assert [outcome.verdict.decision for outcome in outcomes] == ["promote", "promote"]
    promote_verdict(outcomes[0].verdict_id, context)
    with pytest.raises(PromotionConflict, match=r"v1|version 1"):
        promote_verdict(outcomes[1].verdict_id, context)
    assert champion_version(TASK, context) == versions[0]
    assert "agree" in reconcile(TASK, context)

    # Tested again, it meets the new champion on other units.
    before = {pair.challenger.unit for pair in outcomes[1].pairs}
    again = judged(context, versions[1])
    assert again.champion.version == versions[0]
    assert not before & {pair.challenger.unit for pair in again.pairs}
    assert again.verdict.rule.alpha < RULE.alpha, "and has spent further α"
    same, _ = repeat_verdict(again.verdict_id, context)
    assert same


def test_the_policy_of_the_champion_is_not_tested_against_itself(
    context: JobContext, tmp_path: Path
) -> None:
    """Whether promoted by hand, by a verdict or by a rollback, the same bytes give SAME."""
    experiment = config()

    def twin(folder: str, key: str) -> int:
        registry = context.registry
        version = registry.register(MODEL, tmp_path / folder, registration_key=key).version
        assert version is not None
        return version

    poor = register(context, tmp_path / "poor", POOR)
    registry = context.registry
    registry.promote(MODEL, poor, verdict_id=None, promoted_by="a person")
    by_hand = gate_stage(experiment, twin("poor", "twin-1"), context)
    assert (by_hand.verdict_id, by_hand.decision) == (None, "same")
    assert "byte for byte" in by_hand.lines[0]
    assert "without a verdict" in by_hand.lines[1]

    good = register(context, tmp_path / "good", GOOD)
    promoting = gate_stage(experiment, good, context)
    assert promoting.decision == "promote"
    assert promoting.verdict_id is not None
    promote_verdict(promoting.verdict_id, context)
    itself = gate_stage(experiment, good, context)
    assert (itself.verdict_id, itself.decision) == (promoting.verdict_id, "same")
    assert itself.is_champion, "an attempt that was killed after the ledger resumes from here"
    other = gate_stage(experiment, twin("good", "twin-2"), context)
    assert (other.verdict_id, other.is_champion) == (promoting.verdict_id, False)

    rollback(TASK, context, version=poor, note="back")
    rollback(TASK, context, version=good, note="and forth")
    again = gate_stage(experiment, good, context)
    assert (again.verdict_id, again.is_champion) == (promoting.verdict_id, False)


def test_an_interrupted_evaluation_resumes(context: JobContext, tmp_path: Path) -> None:
    write_odds_policy(tmp_path / "p", GOOD)
    loaded = policy_from_artefact(tmp_path / "p")
    units = units_of(LEVELS, "screening", "", 10)
    key = evaluation_key(loaded, "screening", "", LEVELS)

    class Broken(Exception):
        pass

    def break_off(done: int, _total: int) -> None:
        if done == 4:
            raise Broken

    store = context.store
    with pytest.raises(Broken):
        evaluate_stored(loaded, units, key, store, environments=2, on_progress=break_off)
    evaluation = store.evaluations.open(key, planned_units=10)
    assert len(store.evaluations.records(evaluation.id)) == 4
    played: list[int] = []
    outcome = evaluate_stored(
        loaded, units, key, store, environments=8, on_progress=lambda d, _: played.append(d)
    )
    assert played == [5, 6, 7, 8, 9, 10]
    assert outcome.evaluation_id == evaluation.id
    assert [record.unit for record in outcome.records] == list(units)
    other = JobContext(JobSettings.embedded(tmp_path / "fresh"))
    store = other.store
    undisturbed = evaluate_stored(loaded, units, key, store, environments=1)
    assert outcome.records == undisturbed.records


def test_a_version_without_artefact_is_refused(context: JobContext, tmp_path: Path) -> None:
    good = register(context, tmp_path / "good", GOOD)
    for file in context.settings.artifact_dir.rglob("policy.onnx"):
        file.unlink()
    with pytest.raises(ArtefactError, match=r"policy\.onnx"):
        load_policy(str(good), TASK, context)


@pytest.mark.parametrize("reference", ["champion", "challenger", "7", "nonsense"])
def test_a_missing_policy_says_what_to_do(context: JobContext, reference: str) -> None:
    with pytest.raises(RegistryError, match="expected"):
        load_policy(reference, TASK, context)
