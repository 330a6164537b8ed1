"""Buttons and action sets are those of nes-py and gym-super-mario-bros."""

from __future__ import annotations

import pytest
from gym_super_mario_bros import actions as stock

from mario.config.action_sets import ACTION_SETS
from mario.errors import ConfigError
from mario.game.smb.actions import (
    Button,
    action_set,
)

STOCK_BUTTONS = {
    "NOOP": 0,
    "right": 0b1000_0000,
    "left": 0b0100_0000,
    "down": 0b0010_0000,
    "up": 0b0001_0000,
    "start": 0b0000_1000,
    "select": 0b0000_0100,
    "B": 0b0000_0010,
    "A": 0b0000_0001,
}


@pytest.mark.parametrize(
    ("name", "theirs"),
    [
        ("right_only", stock.RIGHT_ONLY),
        ("simple", stock.SIMPLE_MOVEMENT),
        ("complex", stock.COMPLEX_MOVEMENT),
    ],
)
def test_action_sets_are_those_of_gym_super_mario_bros(name: str, theirs: list[list[str]]) -> None:
    expected = [sum(STOCK_BUTTONS[button] for button in buttons) for buttons in theirs]
    assert [action.buttons for action in action_set(name)] == expected


def test_button_bits_are_the_joypad_wrapper_of_nes_py() -> None:
    from nes_py.wrappers import JoypadSpace

    theirs = {name: bits for name, bits in JoypadSpace._button_map.items() if name != "NOOP"}
    assert {b.name.lower(): int(b) for b in Button} == {n.lower(): v for n, v in theirs.items()}


def test_the_left_jump_set_adds_one_action_to_simple() -> None:
    *simple, last = action_set("simple_left_jump")
    assert tuple(simple) == action_set("simple")
    assert last.buttons == Button.LEFT | Button.A


def test_action_names_differ_within_a_set() -> None:
    for name, actions in ACTION_SETS.items():
        assert len(set(actions)) == len({a.buttons for a in action_set(name)}) == len(actions)


def test_an_action_with_an_unknown_button_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ACTION_SETS, "typo", ("noop", "rigth+A"))
    with pytest.raises(ConfigError, match=r"rigth\+A.*'RIGTH'.*RIGHT"):
        action_set("typo")


def test_an_unknown_set_says_which_there_are() -> None:
    with pytest.raises(ConfigError, match="expected one of right_only"):
        action_set("fast")
