"""The guards that measure networks, on real artefacts, and their effect on the verdict."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from mario.config.gate import GateRule
from mario.errors import EvaluationError
from mario.evaluation.gate import decide
from mario.evaluation.guards.contract import CallTimes
from mario.evaluation.verdict import GuardResult
from mario.jobs.context import JobContext, JobSettings
from mario.jobs.gate import judge, repeat_verdict
from mario.jobs.network_measurements import NetworkMeasurements
from mario.jobs.pipeline import gate_stage, register_stage, screen_stage, summary_stage
from mario.jobs.policies import LoadedPolicy, policy_from_artefact, random_policy
from mario.jobs.register import ARTEFACT_FOLDER
from mario.jobs.report import report_verdict
from mario.policy.artefact import Artefact, Golden, write_artefact
from mario.store.store import ExperimentStore
from tests.support.evaluation_helpers import clear_pairs
from tests.support.killed_pipeline import config
from tests.support.onnx_networks import write_test_artefact
from tests.support.policies import GOOD, STUCK, write_odds_policy
from tests.support.store_rows import run_of

RULE = GateRule(primary="progress", alpha=0.4, max_units=100)


def loaded(folder: Path, odds: tuple[float, ...]) -> LoadedPolicy:
    write_odds_policy(folder, odds)
    return policy_from_artefact(folder)


def with_golden(artefact: Artefact, folder: Path, golden: Golden | None) -> LoadedPolicy:
    """The same network with other recorded answers."""
    manifest = artefact.manifest
    write_artefact(
        folder,
        onnx=artefact.onnx,
        actions=manifest.actions,
        action_selection=manifest.action_selection,
        frame_skip=manifest.frame_skip,
        training_config_hash=manifest.training_config_hash,
        git_commit=manifest.git_commit,
        task=manifest.task,
        golden=golden,
    )
    return policy_from_artefact(folder, check_golden=False)


def answering_otherwise(policy: LoadedPolicy, folder: Path) -> LoadedPolicy:
    """The same network, recorded with a logit that is off by .001."""
    assert policy.artefact is not None
    golden = policy.artefact.golden
    assert golden is not None
    logits = golden.logits.copy()
    logits[1, 3] += np.float32(1e-3)
    return with_golden(policy.artefact, folder, dataclasses.replace(golden, logits=logits))


def network_guards(challenger: LoadedPolicy, champion: LoadedPolicy) -> tuple[GuardResult, ...]:
    """The results of the two guards that measure networks, from a verdict on one unit."""
    networks = NetworkMeasurements.of(challenger, champion)
    return decide(clear_pairs([(1, 0)]), RULE, networks=networks).guards[4:]


def test_an_export_that_answers_otherwise_than_trained_is_refused(tmp_path: Path) -> None:
    """Good episodes do not help: the policy that was trained is not the one served."""
    whole, stuck = loaded(tmp_path / "good", GOOD), loaded(tmp_path / "stuck", STUCK)
    other = answering_otherwise(whole, tmp_path / "other")
    with ExperimentStore.open(JobSettings.embedded(tmp_path / "runs").database_url) as store:
        outcome = judge(other, stuck, RULE, "1-1", ("1-1",), store)
        stored = store.evaluations.verdict(outcome.verdict_id)
    verdict = outcome.verdict
    assert verdict.test_decision == "promote", verdict.reasons
    assert verdict.decision == stored.decision == "reject"
    assert "onnx_agreement" in verdict.reasons[0]
    (guard,) = [guard for guard in verdict.guards if guard.name == "onnx_agreement"]
    assert guard.value == pytest.approx(1e-3, rel=1e-3)
    assert guard.limit == RULE.max_logit_difference


def test_such_an_export_is_rejected_by_the_pipeline_with_report_and_repetition(
    tmp_path: Path,
) -> None:
    """Every stage runs to its end, so that there is a verdict."""
    context, experiment, run_id = (
        JobContext(JobSettings.embedded(tmp_path / "runs")),
        config(),
        "run-off",
    )
    folder = context.settings.run_dir(run_id) / ARTEFACT_FOLDER
    answering_otherwise(loaded(tmp_path / "good", GOOD), folder)
    store = context.store
    store.runs.start(run_of(experiment, run_id))
    version = register_stage(run_id, context)
    assert "units" in screen_stage(experiment, version, context)
    judged = gate_stage(experiment, version, context)
    assert judged.decision == "reject"
    assert judged.verdict_id is not None
    store = context.store
    detail = store.evaluations.verdict(judged.verdict_id).detail
    assert detail["test_decision"] == "promote"
    assert "onnx_agreement refuses" in detail["reasons"][0]
    made = summary_stage(experiment, run_id, judged.verdict_id, context)
    for page in (made.report, report_verdict(judged.verdict_id, context)):
        text = page.read_text(encoding="utf-8")
        assert text.count("<video ") == 2
        assert f"mario gate --again {judged.verdict_id}" in text
    same, again = repeat_verdict(judged.verdict_id, context)
    assert same
    assert again.decision == "reject"


def test_a_judgement_of_the_same_test_keeps_its_first_latency(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise a refused challenger would pass once a repeated measurement is quick enough."""
    good, stuck = loaded(tmp_path / "good", GOOD), loaded(tmp_path / "stuck", STUCK)
    slow = CallTimes(np.array([0.03]), np.array([0.01]))
    with ExperimentStore.open(JobSettings.embedded(tmp_path / "runs").database_url) as store:
        with monkeypatch.context() as patch:
            patch.setattr(NetworkMeasurements, "call_times", lambda _: slow)
            first = judge(good, stuck, RULE, "1-1", ("1-1",), store)
        again = judge(good, stuck, RULE, "1-1", ("1-1",), store)
        # Another rule is another test, and is measured for itself.
        other = judge(good, stuck, RULE.model_copy(update={"delta": 0.07}), "1-1", ("1-1",), store)
    latencies = [
        next(guard for guard in outcome.verdict.guards if guard.name == "inference_latency")
        for outcome in (first, again, other)
    ]
    assert latencies[0].value == pytest.approx(3.0)
    assert not latencies[0].passed
    assert latencies[1] == latencies[0]
    assert first.verdict == again.verdict
    assert latencies[2].value != latencies[0].value


