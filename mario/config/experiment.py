"""The experiment: one YAML file, one frozen ExperimentConfig, one content hash.

Unknown keys, wrong types and impossible combinations are refused with the file, the key, what was
got and what is allowed. Every duration says its unit in its name.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from mario.config.yaml_file import load_yaml
from mario.errors import ConfigError

LEVEL_PATTERN = r"^[1-8]-[1-4]$"
LevelName = Annotated[str, Field(pattern=LEVEL_PATTERN)]
PositiveInt = Annotated[int, Field(ge=1, strict=True)]
NonNegativeInt = Annotated[int, Field(ge=0, strict=True)]
Probability = Annotated[float, Field(ge=0, le=1)]
ScheduleName = Literal["constant", "linear"]
#: A training seed is below it: stable-baselines3 seeds NumPy's global generator, of 32 bits.
SEED_BOUND = 2**32


class _Section(BaseModel):
    """A part of the configuration: frozen, and no key that is not known."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", protected_namespaces=(), allow_inf_nan=False
    )


class RewardConfig(_Section):
    """How a step is rewarded; see `mario.game.smb.rewards` for the meaning of each name.

    Every number is in reward units per px, step or event, before `scale`. Where a number is left
    out, the named reward's own default holds.
    """

    name: Literal["game", "standard", "speedrun", "progress"] = "progress"
    scale: Annotated[float, Field(gt=0)] = 1.0
    forward_per_px: float | None = None
    backward_per_px: float | None = None
    idle_per_step: float | None = None
    time_per_unit: float | None = None
    flag: float | None = None
    death: float | None = None
    milestones: dict[Annotated[int, Field(ge=1)], float] | None = None

    @model_validator(mode="after")
    def _game_has_no_parameters(self) -> Self:
        """Refuse parameters that the named reward would not look at."""
        given = [key for key in type(self).model_fields
                 if key not in ("name", "scale") and getattr(self, key) is not None]  # fmt: skip
        if self.name == "game" and given:
            raise ValueError(
                f"game.reward.{given[0]}: got a value beside reward game, which is "
                "gym-super-mario-bros' own and has no parameters but scale; expected none, or "
                "reward standard, which adds them to it"
            )
        return self


class GameConfig(_Section):
    """The game as the policy meets it while training."""

    console: Literal["native", "nes-py"] = "native"
    actions: Literal["right_only", "simple", "simple_left_jump", "complex"] = "simple"
    frame_skip: PositiveInt = 4
    max_pool: bool = False
    no_op_max_frames: NonNegativeInt = 30
    sticky_probability: Annotated[float, Field(ge=0, lt=1)] = 0.25
    max_steps: PositiveInt = 3000
    stuck_limit_steps: NonNegativeInt = 0
    reward: RewardConfig = RewardConfig()


class PPOConfig(_Section):
    """Proximal policy optimisation (Schulman et al. 2017) as stable-baselines3 has it."""

    name: Literal["ppo"] = "ppo"
    learning_rate: Annotated[float, Field(gt=0)] = 2.5e-4
    learning_rate_schedule: ScheduleName = "constant"
    gamma: Annotated[float, Field(gt=0, le=1)] = 0.95
    gae_lambda: Probability = 0.95
    n_steps: PositiveInt = 128
    n_epochs: PositiveInt = 4
    batch_size: PositiveInt = 256
    clip_range: Annotated[float, Field(gt=0)] = 0.2
    clip_range_schedule: ScheduleName = "constant"
    entropy_coefficient: Annotated[float, Field(ge=0)] = 0.01
    entropy_schedule: ScheduleName = "constant"
    value_coefficient: Annotated[float, Field(ge=0)] = 0.5
    max_grad_norm: Annotated[float, Field(gt=0)] = 0.5
    target_kl: Annotated[float, Field(gt=0)] | None = None
    normalize_advantage: bool = True


