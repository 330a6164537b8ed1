"""The settings of a sweep: experiment, search space, sampler and pruner.

A sweep's YAML names an experiment and a search space. A trial is that experiment with one value for
each key of the space. Keys that would make trials incomparable (task, levels, selection units,
length) cannot be varied.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, PositiveInt, model_validator

from mario.config.experiment import ExperimentConfig, load_config, parse_config
from mario.config.faults import parse_settings
from mario.config.identities import identity_of_sweep
from mario.config.section import Section
from mario.config.yaml_file import load_yaml
from mario.errors import ConfigError

#: Sections that a search space may vary: none changes the meaning of a selection score.
VARIABLE_SECTIONS = ("algorithm", "network", "game", "collapse", "environments", "seed")
#: Keys that it may not: each algorithm has keys of its own, the console changes nothing, and the
#: frame skip changes the length of a step.
FIXED_KEYS = ("algorithm.name", "game.console", "game.frame_skip")

Scalar = bool | int | float | str


class FloatRange(Section):
    """A float between two bounds, both included; `log` samples the logarithm."""

    kind: Literal["float"]
    low: float
    high: float
    log: bool = False

    @model_validator(mode="after")
    def _bounds(self) -> Self:
        _check_bounds(self.low, self.high, self.log)
        return self

    @property
    def edges(self) -> tuple[Scalar, ...]:
        """Values to check: an experiment that accepts these accepts all."""
        return (self.low, self.high)


class IntRange(Section):
    """An integer between two bounds, both included, in steps; `log` samples the logarithm."""

    kind: Literal["int"]
    low: int
    high: int
    step: PositiveInt = 1
    log: bool = False

    @model_validator(mode="after")
    def _bounds(self) -> Self:
        _check_bounds(self.low, self.high, self.log)
        if self.log and self.step != 1:
            raise ValueError(f"got step {self.step} beside log, expected one of them")
        return self

    @property
    def edges(self) -> tuple[Scalar, ...]:
        """Values to check: an experiment that accepts these accepts all."""
        return (self.low, self.low + (self.high - self.low) // self.step * self.step)


class Choice(Section):
    """One of several values that have no order."""

    kind: Literal["categorical"]
    choices: Annotated[tuple[Scalar, ...], Field(min_length=2)]

    @model_validator(mode="after")
    def _unlike(self) -> Self:
        if len({(type(value), value) for value in self.choices}) != len(self.choices):
            raise ValueError(f"got {list(self.choices)}, expected every choice once")
        return self

    @property
    def edges(self) -> tuple[Scalar, ...]:
        """Values to check: an experiment that accepts these accepts all."""
        return self.choices


def _check_bounds(low: float, high: float, log: bool) -> None:
    if not low < high:
        raise ValueError(f"got low {low:g} and high {high:g}, expected low < high")
    if log and low <= 0:
        raise ValueError(f"got low {low:g} beside log, expected a number above 0")


Dimension = Annotated[FloatRange | IntRange | Choice, Field(discriminator="kind")]


class SamplerConfig(Section):
    """Optuna's multivariate TPE (Falkner et al. 2018): random trials first, then by model."""

    startup_trials: PositiveInt = 10
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0


class NoPruner(Section):
    """Every trial runs to its end."""

    name: Literal["none"]


class MedianPruner(Section):
    """Prune a trial whose best selection score is below the median of others at that step.

    Attributes:
        startup_trials: trials that must have ended before the first is pruned.
        warmup_steps: agent steps before which a trial is not pruned.
    """

    name: Literal["median"] = "median"
    startup_trials: PositiveInt = 5
    warmup_steps: Annotated[int, Field(ge=0)] = 0


class HyperbandPruner(Section):
    """Hyperband (Li et al. 2018): most trials stop early, the best go on for more steps.

    Attributes:
        reduction_factor: each round keeps one trial in this many.
    """

    name: Literal["hyperband"]
    reduction_factor: Annotated[int, Field(ge=2)] = 3


Pruner = Annotated[MedianPruner | HyperbandPruner | NoPruner, Field(discriminator="name")]


