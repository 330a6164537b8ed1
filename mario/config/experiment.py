"""The experiment: one YAML file becomes one frozen ExperimentConfig.

A message about an unknown key, a wrong type or an impossible combination names the file, the key,
what was got and what is allowed. The name of every duration states its unit.
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

#: Training seeds are below this: stable-baselines3 seeds NumPy's global 32-bit generator.
SEED_BOUND = 2**32


def _environments_of_this_machine() -> int:
    """Choose 8 games per core, as a power of two from 8 to 128, so that batch sizes divide it.

    A resumed run keeps its number, which is written into the run's own configuration.
    """
    affinity = getattr(os, "sched_getaffinity", None)
    cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    return min(128, 8 << (cores.bit_length() - 1))


class ExperimentConfig(Section):
    """One reproducible experiment.

    `environments` that is not set depends on the machine that reads the configuration.
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
        """Refuse values that are valid alone and impossible together."""
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
        """Levels of the task, in order."""
        return self.levels or task_levels(self.task)

    @property
    def observation(self) -> str:
        """Kind of observation, which the task's name states."""
        return split_task(self.task)[1]

    def content_hash(self) -> str:
        """Hash everything that can change the result; 64 hexadecimal characters (SHA-256)."""
        return identity_of_experiment(self)

    def to_yaml(self) -> str:
        """Write the whole configuration, defaults included, as YAML that loads to an equal one."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def load_config(path: Path | str, overrides: tuple[str, ...] = ()) -> ExperimentConfig:
    """Read an experiment.

    Args:
        path: the YAML file.
        overrides: ``"key.sub=value"`` each, the value as YAML; they override the file.

    Raises:
        ConfigError: the file cannot be read, or describes no valid experiment.
    """
    return parse_config(load_yaml(path, overrides), str(path))


def parse_config(values: dict[str, Any], source: str) -> ExperimentConfig:
    """Validate plain values as an experiment.

    Args:
        values: as YAML or JSON gives them.
        source: place to correct, for the error message.

    Raises:
        ConfigError: with the key, what was got and what is allowed, for every fault.
    """
    if isinstance(values.get("algorithm"), dict):
        values = {**values, "algorithm": {"name": "ppo", **values["algorithm"]}}
    return parse_settings(ExperimentConfig, values, source)
