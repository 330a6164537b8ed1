"""The gate's guards that look at networks, on real artefacts, and that what they say counts."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from mario.evaluation.rule import GateRule
from mario.jobs.gate import judge, network_guards
from mario.jobs.policies import LoadedPolicy, policy_from_artefact, random_policy
from mario.jobs.runtime import Runtime
from mario.policy.artefact import Artefact, Golden, write_artefact
from mario.store.store import ExperimentStore
from tests.support.onnx_networks import write_test_artefact
from tests.support.policies import GOOD, STUCK, write_odds_policy

RULE = GateRule(primary="progress", alpha=0.4, max_units=100)


def loaded(folder: Path, odds: tuple[float, ...]) -> LoadedPolicy:
    write_odds_policy(folder, odds)
    return policy_from_artefact(folder)


def with_golden(artefact: Artefact, folder: Path, golden: Golden | None) -> LoadedPolicy:
    """The same network beside other recorded answers."""
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


def test_an_export_that_answers_otherwise_than_trained_is_refused(tmp_path: Path) -> None:
    """Whatever the games say: who was trained is not who would be served."""
    whole, stuck = loaded(tmp_path / "good", GOOD), loaded(tmp_path / "stuck", STUCK)
    assert whole.artefact is not None
    golden = whole.artefact.golden
    assert golden is not None
    logits = golden.logits.copy()
    logits[1, 3] += np.float32(1e-3)
    other = with_golden(
        whole.artefact, tmp_path / "other", dataclasses.replace(golden, logits=logits)
    )
    with ExperimentStore.open(Runtime.embedded(tmp_path / "runs").database_url) as store:
        outcome = judge(other, stuck, RULE, "1-1", ("1-1",), store)
        stored = store.evaluations.verdict(outcome.verdict_id)
    verdict = outcome.verdict
    assert verdict.test_decision == "promote", verdict.reasons
    assert verdict.decision == stored.decision == "reject"
    assert "onnx_agreement" in verdict.reasons[0]
    (guard,) = [guard for guard in verdict.guards if guard.name == "onnx_agreement"]
    assert guard.value == pytest.approx(1e-3, rel=1e-3)
    assert guard.limit == RULE.max_logit_difference


def test_an_artefact_without_recorded_answers_is_refused(tmp_path: Path) -> None:
    whole = loaded(tmp_path / "good", GOOD)
    assert whole.artefact is not None
    silent = with_golden(whole.artefact, tmp_path / "silent", None)
    guards = network_guards(silent, whole, RULE)
    assert [(guard.name, guard.passed) for guard in guards] == [("onnx_agreement", False)]
    assert "export it again" in guards[0].detail


def test_a_network_much_slower_than_the_champions_is_refused(tmp_path: Path) -> None:
    """A Nature CNN against a network that only adds its odds: some ten times as slow."""
    quick = loaded(tmp_path / "quick", GOOD)
    write_test_artefact(tmp_path / "slow", 0)
    slow = policy_from_artefact(tmp_path / "slow")
    for challenger, champion, passes in ((slow, quick, False), (quick, slow, True)):
        agreement, latency = network_guards(challenger, champion, RULE)
        assert (agreement.name, agreement.passed) == ("onnx_agreement", True)
        assert (latency.name, latency.passed) == ("inference_latency", passes), latency
        assert latency.limit == RULE.max_latency_ratio
        assert (latency.value > 2) != passes


def test_the_random_policy_has_no_network_to_compare_with(tmp_path: Path) -> None:
    challenger = loaded(tmp_path / "good", GOOD)
    champion = random_policy(challenger.policy.actions, challenger.policy.frame_skip)
    assert [guard.name for guard in network_guards(challenger, champion, RULE)] == [
        "onnx_agreement"
    ]
