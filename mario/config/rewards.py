"""The settings of a reward."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from mario.config.section import Section


class RewardConfig(Section):
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
