"""The gate's section of a configuration is the gate's rule."""

from __future__ import annotations

from dataclasses import asdict

from mario.config import GateConfig
from mario.evaluation.rule import GateRule
from mario.jobs.gate import rule_from


def test_every_key_of_the_rule_can_be_configured_and_has_the_same_default() -> None:
    expected = asdict(GateRule())
    expected.pop("version")
    assert GateConfig().model_dump() == expected
    assert rule_from(GateConfig()) == GateRule()
