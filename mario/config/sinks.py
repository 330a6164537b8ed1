"""The sinks: where training is recorded beside the store."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import field_validator

from mario.config.section import Section


class SinksConfig(Section):
    """Where training is recorded beside the store; no sink can stop a run.

    Each field is the one setting of the sink of that name, which `mario.tracking` implements in the
    module of that name; False and ``off`` leave the sink out.
    """

    mlflow: bool = True
    prometheus: bool = True
    tensorboard: bool = False
    wandb: Literal["off", "offline", "online"] = "off"

    @property
    def enabled(self) -> tuple[str, ...]:
        """The names of the sinks that are on, in the order of declaration."""
        return tuple(name for name in SINKS if getattr(self, name) not in (False, "off"))

    @field_validator("wandb", mode="before")
    @classmethod
    def _off(cls, value: Any) -> Any:
        """Accept an `off` without quotes, which YAML reads as False."""
        return "off" if value is False else value


#: The name of every sink.
SINKS = tuple(SinksConfig.model_fields)
