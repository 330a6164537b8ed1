"""The buttons of the controller, and the button byte of each action.

A button byte is laid out as nes-py's controller register, most significant bit first: right, left,
down, up, start, select, B, A.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntFlag

from pydantic import Field

from mario.config.action_sets import ACTION_SETS
from mario.config.section import Section
from mario.errors import ConfigError


class Button(IntFlag):
    """One button of the controller as its bit in the button byte."""

    A = 0x01
    B = 0x02
    SELECT = 0x04
    START = 0x08
    UP = 0x10
    DOWN = 0x20
    LEFT = 0x40
    RIGHT = 0x80


class Action(Section):
    """One action that a policy can choose.

    Attributes:
        name: such as ``right+A``.
        buttons: the button byte that it presses.
    """

    name: str = Field(min_length=1, max_length=64)
    buttons: int = Field(ge=0, le=255)


ActionSet = tuple[Action, ...]


def _action(name: str) -> Action:
    """Read an action from its name, for example ``"right+A"``; ``"noop"`` presses nothing."""
    pressed = [] if name == "noop" else name.upper().split("+")
    try:
        return Action(name=name, buttons=int(sum(Button[button] for button in pressed)))
    except KeyError as error:
        raise ConfigError(
            f"action {name!r}: got no button {error}, expected some of "
            f"{', '.join(button.name or '' for button in Button)}; correct mario/config/"
            "action_sets.py"
        ) from None


def action_set(name: str) -> ActionSet:
    """Look up an action set by its name.

    Raises:
        ConfigError: there is no action set of that name.
    """
    if name not in ACTION_SETS:
        raise ConfigError(
            f"unknown action set {name!r}: expected one of {', '.join(ACTION_SETS)}; "
            "correct `game.actions`"
        )
    return tuple(_action(action) for action in ACTION_SETS[name])


def button_bytes(name: str, given: Sequence[int] | None = None) -> tuple[int, ...]:
    """List the button byte of each action, 0…255.

    Args:
        name: the action set.
        given: bytes that replace those of the set.

    Raises:
        ConfigError: there is no such action set, or `given` is empty or out of range.
    """
    if given is None:
        return tuple(action.buttons for action in action_set(name))
    if not given or not all(0 <= byte <= 0xFF for byte in given):
        raise ConfigError(
            f"buttons = {tuple(given)!r}: expected at least one button byte, each 0-255; correct "
            "the actions"
        )
    return tuple(given)
