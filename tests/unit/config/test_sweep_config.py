"""A sweep's file: what it may contain, and the message where it contains something else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mario.config.sweep import Sweep, load_sweep
from mario.errors import ConfigError
from tests.support.paths import ROOT
from tests.support.sweeps import small_sweep, write_sweep


@pytest.mark.parametrize("path", sorted((ROOT / "configs" / "sweeps").glob("*.yaml")))
def test_the_examples_load(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    assert load_sweep(path).settings.trials > 0


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"trials": 0}, "trials: got 0"),
        ({"trails": 3}, "trails: unknown key"),
        ({"space": {}}, "space: got {}"),
        ({"grace_seconds": 1}, "grace_seconds: got 1, expected more than heartbeat_seconds = 1"),
        ({"pruner": {"name": "best"}}, "pruner.name: got best, expected 'median'"),
        ({"experiment": "no/such.yaml"}, "no such file"),
        ({"overrides": {"total_stepz": 3}}, "did you mean total_steps"),
        ({"overrides": {"total_steps": 512, "selection.units": 0}}, "expected some"),
    ],
)
def test_faults_name_the_key_and_what_is_expected(
    changes: dict[str, Any], said: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError) as raised:
        load_sweep(write_sweep(tmp_path / "sweep.yaml", **changes))
    assert said in str(raised.value)


@pytest.mark.parametrize(
    ("key", "dimension", "said"),
    [
        ("algorithm.gamma", {"low": 0.9, "high": 1}, "expected it to say which"),
        ("algorithm.gamma", {"kind": "real", "low": 0, "high": 1}, "got real, expected 'float'"),
        ("algorithm.gamma", {"kind": "float", "low": 0.9, "high": 0.9}, "expected low < high"),
        ("algorithm.gamma", {"kind": "float", "low": 0, "high": 1, "log": True}, "above 0"),
        ("algorithm.gamma", {"kind": "float", "low": 0.5, "high": 1.5}, "algorithm.gamma: got 1.5"),
        ("algorithm.gama", {"kind": "float", "low": 0, "high": 1}, "did you mean gamma"),
        ("algorithm.n_epochs", {"kind": "int", "low": 1, "high": 8, "step": 2, "log": True},
         "expected one of them"),
        ("algorithm.batch_size", {"kind": "categorical", "choices": [16]}, "at least 2"),
        ("algorithm.batch_size", {"kind": "categorical", "choices": [16, 16]}, "every choice once"),
        ("algorithm.batch_size", {"kind": "categorical", "choices": [16, 17]}, "a divisor of"),
        ("task", {"kind": "categorical", "choices": ["1-1", "1-2"]}, "may not vary"),
        ("selection.units", {"kind": "int", "low": 1, "high": 2}, "may not vary"),
        ("game.frame_skip", {"kind": "int", "low": 1, "high": 2}, "may not vary"),
    ],
)  # fmt: skip
def test_a_space_that_cannot_be_searched(
    key: str, dimension: dict[str, Any], said: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError) as raised:
        small_sweep(tmp_path, space={key: dimension})
    assert said in str(raised.value)


def test_a_trial_is_the_experiment_with_its_values(tmp_path: Path) -> None:
    sweep = small_sweep(tmp_path)
    trial = sweep.experiment({"algorithm.n_epochs": 2, "algorithm.batch_size": 16}, name="t-000")
    assert (trial.name, trial.algorithm.n_epochs, trial.algorithm.batch_size) == ("t-000", 2, 16)
    assert trial.game == sweep.base.game
    assert sweep.experiment({}) == sweep.base


def test_the_definition_is_what_trials_depend_on(tmp_path: Path) -> None:
    def digest(**changes: Any) -> str:
        return small_sweep(tmp_path, **changes).content_hash()

    same: Sweep = small_sweep(tmp_path)
    patient = digest(trials=50, heartbeat_seconds=2, grace_seconds=9, max_retries=0)
    assert patient == same.content_hash()
    others = {
        digest(small={"algorithm.gamma": 0.9}),
        digest(sampler={"startup_trials": 3, "seed": 8}),
        digest(pruner={"name": "median"}),
        digest(space={"algorithm.gamma": {"kind": "float", "low": 0.8, "high": 0.99}}),
    }
    assert len(others | {patient}) == 5
