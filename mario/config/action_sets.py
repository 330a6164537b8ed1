"""The action sets that a policy can choose from."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator

_RIGHT_ONLY = ("noop", "right", "right+A", "right+B", "right+A+B")
_SIMPLE = (*_RIGHT_ONLY, "A", "left")

#: Every action set by its name. An action is named after its buttons: right, left, down, up, start,
#: select, B, A. `right_only`, `simple` and `complex` are those of gym-super-mario-bros, in order.
ACTION_SETS: dict[str, tuple[str, ...]] = {
    "right_only": _RIGHT_ONLY,
    "simple": _SIMPLE,
    "simple_left_jump": (*_SIMPLE, "left+A"),
    "complex": (*_SIMPLE, "left+A", "left+B", "left+A+B", "down", "up"),
}


def _listed(name: str) -> str:
    if name not in ACTION_SETS:
        raise ValueError(f"got {name!r}, expected one of {', '.join(ACTION_SETS)}")
    return name


ActionSetName = Annotated[str, AfterValidator(_listed)]
