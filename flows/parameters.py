"""Parameters that several flows share. Prefect's page shows each flow's model as a form."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Self

from prefect.runtime import flow_run
from pydantic import BaseModel, ConfigDict, Field

PolicyName = Annotated[str, Field(pattern=r"^(champion|challenger|[1-9][0-9]*)$")]


class FlowParameters(BaseModel):
    """Base of every flow's parameters: unknown names are refused, and values do not change."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    @classmethod
    def of_this_run(cls) -> Self:
        """Read the parameters of the current flow run; parameters not given have their defaults."""
        return cls.model_validate(_given())


class TrainParameters(FlowParameters):
    """An experiment to train."""

    config: str = Field("configs/demo.yaml", description="Path of the experiment's YAML.")
    overrides: tuple[str, ...] = Field((), description="key=value each, such as total_steps=50000.")
    next_seed: bool = Field(
        False, description="Train with the file's seed, or the next that no run of the task has."
    )


def experiment_name(config: str) -> str:
    """Name an experiment after its file, whatever folder the file is in.

    The `configs/ppo_1-1.yaml` of a working tree is the `/app/configs/ppo_1-1.yaml` of an image.
    """
    return Path(config).stem


def experiment_run_name() -> str:
    """Name a flow run ``FLOW EXPERIMENT``: the `flow_run_name` of every flow that trains.

    Automations find the flows that train by this function, and their runs by this name
    (`flows/automations.py`).
    """
    config = _given().get("config", TrainParameters().config)
    return f"{flow_run.flow_name} {experiment_name(config)}"


def _given() -> dict[str, Any]:
    return dict(flow_run.parameters.get("parameters") or {})
