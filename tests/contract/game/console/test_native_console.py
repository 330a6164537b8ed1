"""The guarantees of the native console beyond the contract of all consoles."""

from __future__ import annotations

import struct
import sys
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import mario.game
from mario.errors import ConsoleError, RomError, SaveStateError
from mario.game.console.cartridge import rom_bytes, rom_path
from mario.game.console.factory import open_console
from mario.game.console.native import NativeConsole, native_module
from mario.game.smb.memory import Ram
from mario.game.smb.observations.pixels import area_resize
from mario.game.smb.stage import start_level

RIGHT_B, RIGHT_A = 0x82, 0x81


def changed(rom: bytes, position: int, byte: int) -> bytes:
    return rom[:position] + bytes([byte]) + rom[position + 1 :]


@pytest.mark.parametrize(
    ("image", "reason"),
    [
        (b"", "header"),
        (b"PK\x03\x04" + bytes(40_000), "header"),
        (rom_bytes()[:10], "header"),
        (rom_bytes()[:20_000], "truncated"),
        (changed(rom_bytes(), 6, 0x11), "mapper 1"),
        (changed(rom_bytes(), 7, 0x40), "mapper 64"),
        (changed(rom_bytes(), 6, 0x05), "trainer"),
        (changed(rom_bytes(), 6, 0x03), "battery"),
        (changed(rom_bytes(), 6, 0x09), "four-screen"),
        (changed(rom_bytes(), 9, 0x01), "PAL"),
        (changed(rom_bytes(), 4, 0), "PRG-ROM"),
        (changed(rom_bytes(), 5, 0), "CHR-ROM"),
    ],
)
def test_other_cartridges_are_refused(image: bytes, reason: str) -> None:
    with pytest.raises(RomError, match=rf"{reason}.*expected.*use the super-mario-bros\.nes"):
        NativeConsole(image)


def test_a_missing_cartridge_says_where_it_comes_from(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    rom_path.cache_clear()
    monkeypatch.setitem(sys.modules, "gym_super_mario_bros", None)
    with pytest.raises(RomError, match=r"gym-super-mario-bros not found.*run `make setup`"):
        rom_path()
    # A package of that name without its cartridge.
    package = tmp_path / "gym_super_mario_bros"
    package.mkdir()
    (package / "__init__.py").touch()
    monkeypatch.delitem(sys.modules, "gym_super_mario_bros")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(RomError, match=r"super-mario-bros\.nes not found.*reinstall"):
        rom_path()


def test_without_its_extension_the_error_says_the_way_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """An installation without a compiler has no such module."""
    monkeypatch.delattr(mario.game, "_native", raising=False)
    monkeypatch.setitem(sys.modules, "mario.game._native", None)
    with pytest.raises(ConsoleError, match=r"install a C\+\+17 compiler.*`console: nes-py`"):
        open_console("native")


def test_a_save_state_goes_on_in_another_console() -> None:
    first, second = NativeConsole(), NativeConsole(draw=False)
    start_level(first, "1-2")
    first.step(RIGHT_B, 50)
    state = first.save_state()
    assert len(state) < 10_000
    second.load_state(state)
    assert second.save_state() == state
    assert np.array_equal(first.screen_rgb(), second.screen_rgb())
    for buttons in (RIGHT_A, RIGHT_B, 0x40):
        first.step(buttons, 13)
        second.step(buttons, 13)
        assert np.array_equal(first.ram, second.ram)
        assert np.array_equal(first.screen_grey(), second.screen_grey())


def test_a_state_of_another_cartridge_or_version_is_refused() -> None:
    console = NativeConsole()
    console.step(0, 30)
    state = console.save_state()
    with pytest.raises(SaveStateError, match="of cartridge"):
        NativeConsole(changed(rom_bytes(), 5000, 0xAA)).load_state(state)
    with pytest.raises(SaveStateError, match="version 9"):
        console.load_state(state[:4] + struct.pack("<H", 9) + state[6:])


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_a_forged_state_is_refused_or_harmless(data: st.DataObject) -> None:
    """The checksum is valid, so that the checks of single fields are tested."""
    console = NativeConsole()
    console.step(0, 40)
    state = bytearray(console.save_state())
    for _ in range(data.draw(st.integers(1, 6))):
        state[data.draw(st.integers(14, 120))] = data.draw(st.integers(0, 255))
    state[10:14] = struct.pack("<I", zlib.crc32(state[14:]))
    before = console.ram.copy()
    try:
        console.load_state(bytes(state))
    except SaveStateError:
        assert np.array_equal(console.ram, before)
    console.step(RIGHT_B, 3)
    console.screen_rgb()


def test_a_console_that_does_not_draw_shows_the_same_pictures() -> None:
    drawing, lazy = NativeConsole(), NativeConsole(draw=False)
    for console in (drawing, lazy):
        start_level(console, "1-1")
    for frames in (1, 7, 30):
        for console in (drawing, lazy):
            console.step(RIGHT_B, frames)
            console.poke(Ram.COINS, frames % 10)  # the picture shows nothing that is poked later
        assert np.array_equal(drawing.screen_rgb(), lazy.screen_rgb())
        assert lazy.ram[Ram.COINS] == frames % 10


def test_one_machine_has_one_save_state_whoever_looked() -> None:
    """Drawing leaves no trace in the save-state: consoles draw in turns."""
    looked_at, left_alone = NativeConsole(draw=True), NativeConsole(draw=False)
    for frame in range(400):
        held = RIGHT_B if frame % 40 else 0x08
        looked_at.step(held)
        left_alone.step(held)
        assert looked_at.save_state() == left_alone.save_state(), frame


def test_the_picture_at_power_on_is_black() -> None:
    assert not NativeConsole().screen_rgb().any()


def test_consoles_in_threads_do_not_disturb_each_other() -> None:
    def play(console: NativeConsole) -> bytes:
        start_level(console, "1-1")
        for _ in range(20):
            console.step(RIGHT_B, 10)
        return console.save_state()

    with ThreadPoolExecutor(4) as pool:
        states = list(pool.map(play, [NativeConsole() for _ in range(8)]))
    assert set(states) == {play(NativeConsole())}


@settings(max_examples=40, deadline=None)
@given(hnp.arrays(np.uint8, (240, 256)))
def test_resizing_is_exact_for_any_picture(picture: np.ndarray) -> None:
    assert np.array_equal(native_module().area_resize(picture), area_resize(picture))


@pytest.mark.parametrize("value", [0, 1, 127, 254, 255])
def test_resizing_keeps_a_flat_picture(value: int) -> None:
    flat = np.full((240, 256), value, np.uint8)
    assert (native_module().area_resize(flat) == value).all()


def test_resizing_is_exact_for_noise() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (50, 240, 256), np.uint8)
    for picture in noise:
        assert np.array_equal(native_module().area_resize(picture), area_resize(picture))
