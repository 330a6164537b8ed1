"""Each implementation of a console keeps the contract."""

from __future__ import annotations

import struct
import zlib
from itertools import pairwise

import numpy as np
import pytest

from mario.config.game import ConsoleName
from mario.errors import ConfigError, ConsoleError, SaveStateError
from mario.game.console.contract import Console
from mario.game.console.factory import open_console
from mario.game.smb.levels import LEVELS
from mario.game.smb.memory import Ram, read_state
from mario.game.smb.observations.pixels import grey
from mario.game.smb.stage import start_level

RIGHT, RIGHT_B, RIGHT_A = 0x80, 0x82, 0x81


def test_ram_and_screens_have_their_shapes(console: Console) -> None:
    console.step(0, 60)
    assert (console.ram.shape, console.ram.dtype) == ((2048,), np.uint8)
    assert (console.screen_rgb().shape, console.screen_rgb().dtype) == ((240, 256, 3), np.uint8)
    assert (console.screen_grey().shape, console.screen_grey().dtype) == ((240, 256), np.uint8)


def test_grey_is_the_grey_of_the_colours(console: Console) -> None:
    start_level(console, "1-1")
    assert np.array_equal(console.screen_grey(), grey(console.screen_rgb()))


def test_ram_is_a_live_view_that_cannot_be_written(console: Console) -> None:
    ram = console.ram
    before = ram.copy()
    console.step(0, 30)
    assert not np.array_equal(ram, before)
    with pytest.raises(ValueError, match="read-only"):
        ram[0] = 1


def test_screens_are_copies(console: Console) -> None:
    """Views of memory instead of copies would make every frame of a video equal the last."""
    start_level(console, "1-1")
    kept = [console.screen_rgb()]
    for _ in range(4):
        console.step(RIGHT_B, 10)
        kept.append(console.screen_rgb())
    for earlier, later in pairwise(kept):
        assert not np.array_equal(earlier, later)


def test_stepping_frames_at_once_is_stepping_them_one_by_one(console: Console) -> None:
    start_level(console, "1-1")
    state = console.save_state()
    console.step(RIGHT, 25)
    at_once = (console.ram.copy(), console.screen_rgb())
    console.load_state(state)
    for _ in range(25):
        console.step(RIGHT)
    assert np.array_equal(console.ram, at_once[0])
    assert np.array_equal(console.screen_rgb(), at_once[1])


def test_no_frames_change_nothing(console: Console) -> None:
    console.step(0, 30)
    before = console.ram.copy()
    console.step(RIGHT, 0)
    assert np.array_equal(console.ram, before)


def test_buttons_move_mario(console: Console) -> None:
    start_level(console, "1-1")
    state = console.save_state()
    console.step(RIGHT_B, 60)
    ran = int(read_state(console.ram)["x_px"])
    console.load_state(state)
    console.step(RIGHT, 60)
    walked = int(read_state(console.ram)["x_px"])
    console.load_state(state)
    console.step(0, 60)
    stood = int(read_state(console.ram)["x_px"])
    assert stood < walked < ran


def test_reset_is_a_power_cycle(console: Console) -> None:
    console.step(0, 40)
    fresh = console.ram.copy()
    start_level(console, "1-1")
    console.step(RIGHT_A, 50)
    console.reset()
    console.step(0, 40)
    assert np.array_equal(console.ram, fresh)


def test_poke_is_seen_at_once_and_by_the_game(console: Console) -> None:
    start_level(console, "1-1")
    console.poke(Ram.TIME, 1)
    console.poke(Ram.TIME + 1, 2)
    assert int(read_state(console.ram)["time_left"]) // 10 == 12
    console.step(0, 30)
    assert 118 <= int(read_state(console.ram)["time_left"]) <= 129


def test_save_states_continue_the_same_in_any_console(
    console: Console, console_name: ConsoleName
) -> None:
    start_level(console, "1-1")
    states, truths = [], []
    for chunk in range(3):
        console.step(RIGHT_B if chunk % 2 else RIGHT_A, 20)
        states.append(console.save_state())
    for state in states:
        console.load_state(state)
        console.step(RIGHT, 30)
        truths.append((console.ram.copy(), console.screen_rgb()))
    other = open_console(console_name)
    for state, (ram, screen) in reversed(list(zip(states, truths, strict=True))):
        other.load_state(state)
        other.step(RIGHT, 30)
        assert np.array_equal(other.ram, ram)
        assert np.array_equal(other.screen_rgb(), screen)


@pytest.mark.parametrize("damage", ["empty", "short", "flipped", "foreign"])
def test_broken_save_states_are_refused_and_change_nothing(console: Console, damage: str) -> None:
    start_level(console, "1-1")
    state = console.save_state()
    console.step(RIGHT, 10)
    before = console.ram.copy()
    broken = {
        "empty": b"",
        "short": state[:-1],
        "flipped": state[:-3] + bytes([state[-3] ^ 0x40]) + state[-2:],
        "foreign": b"\x00" * len(state),
    }[damage]
    with pytest.raises(SaveStateError):
        console.load_state(broken)
    assert np.array_equal(console.ram, before)
    console.step(RIGHT, 1)


def test_a_forged_save_state_of_nes_py_is_refused_and_changes_nothing() -> None:
    """The checksum is valid; the native console's own tests forge its save-states."""
    console = open_console("nes-py")
    console.step(0, 30)
    before = console.ram.copy()
    for entry in ((2, 0, 1), (0, 0x100, 1), (1, 0x800, 1), (1, 0, 0x100)):
        body = console.save_state()[8:] + struct.pack("<BHI", *entry)
        with pytest.raises(SaveStateError, match="expected frames"):
            console.load_state(b"NPY1" + struct.pack("<I", zlib.crc32(body)) + body)
        assert np.array_equal(console.ram, before)


@pytest.mark.parametrize(
    "call",
    [
        lambda c: c.step(256),
        lambda c: c.step(-1),
        lambda c: c.step(0, -1),
        lambda c: c.poke(2048, 0),
        lambda c: c.poke(0, 256),
        lambda c: c.poke(-1, 0),
    ],
)
def test_impossible_calls_are_refused(console: Console, call: object) -> None:
    with pytest.raises(ConsoleError, match="expected"):
        call(console)  # type: ignore[operator]


@pytest.mark.parametrize("name", ["1-1", "1-2", "2-2", "4-4", "8-4"])
def test_levels_start_where_they_say(console: Console, name: str) -> None:
    start_level(console, name)
    state = read_state(console.ram)
    level = LEVELS[name]
    assert (int(state["world"]), int(state["stage"]), int(state["area"])) == (
        level.world,
        level.stage,
        level.area,
    )
    assert int(state["player_state"]) == 0x08
    assert not state["dying"]
    assert not state["flag"]


def test_unknown_level_and_console_say_what_exists(console: Console) -> None:
    with pytest.raises(ConfigError, match='expected "1-1" to "8-4"'):
        start_level(console, "9-1")
    with pytest.raises(ConsoleError, match="expected native or nes-py"):
        open_console("snes")  # type: ignore[arg-type]