class DQNConfig(_Section):
    """Deep Q-learning (Mnih et al. 2015) as stable-baselines3 has it."""

    name: Literal["dqn"]
    learning_rate: Annotated[float, Field(gt=0)] = 1e-4
    learning_rate_schedule: ScheduleName = "constant"
    gamma: Annotated[float, Field(gt=0, le=1)] = 0.99
    buffer_size: PositiveInt = 100_000
    learning_starts_steps: NonNegativeInt = 10_000
    batch_size: PositiveInt = 32
    train_frequency_steps: PositiveInt = 4
    gradient_steps: PositiveInt = 1
    target_update_steps: PositiveInt = 1_000
    exploration_initial: Probability = 1.0
    exploration_final: Probability = 0.1
    exploration_fraction: Probability = 0.2
    max_grad_norm: Annotated[float, Field(gt=0)] = 10.0


_ALGORITHMS: dict[str, type[_Section]] = {"ppo": PPOConfig, "dqn": DQNConfig}


class NetworkConfig(_Section):
    """The network and how it is computed; the precision changes speed, hardly the result."""

    features: Literal["nature", "small", "tiny"] = "nature"
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    channels_last: bool = True
    compile: bool = False
    device: Literal["auto", "cpu", "cuda"] = "auto"
    threads: NonNegativeInt = 0


class CheckpointConfig(_Section):
    """When the training state is written, and how many are kept."""

    every_steps: PositiveInt = 50_000
    keep: PositiveInt = 3


class SelectionConfig(_Section):
    """Choosing the best checkpoint, on selection seeds, while training goes on."""

    every_steps: PositiveInt = 100_000
    units: NonNegativeInt = 20


class CollapseConfig(_Section):
    """What happens when health.py says that the policy has collapsed."""

    action: Literal["warn", "stop", "rollback"] = "stop"
    max_rollbacks: NonNegativeInt = 2
    rollback_learning_rate_factor: Annotated[float, Field(gt=0, lt=1)] = 0.5


class SinksConfig(_Section):
    """Where training is recorded beside the store; none of them can stop a run."""

    mlflow: bool = True
    prometheus: bool = True
    tensorboard: bool = False
    wandb: Literal["off", "offline", "online"] = "off"

    @field_validator("wandb", mode="before")
    @classmethod
    def _off(cls, value: Any) -> Any:
        """Take YAML's word for it: an `off` without quotes is read as False."""
        return "off" if value is False else value


_SCHEDULER = re.compile(r"^(tcp|tls|ws|wss)://[^/\s]+:\d+$")


class EvaluationConfig(_Section):
    """How a version is evaluated under `mario-eval-v1`, and on how many machines.

    The engine changes no record: a unit's episode depends on policy, level and seed only.
    """

    screening_units: PositiveInt = 20
    environments: PositiveInt = 8
    action_selection: Literal["greedy", "sample"] = "greedy"
    engine: Literal["local", "dask"] = "local"
    workers: NonNegativeInt = 0  # of a Dask cluster on this machine; 0 = one for each core
    scheduler: str | None = None  # address of a Dask scheduler that runs, with workers of its own

    @model_validator(mode="after")
    def _engine(self) -> Self:
        """Refuse the settings of one engine beside another."""
        if self.engine == "local" and (self.workers or self.scheduler):
            raise ValueError(
                "evaluation.engine: got local beside workers or scheduler, expected dask with "
                "them, or neither of them"
            )
        if self.scheduler is not None and not _SCHEDULER.match(self.scheduler):
            raise ValueError(
                f"evaluation.scheduler: got {self.scheduler!r}, expected an address such as "
                "tcp://10.0.0.5:8786"
            )
        if self.workers and self.scheduler:
            raise ValueError(
                f"evaluation.workers: got {self.workers} beside the scheduler {self.scheduler}, "
                "expected one of them; a scheduler has workers of its own"
            )
        return self


