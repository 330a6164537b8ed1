"""Where training is recorded beside the store."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import field_validator

from mario.config.section import Section


class SinksConfig(Section):
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
