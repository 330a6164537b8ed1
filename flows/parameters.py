"""What a person fills in to start a flow: Prefect's page makes its forms of these models."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from mario.config.levels import TaskName

_POLICY = r"^(champion|challenger|[1-9][0-9]*)$"


class FlowParameters(BaseModel):
    """Base of all: nothing unknown is accepted, nothing can be changed later."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class TrainParameters(FlowParameters):
    """An experiment to train.

    Attributes:
        config: path of the experiment's YAML.
        overrides: ``key=value`` each; they win over the file.
        next_seed: train with a seed of its own: the file's, or the next that no run has.
    """

    config: str = Field("configs/demo.yaml", description="Path of the experiment's YAML.")
    overrides: tuple[str, ...] = Field((), description="key=value each, such as total_steps=50000.")
    next_seed: bool = Field(
        False, description="Train with the file's seed, or the next that no run of the task has."
    )


class PipelineParameters(TrainParameters):
    """An experiment to train, judge and promote; see `TrainParameters`."""


class EvaluateParameters(FlowParameters):
    """A version to play under mario-eval-v1.

    Attributes:
        task: whose registered model is meant.
        policy: which version.
        units: how many units.
        family: which seeds.
    """

    task: TaskName = Field("1-1", description='The task: a level ("1-1") or "all".')
    policy: str = Field(
        "champion", pattern=_POLICY, description="champion, challenger or a version number."
    )
    units: int = Field(60, ge=1, le=10_000, description="Units (level, seed) to play.")
    family: Literal["selection", "screening"] = Field(
        "screening", description="Seeds: selection or screening; confirmation is the gate's."
    )


class PromoteParameters(FlowParameters):
    """A version to judge against the champion, and to promote where the gate says so.

    Attributes:
        config: names task, levels and gate.
        overrides: ``key=value`` each; they win over the file.
        policy: the challenger.
    """

    config: str = Field("configs/demo.yaml", description="Experiment with task, levels and gate.")
    overrides: tuple[str, ...] = Field((), description="key=value each, such as gate.max_units=40.")
    policy: str = Field(
        "challenger", pattern=_POLICY, description="challenger or a version number."
    )


class NightlyParameters(FlowParameters):
    """The champion to look after.

    Attributes:
        task: whose champion.
        units: fresh units to play.
        alpha: chance of an alarm on a night on which nothing changed.
    """

    task: TaskName = Field("1-1", description='The task: a level ("1-1") or "all".')
    units: int = Field(100, ge=10, le=10_000, description="Fresh units (level, seed) to play.")
    alpha: float = Field(
        0.001, gt=0, lt=0.5, description="Chance of an alarm on a night on which nothing changed."
    )