class GateConfig(_Section):
    """What must be shown for a promotion; `mario.evaluation.rule.GateRule` explains each."""

    primary: Literal["score", "clear", "progress"] = "score"
    alpha: Annotated[float, Field(gt=0, lt=1)] = 0.05
    beta: Annotated[float, Field(gt=0, lt=1)] = 0.10
    delta: Annotated[float, Field(gt=0, lt=1)] | None = None
    max_units: PositiveInt = 2_000
    min_units: PositiveInt = 1
    clear_rate_at_least: Annotated[float, Field(gt=0, lt=1)] | None = None
    clear_units: PositiveInt = 59
    clear_confidence: Annotated[float, Field(gt=0, lt=1)] = 0.95
    level_alpha: Annotated[float, Field(gt=0, lt=1)] = 0.05
    level_margin: Annotated[float, Field(ge=0, lt=1)] = 0.0
    max_duplicate_share: Probability = 0.05
    max_logit_difference: Annotated[float, Field(gt=0)] = 1e-4
    max_action_share: Annotated[float, Field(gt=0, le=1)] = 0.99
    max_latency_ratio: Annotated[float, Field(gt=0)] = 2.0

    @model_validator(mode="after")
    def _units(self) -> Self:
        """Refuse a cap below what must be played."""
        if self.min_units > self.max_units:
            raise ValueError(
                f"gate.min_units: got {self.min_units}, expected at most max_units = "
                f"{self.max_units}"
            )
        if self.clear_rate_at_least is not None and self.clear_units > self.max_units:
            raise ValueError(
                f"gate.clear_units: got {self.clear_units}, expected at most max_units = "
                f"{self.max_units}, or the clear rate can never be shown"
            )
        return self


def _environments_of_this_machine() -> int:
    """8 games for each core, as a power of two from 8 to 128, which batch sizes divide.

    A run keeps the number it began with: it is written into the run's own configuration.
    """
    affinity = getattr(os, "sched_getaffinity", None)
    cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    return min(128, 8 << (cores.bit_length() - 1))


