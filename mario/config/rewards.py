"""The settings of each reward, and the list of all rewards."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import (
    BeforeValidator,
    Field,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

from mario.config.section import Section

Milestones = dict[Annotated[int, Field(ge=1)], float]

_STANDARD: Milestones = {650: 150.0, 900: 100.0, 1200: 150.0, 1600: 200.0, 2000: 250.0}
_SPEEDRUN: Milestones = {
    400: 50.0, 800: 100.0, 1200: 150.0, 1600: 200.0, 2000: 250.0, 2400: 300.0, 2800: 350.0,
    3200: 400.0,
}  # fmt: skip


class RewardConfig(Section):
    """The terms of a reward, in reward units before `scale`; `mario.game.smb.rewards` adds them up.

    Attributes:
        name: which reward.
        scale: what the sum is multiplied by.
        forward_per_px: for each px to the right, or for each px of new furthest x.
        backward_per_px: for each px to the left.
        idle_per_step: for a step that does not change x.
        time_per_unit: for each unit of the game's clock that passes (about 0.4 s).
        flag: for the flag pole or the axe.
        death: for a death, the game's time-out included.
        milestones: bonus by furthest x in px, paid once an episode when it is reached.
        game_weight: weight of gym-super-mario-bros' own reward; not a setting.
        new_x_only: whether forward pays only for furthest x that is new in the episode; not a
            setting.
    """

    name: str
    scale: Annotated[float, Field(gt=0)] = 1.0
    forward_per_px: float = 0.0
    backward_per_px: float = 0.0
    idle_per_step: float = 0.0
    time_per_unit: float = 0.0
    flag: float = 0.0
    death: float = 0.0
    milestones: Milestones = Field(default_factory=dict)
    game_weight: ClassVar[float] = 0.0
    new_x_only: ClassVar[bool] = False

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, values: Any) -> Any:
        """Read null as the reward's own default."""
        if not isinstance(values, dict):
            return values
        return {key: value for key, value in values.items() if value is not None}

    @model_serializer(mode="wrap")
    def _defaults_as_null(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Write null for a term that was not set, so that reading it gives the default."""
        kept = self.model_fields_set | {"name", "scale"}
        return {key: value if key in kept else None for key, value in handler(self).items()}


class GameReward(RewardConfig):
    """The reward of gym-super-mario-bros alone."""

    name: Literal["game"] = "game"
    game_weight: ClassVar[float] = 1.0

    @model_validator(mode="after")
    def _no_terms(self) -> Self:
        """Refuse terms: this reward has none."""
        given = [key for key in type(self).model_fields
                 if key in self.model_fields_set - {"name", "scale"}]  # fmt: skip
        if given:
            raise ValueError(
                f"game.reward.{given[0]}: got a value beside reward game, which is "
                "gym-super-mario-bros' own and has no parameters but scale; expected none, or "
                "reward standard, which adds them to it"
            )
        return self


class StandardReward(RewardConfig):
    """The reward of gym-super-mario-bros plus shaping."""

    name: Literal["standard"] = "standard"
    forward_per_px: float = 0.1
    backward_per_px: float = -0.1
    idle_per_step: float = -0.2
    death: float = -50.0
    milestones: Milestones = _STANDARD
    game_weight: ClassVar[float] = 1.0


class SpeedrunReward(RewardConfig):
    """Pay for speed: every px and every step counts."""

    name: Literal["speedrun"] = "speedrun"
    forward_per_px: float = 1.0
    backward_per_px: float = -0.4
    idle_per_step: float = -1.0
    flag: float = 1000.0
    death: float = -200.0
    milestones: Milestones = _SPEEDRUN


class ProgressReward(RewardConfig):
    """Pay for progress: only px that are new in the episode count."""

    name: Literal["progress"] = "progress"
    forward_per_px: float = 0.1
    time_per_unit: float = -0.1
    flag: float = 10.0
    death: float = -2.5
    new_x_only: ClassVar[bool] = True


def _progress_by_default(values: Any) -> Any:
    return {"name": "progress", **values} if isinstance(values, dict) else values


#: Every reward; `name` chooses one.
Reward = Annotated[
    GameReward | StandardReward | SpeedrunReward | ProgressReward,
    Field(discriminator="name"),
    BeforeValidator(_progress_by_default),
]
