"""The experiment: one YAML file, one frozen ExperimentConfig.

Unknown keys, wrong types and impossible combinations are refused with the file, the key, what was
got and what is allowed. Every duration says its unit in its name.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any, Self

import yaml
from pydantic import Field, model_validator

from mario.config.algorithms import AlgorithmConfig, PPOConfig
from mario.config.checkpoints import CheckpointConfig, SelectionConfig
from mario.config.collapse import CollapseConfig
from mario.config.evaluation import EvaluationConfig
from mario.config.faults import parse_settings
from mario.config.game import GameConfig
from mario.config.gate import GateRule
from mario.config.identities import identity_of_experiment
from mario.config.levels import LEVEL_NAMES, LevelName, TaskName, task_levels
from mario.config.network import NetworkConfig
from mario.config.observations import split_task
from mario.config.section import PositiveInt, Section
from mario.config.sinks import SinksConfig
from mario.config.yaml_file import load_yaml

#: A training seed is below it: stable-baselines3 seeds NumPy's global generator, of 32 bits.
SEED_BOUND = 2**32


def _environments_of_this_machine() -> int:
    """8 games for each core, as a power of two from 8 to 128, which batch sizes divide.

    A run keeps the number it began with: it is written into the run's own configuration.
    """
    affinity = getattr(os, "sched_getaffinity", None)
    cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    return min(128, 8 << (cores.bit_length() - 1))


class ExperimentConfig(Section):
    """One reproducible experiment.

    `environments` that is not set is taken from the machine when the configuration is read.
    """

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,63}$")]
    description: str = ""
    task: TaskName = "1-1"
    levels: tuple[LevelName, ...] = ()
    seed: Annotated[int, Field(ge=0, lt=SEED_BOUND, strict=True)] = 0
    total_steps: PositiveInt
    environments: PositiveInt = Field(default_factory=_environments_of_this_machine)
    algorithm: AlgorithmConfig = PPOConfig()
    game: GameConfig = GameConfig()
    network: NetworkConfig = NetworkConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    selection: SelectionConfig = SelectionConfig()
    collapse: CollapseConfig = CollapseConfig()
    sinks: SinksConfig = SinksConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    gate: GateRule = GateRule()

    @model_validator(mode="after")
    def _combinations(self) -> Self:
        """Refuse values that are fine alone and impossible together."""
        played, _ = split_task(self.task)
        known = played == "all" or played in LEVEL_NAMES
        if not known and not self.levels:
            raise ValueError(
                f'task: got the name {self.task!r} without levels, expected a level ("1-1"), '
                '"all", or a name together with `levels: [...]`'
            )
        if known and self.levels:
            raise ValueError(
                f"levels: got {list(self.levels)} beside task {self.task!r}, expected levels only "
                "for a task with a name of its own; remove one of them"
            )
        if len(set(self.levels)) != len(self.levels):
            raise ValueError(f"levels: got {list(self.levels)}, expected each level once")
        self.algorithm.check(environments=self.environments, total_steps=self.total_steps)
        if self.gate.max_units < len(self.level_names):
            raise ValueError(
                f"gate.max_units: got {self.gate.max_units}, expected at least one unit for each "
                f"of the {len(self.level_names)} levels"
            )
        stuck = self.game.stuck_limit_steps
        if stuck >= self.game.max_steps:
            raise ValueError(
                f"game.stuck_limit_steps: got {stuck}, expected less than max_steps = "
                f"{self.game.max_steps} (0 = off)"
            )
        return self

    @property
    def level_names(self) -> tuple[str, ...]:
        """The levels of the task, in order."""
        return self.levels or task_levels(self.task)

    @property
    def observation(self) -> str:
        """The kind of observation, which the task's name says."""
        return split_task(self.task)[1]

    def content_hash(self) -> str:
        """Hash everything that can change the result; 64 hexadecimal characters (SHA-256)."""
        return identity_of_experiment(self)

    def to_yaml(self) -> str:
        """Write the whole configuration, defaults included, as YAML that loads to the same."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def load_config(path: Path | str, overrides: tuple[str, ...] = ()) -> ExperimentConfig:
    """Read an experiment.

    Args:
        path: the YAML file.
        overrides: ``"key.sub=value"`` each, the value read as YAML; they win over the file.

    Raises:
        ConfigError: the file cannot be read, or does not describe an experiment that can be run.
    """
    return parse_config(load_yaml(path, overrides), str(path))


def parse_config(values: dict[str, Any], source: str) -> ExperimentConfig:
    """Turn plain values into an experiment.

    Args:
        values: as YAML or JSON gives them.
        source: what the error message names as the place to correct.

    Raises:
        ConfigError: with the key, what was got and what is allowed, for every fault.
    """
    if isinstance(values.get("algorithm"), dict):
        values = {**values, "algorithm": {"name": "ppo", **values["algorithm"]}}
    return parse_settings(ExperimentConfig, values, source)
