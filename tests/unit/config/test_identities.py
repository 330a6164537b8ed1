"""An identity is a fixed list of fields: the values of commit 1ce122b, and what changes them."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from typing import Any, get_args

import pytest
from pydantic import BaseModel

from mario.config.algorithms import AlgorithmConfig
from mario.config.experiment import ExperimentConfig, parse_config
from mario.config.identities import (
    identity_of_experiment,
    identity_of_run,
    identity_of_sweep,
    identity_of_test,
    is_identity_of_run,
)
from mario.config.sweep import Sweep, SweepConfig
from mario.store.records import EvaluationKey
from tests.support.golden import GOLDEN

WRITTEN = json.loads((GOLDEN / "identities.json").read_text())
EXPERIMENTS, SWEEPS = WRITTEN["experiments"], WRITTEN["sweeps"]
CHALLENGER, CHAMPION = "a" * 64, "b" * 64

#: Settings that an identity does not see; a section stands for all of its settings.
FREE = {
    "run": ("name", "description", "sinks", "evaluation", "checkpoint"),
    "experiment": (
        "name", "description", "evaluation.engine", "evaluation.workers", "evaluation.scheduler",
    ),
    "sweep": (
        "description", "experiment", "overrides", "trials", "heartbeat_seconds", "grace_seconds",
        "max_retries",
    ),
}  # fmt: skip


def identities(config: ExperimentConfig, levels: tuple[str, ...]) -> dict[str, str]:
    return {
        "experiment": identity_of_experiment(config),
        "run": identity_of_run(config),
        "test": identity_of_test(CHALLENGER, CHAMPION, levels, config.gate),
    }


def leaves(section: BaseModel, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """The path of every setting, through sections and through dictionaries of them."""
    for name in type(section).model_fields:
        value = getattr(section, name)
        if isinstance(value, BaseModel):
            yield from leaves(value, (*path, name))
        elif isinstance(value, dict) and any(isinstance(v, BaseModel) for v in value.values()):
            for key, part in value.items():
                yield from leaves(part, (*path, name, key))
        else:
            yield (*path, name)


def changed(holder: Any, path: tuple[str, ...]) -> Any:
    """A copy with another value at a path, valid or not."""
    name, *rest = path
    if isinstance(holder, dict):
        return {**holder, name: changed(holder[name], tuple(rest))}
    value = getattr(holder, name)
    return holder.model_copy(update={name: changed(value, tuple(rest)) if rest else other(value)})


def other(value: Any) -> Any:
    match value:
        case bool():
            return not value
        case int() | float():
            return value + 1
        case str():
            return value + "x"
        case tuple():
            return (*value, "8-4")
        case dict():
            return {**value, 77: 7.0}
    assert value is None, value
    return 0.5


def is_free(path: tuple[str, ...], free: tuple[str, ...]) -> bool:
    return any(".".join(path[: len(each.split("."))]) == each for each in free)


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_experiments_keep_the_identities_that_they_had(name: str) -> None:
    written = EXPERIMENTS[name]
    config = parse_config(written["config"], name)
    assert identities(config, config.level_names) == {
        key: written[key] for key in ("experiment", "run", "test")
    }
    assert config.content_hash() == written["experiment"]
    assert is_identity_of_run(written["run"], config)
    assert not is_identity_of_run(written["experiment"], config)


@pytest.mark.parametrize("name", SWEEPS)
def test_sweeps_keep_the_identities_that_they_had(name: str) -> None:
    written = SWEEPS[name]
    base = parse_config(written["config"], name)
    sweep = Sweep(SweepConfig.model_validate(written["settings"]), base)
    assert sweep.content_hash() == written["sweep"]


@pytest.mark.parametrize("name", ["configs/ppo_v5.yaml", "configs/dqn_1-1.yaml"])
def test_every_setting_changes_the_identities_that_it_belongs_to_and_no_other(name: str) -> None:
    config = parse_config(EXPERIMENTS[name]["config"], name)
    before = identities(config, ("1-1",))
    paths = list(leaves(config))
    assert len(paths) > 55
    for path in paths:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a changed value need not be a valid one
            after = identities(changed(config, path), ("1-1",))
        expected = {kind for kind in ("run", "experiment") if not is_free(path, FREE[kind])} | (
            {"test"} if path[0] == "gate" else set()
        )
        assert {kind for kind in before if before[kind] != after[kind]} == expected, path


@pytest.mark.parametrize("name", SWEEPS)
def test_every_setting_of_a_sweep_that_changes_its_trials_changes_its_identity(name: str) -> None:
    settings = SweepConfig.model_validate(SWEEPS[name]["settings"])
    base = parse_config(SWEEPS[name]["config"], name)
    before = identity_of_sweep(settings, base)
    for path in leaves(settings):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            after = identity_of_sweep(changed(settings, path), base)
        assert (after == before) == is_free(path, FREE["sweep"]), path
    for path in leaves(base):  # all of them, the name of the experiment included
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            assert identity_of_sweep(settings, changed(base, path)) != before, path


def test_a_test_is_its_policies_its_levels_and_its_rule() -> None:
    rule = parse_config(EXPERIMENTS["configs/demo.yaml"]["config"], "demo").gate
    first = identity_of_test(CHALLENGER, CHAMPION, ("1-1", "1-2"), rule)
    others = [
        identity_of_test(CHAMPION, CHALLENGER, ("1-1", "1-2"), rule),
        identity_of_test(CHALLENGER, CHALLENGER, ("1-1", "1-2"), rule),
        identity_of_test(CHALLENGER, CHAMPION, ("1-2", "1-1"), rule),
    ]
    assert len({first, *others}) == 4


def test_every_algorithm_lists_settings_of_its_own() -> None:
    models = get_args(get_args(AlgorithmConfig)[0])
    assert len(models) >= 3
    for model in models:
        listed = vars(model)["identity_fields"]
        assert "name" in listed, model
        assert listed.keys() <= model.model_fields.keys(), model


def test_a_stored_evaluation_is_these_fields() -> None:
    assert [*EvaluationKey.__dataclass_fields__] == [
        "policy_digest", "protocol", "seed_family", "seed_source", "levels",
    ]  # fmt: skip
