"""Two consoles that run in lockstep and are compared after every frame: ours and nes-py."""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import numpy as np

from mario.errors import MarioError
from mario.game import stage
from mario.game.console import UInt8Array
from mario.game.native_console import NativeConsole
from mario.game.nes_py_console import NesPyConsole

PLAYTHROUGHS = Path(__file__).parents[1] / "data" / "playthroughs.json"

RIGHT, LEFT, DOWN, UP, START, SELECT, B, A = 0x80, 0x40, 0x20, 0x10, 0x08, 0x04, 0x02, 0x01
_HABITS = (RIGHT | B, RIGHT | A | B, RIGHT, RIGHT | A, 0, A, LEFT, LEFT | A, DOWN, UP, B, START)


class Divergence(AssertionError):
    """The two consoles differ."""


class LockstepConsole:
    """A console that is both; every frame's memory and picture are compared.

    Now and then the native console is replaced by a new one that was given its save-state, so that
    every comparison after that also says that the save-state held everything.

    Attributes:
        frames: frames compared so far.
        restores: save-states gone on from so far.
    """

    def __init__(self, seed: int = 0, *, restore_every_frames: int = 97) -> None:
        self.native = NativeConsole()
        self.oracle = NesPyConsole()
        self.frames = 0
        self.restores = 0
        self._random = random.Random(seed)
        self._restore_every_frames = restore_every_frames

    @property
    def ram(self) -> UInt8Array:
        return self.oracle.ram  # the native console changes, this view stays

    def reset(self) -> None:
        self.native.reset()
        self.oracle.reset()

    def poke(self, address: int, value: int) -> None:
        self.native.poke(address, value)
        self.oracle.poke(address, value)

    def step(self, buttons: int, frames: int = 1) -> None:
        for _ in range(frames):
            self.oracle.step(buttons)
            self.native.step(buttons)
            self.frames += 1
            self._compare(buttons)
            if self._random.randrange(self._restore_every_frames) == 0:
                self._change_native()

    def _change_native(self) -> None:
        state = self.native.save_state()
        # A picture drawn from a save-state is the same picture too.
        self.native = NativeConsole(draw=self._random.random() < 0.5)
        self.native.load_state(state)
        self.restores += 1
        self._compare(0)

    def _compare(self, buttons: int) -> None:
        if self.native.ram.tobytes() != self.oracle.ram.tobytes():
            where = np.flatnonzero(self.native.ram != self.oracle.ram)
            raise Divergence(
                f"frame {self.frames}, buttons {buttons:#04x}: memory differs at "
                f"{[hex(a) for a in where[:8]]} ({len(where)} bytes)"
            )
        ours, theirs = self.native.screen_rgb(), self.oracle.screen_rgb()
        if ours.tobytes() != theirs.tobytes():
            rows, columns = np.nonzero((ours != theirs).any(axis=-1))
            raise Divergence(
                f"frame {self.frames}, buttons {buttons:#04x}: picture differs in {len(rows)} "
                f"pixels, the first at row {rows[0]}, column {columns[0]}"
            )

    def screen_rgb(self) -> UInt8Array:
        return self.native.screen_rgb()

    def screen_grey(self) -> UInt8Array:
        return self.native.screen_grey()

    def save_state(self) -> bytes:
        raise NotImplementedError

    def load_state(self, state: bytes) -> None:
        raise NotImplementedError


@cache
def playthroughs() -> dict[str, list[int]]:
    """Button bytes, one a controllable frame, that clear each level from its start."""
    data = json.loads(PLAYTHROUGHS.read_text())
    skip = data["frame_skip"]
    return {
        level: [buttons for buttons, steps in play for _ in range(steps * skip)]
        for level, play in data["levels"].items()
    }


def random_buttons(seed: int) -> Iterator[int]:
    """A restless player who mostly runs to the right, and sometimes presses anything."""
    player = random.Random(seed)
    while True:
        buttons = (
            player.randrange(256)
            if player.random() < 0.1
            else player.choices(_HABITS, (6, 8, 3, 3, 2, 1, 2, 1, 1, 1, 1, 0.3))[0]
        )
        yield from itertools.repeat(buttons, player.choice((1, 2, 4, 8, 16, 30)))


def play(console: LockstepConsole, level: str | None, frames: int, seed: int) -> dict[str, int]:
    """Play `frames` frames: from the start of a level to its end, then on at random.

    A level with a known playthrough is played to its flag or axe (even seeds) or until the
    playthrough is left half-way (odd seeds). What follows the end is played too, with no frame
    skipped: the walk into the castle, the next level, deaths, the title screen.

    Returns:
        What happened, counted: flags, deaths, areas, frames, restores.

    Raises:
        Divergence: the consoles differ.
    """
    console_frames, restores = console.frames, console.restores
    stage.start_level(console, level)
    seen = {"flags": 0, "deaths": 0, "areas": 0}
    films = playthroughs()
    film = films.get(level or "", [])
    if seed % 4 == 3 and f"{level} vine" in films:
        film = films[f"{level} vine"]
    elif seed % 2:
        film = film[: len(film) * (seed // 2 % 3 + 1) // 4]
    for buttons in film:
        area = int(console.ram[0x750])
        stage.play_frame(console, buttons)
        if stage.is_over(console, single_level=True):
            break
        stage.skip_unplayable(console, single_level=True)
        seen["areas"] += area != int(console.ram[0x750])
    dying = flag = False
    for buttons in random_buttons(seed):
        if console.frames - console_frames >= frames:
            break
        console.step(buttons)
        ram = console.ram
        now_dying = int(ram[0x0E]) == 0x0B or int(ram[0xB5]) > 1
        seen["deaths"] += now_dying and not dying
        now_flag = int(ram[0x770]) == 2 or (int(ram[0x1D]) == 3 and 0x31 in ram[0x16:0x1B])
        seen["flags"] += now_flag and not flag
        dying, flag = now_dying, now_flag
    return {
        **seen,
        "frames": console.frames - console_frames,
        "restores": console.restores - restores,
    }


def check_native_is_built() -> None:
    """Say at once what to do when the extension is missing."""
    try:
        NativeConsole()
    except MarioError as error:
        raise SystemExit(str(error)) from error