class ExperimentConfig(_Section):
    """One reproducible experiment.

    `environments` that is not set is taken from the machine when the configuration is read.
    """

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,63}$")]
    description: str = ""
    task: Annotated[str, Field(pattern=r"^([1-8]-[1-4]|all|[a-z][a-z0-9-]{0,31})$")] = "1-1"
    levels: tuple[LevelName, ...] = ()
    seed: Annotated[int, Field(ge=0, lt=SEED_BOUND, strict=True)] = 0
    total_steps: PositiveInt
    environments: PositiveInt = Field(default_factory=_environments_of_this_machine)
    algorithm: PPOConfig | DQNConfig = Field(default=PPOConfig(), discriminator="name")
    game: GameConfig = GameConfig()
    network: NetworkConfig = NetworkConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    selection: SelectionConfig = SelectionConfig()
    collapse: CollapseConfig = CollapseConfig()
    sinks: SinksConfig = SinksConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    gate: GateConfig = GateConfig()

    @model_validator(mode="after")
    def _combinations(self) -> Self:
        """Refuse values that are fine alone and impossible together."""
        known = self.task == "all" or ("-" in self.task and self.task[0].isdigit())
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
        if isinstance(self.algorithm, PPOConfig):
            rollout = self.algorithm.n_steps * self.environments
            if self.algorithm.batch_size < 2:
                raise ValueError("algorithm.batch_size: got 1, expected at least 2")
            if rollout % self.algorithm.batch_size:
                raise ValueError(
                    f"algorithm.batch_size: got {self.algorithm.batch_size}, expected a divisor of "
                    f"the rollout, n_steps x environments = {self.algorithm.n_steps} x "
                    f"{self.environments} = {rollout}"
                )
        elif self.algorithm.exploration_final > self.algorithm.exploration_initial:
            raise ValueError(
                f"algorithm.exploration_final: got {self.algorithm.exploration_final}, expected at "
                f"most exploration_initial = {self.algorithm.exploration_initial}"
            )
        elif self.algorithm.learning_starts_steps >= self.total_steps:
            raise ValueError(
                f"algorithm.learning_starts_steps: got {self.algorithm.learning_starts_steps}, "
                f"expected less than total_steps = {self.total_steps}, or nothing is learned"
            )
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
        if self.levels:
            return self.levels
        if self.task == "all":
            return tuple(f"{w}-{s}" for w in range(1, 9) for s in range(1, 5))
        return (self.task,)

    @property
    def model_name(self) -> str:
        """The registered model of the task."""
        return f"mario-{self.task}"

    def content_hash(self) -> str:
        """Hash everything that can change the result; 64 hexadecimal characters (SHA-256).

        The name and the description do not count: the same experiment under another name is the
        same experiment. Nor does it matter on how many machines it is evaluated.
        """
        places = {"engine": True, "workers": True, "scheduler": True}
        values = self.model_dump(
            mode="json", exclude={"name": True, "description": True, "evaluation": places}
        )
        text = json.dumps(values, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

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
    try:
        return ExperimentConfig.model_validate(values)
    except ValidationError as error:
        faults = [*_of_another_algorithm(error.errors()), *map(_describe, error.errors())]
        raise ConfigError(f"{source}: {'; '.join(filter(None, faults))}") from None


def _foreign(fault: Any) -> tuple[str, str, str] | None:
    """The algorithm, the key and the algorithm that has it, where one is set that another has."""
    loc = fault["loc"]
    if fault["type"] != "extra_forbidden" or len(loc) != 3 or loc[0] != "algorithm":
        return None
    name, key = str(loc[1]), str(loc[2])
    for other, model in _ALGORITHMS.items():
        if other != name and key in model.model_fields:
            return name, key, other
    return None


def _of_another_algorithm(faults: Sequence[Any]) -> Iterator[str]:
    """Say in one sentence that the settings are those of another algorithm."""
    found = [foreign for foreign in map(_foreign, faults) if foreign is not None]
    if found:
        name, _, other = found[0]
        keys = ", ".join(f"algorithm.{key}" for _, key, _ in found)
        yield (
            f"{keys}: unknown {'keys' if len(found) > 1 else 'key'} beside algorithm.name {name}, "
            f"got what only {other} has; remove that, or begin with a configuration of {name}"
        )


def _describe(fault: Any) -> str:
    """Say one fault as `key: got …, expected …`; nothing of what is said for several at once."""
    if _foreign(fault) is not None:
        return ""
    parts = [str(part) for part in fault["loc"] if part not in ("ppo", "dqn")]
    key = ".".join(parts)
    kind, context = fault["type"], fault.get("ctx", {})
    if kind == "value_error":
        return str(context["error"])
    if kind == "extra_forbidden":
        known = _keys_beside([str(part) for part in fault["loc"]])
        near = difflib.get_close_matches(parts[-1], known, n=1)
        hint = f"did you mean {near[0]}?" if near else f"expected one of {', '.join(known)}"
        return f"{key}: unknown key; {hint}"
    if kind == "missing":
        return f"{key}: missing; expected a value, it has no default"
    if kind == "union_tag_invalid":
        return f"algorithm.name: got {context['tag']}, expected {context['expected_tags']}"
    message = fault["msg"][0].lower() + fault["msg"][1:]
    if key == "levels" or parts[0] == "levels" or (key == "task" and kind.startswith("string")):
        message = 'expected "1-1" to "8-4" (world 1-8, stage 1-4)' + (
            ', "all", or a name with `levels`' if key == "task" else ""
        )
    return f"{key}: got {fault['input']!r}, {message}"


def _keys_beside(parts: list[str]) -> list[str]:
    """Name the keys that are allowed where an unknown one was found."""
    model: Any = ExperimentConfig
    for part in parts[:-1]:
        if part == "algorithm":
            return sorted(_ALGORITHMS[parts[1]].model_fields)
        annotation = model.model_fields[part].annotation
        if not (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
            return []
        model = annotation
    return sorted(model.model_fields)