class SweepConfig(Section):
    """The content of a sweep's YAML.

    Attributes:
        description: the question that the sweep answers.
        experiment: path of the experiment's YAML, relative to the working directory.
        overrides: keys of the experiment that are changed for all trials.
        trials: number of trials, over all workers.
        space: range or choices of each varied key of the experiment.
        sampler: how trials are proposed.
        pruner: when a trial is stopped early.
        heartbeat_seconds: how often a worker records that its trial is running.
        grace_seconds: time without a heartbeat after which another worker retries the trial.
        max_retries: retries of a trial before it counts as failed.
    """

    description: str = ""
    experiment: str
    overrides: dict[str, Any] = Field(default_factory=dict)
    trials: PositiveInt
    space: Annotated[dict[str, Dimension], Field(min_length=1)]
    sampler: SamplerConfig = SamplerConfig()
    pruner: Pruner = MedianPruner()
    heartbeat_seconds: PositiveInt = 30
    grace_seconds: PositiveInt = 120
    max_retries: Annotated[int, Field(ge=0)] = 3

    @model_validator(mode="after")
    def _patience(self) -> Self:
        if self.grace_seconds <= self.heartbeat_seconds:
            raise ValueError(
                f"grace_seconds: got {self.grace_seconds}, expected more than heartbeat_seconds = "
                f"{self.heartbeat_seconds}, or every trial counts as dead"
            )
        return self


class Sweep:
    """A valid sweep: its settings and its experiment.

    Attributes:
        settings: the content of the YAML.
        base: the experiment, overrides applied.
    """

    def __init__(self, settings: SweepConfig, base: ExperimentConfig) -> None:
        """Check the experiment at every edge of the space.

        Raises:
            ConfigError: a key may not be varied, or a value of its range is impossible.
        """
        self.settings = settings
        self.base = base
        self._values = base.model_dump(mode="json")
        for key, dimension in settings.space.items():
            _check_key(key)
            for value in dimension.edges:
                self.experiment({key: value})
        if base.selection.units == 0:
            raise ConfigError(
                f"{settings.experiment}: got selection.units 0, expected some: a sweep compares "
                "trials by their scores on selection seeds"
            )

    def experiment(self, values: Mapping[str, Scalar], name: str | None = None) -> ExperimentConfig:
        """Give the experiment of a trial.

        Args:
            values: the proposed value of each key.
            name: the trial's name; None keeps the experiment's.

        Raises:
            ConfigError: the values are impossible, or impossible together.
        """
        changed: dict[str, Any] = json.loads(json.dumps(self._values))
        for key, value in values.items():
            *parents, last = key.split(".")
            section: Any = changed
            for parent in parents:
                section = section.get(parent)
                if not isinstance(section, dict):
                    raise ConfigError(
                        f"space.{key}: got no section {parent} in {self.settings.experiment}; "
                        "expected a key of the experiment"
                    )
            section[last] = value
        if name is not None:
            changed["name"] = name
        shown = ", ".join(f"{key}={value}" for key, value in values.items())
        return parse_config(changed, f"{self.settings.experiment} with {shown}")

    def definition(self) -> dict[str, Any]:
        """Give everything that trials depend on, as JSON types."""
        free = {"description", "trials", "heartbeat_seconds", "grace_seconds", "max_retries"}
        settings = self.settings.model_dump(mode="json", exclude=free | {"experiment", "overrides"})
        return {"experiment": self._values, **settings}

    def content_hash(self) -> str:
        """Hash the definition: SHA-256, 64 hexadecimal characters."""
        return identity_of_sweep(self.settings, self.base)


def _check_key(key: str) -> None:
    section = key.partition(".")[0]
    if section not in VARIABLE_SECTIONS or key in FIXED_KEYS:
        raise ConfigError(
            f"space.{key}: got a key that a sweep may not vary; expected one below "
            f"{', '.join(VARIABLE_SECTIONS)}, but none of {', '.join(FIXED_KEYS)}: trials must "
            "stay comparable"
        )


def load_sweep(path: Path | str, overrides: tuple[str, ...] = ()) -> Sweep:
    """Read a sweep and its experiment.

    Args:
        path: the sweep's YAML.
        overrides: ``"key=value"`` each; they override the file.

    Raises:
        ConfigError: the file cannot be read, or describes no valid sweep.
    """
    values = load_yaml(path, overrides, expected="`experiment:`, `trials:` and `space:`")
    settings = parse_settings(SweepConfig, values, str(path))
    changes = tuple(f"{key}={json.dumps(value)}" for key, value in settings.overrides.items())
    return Sweep(settings, load_config(settings.experiment, changes))
