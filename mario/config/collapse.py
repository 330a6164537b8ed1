"""Settings of the response to a collapse of the policy."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from mario.config.section import NonNegativeInt, Section


class CollapseConfig(Section):
    """What training does when the collapse detector reports a collapse."""

    action: Literal["warn", "stop", "rollback"] = "stop"
    max_rollbacks: NonNegativeInt = 2
    rollback_learning_rate_factor: Annotated[float, Field(gt=0, lt=1)] = 0.5