def test_a_verdict_on_an_unregistered_policy_says_that_it_cannot_be_repeated(
    tmp_path: Path,
) -> None:
    """`mario gate` refuses such a challenger; `judge` does not."""
    context = JobContext(JobSettings.embedded(tmp_path / "runs"))
    good, stuck = loaded(tmp_path / "good", GOOD), loaded(tmp_path / "stuck", STUCK)
    store = context.store
    outcome = judge(good, stuck, RULE, "1-1", ("1-1",), store)
    page = report_verdict(outcome.verdict_id, context).read_text(encoding="utf-8")
    assert "mario gate --again" not in page
    assert "was no registered version" in page
    with pytest.raises(EvaluationError, match="no registered version"):
        repeat_verdict(outcome.verdict_id, context)


def test_an_artefact_without_recorded_answers_is_refused(tmp_path: Path) -> None:
    whole = loaded(tmp_path / "good", GOOD)
    assert whole.artefact is not None
    silent = with_golden(whole.artefact, tmp_path / "silent", None)
    guards = network_guards(silent, whole)
    assert [(guard.name, guard.passed) for guard in guards] == [("onnx_agreement", False)]
    assert "export it again" in guards[0].detail


def test_a_network_much_slower_than_the_champions_is_refused(tmp_path: Path) -> None:
    """A Nature CNN against a network that only adds its odds: some ten times as slow."""
    quick = loaded(tmp_path / "quick", GOOD)
    write_test_artefact(tmp_path / "slow", 0)
    slow = policy_from_artefact(tmp_path / "slow")
    for challenger, champion, passes in ((slow, quick, False), (quick, slow, True)):
        agreement, latency = network_guards(challenger, champion)
        assert (agreement.name, agreement.passed) == ("onnx_agreement", True)
        assert (latency.name, latency.passed) == ("inference_latency", passes), latency
        assert latency.limit == RULE.max_latency_ratio
        assert (latency.value > 2) != passes


def test_the_random_policy_has_no_network_to_compare_with(tmp_path: Path) -> None:
    challenger = loaded(tmp_path / "good", GOOD)
    champion = random_policy(challenger.policy.actions, challenger.policy.frame_skip)
    assert [guard.name for guard in network_guards(challenger, champion)] == ["onnx_agreement"]
