"""What must be shown for a promotion."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from mario.config.section import PositiveInt, Probability, Section


class GateConfig(Section):
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
