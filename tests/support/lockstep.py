"""Run the native console and nes-py in lockstep, and compare them after every frame."""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Iterator
from functools import cache

import numpy as np

from mario.errors import MarioError
from mario.game.console.contract import UInt8Array
from mario.game.console.native import NativeConsole
from mario.game.console.nes_py import NesPyConsole
from mario.game.smb import stage
from mario.game.smb.actions import Button
from mario.game.smb.memory import Ram
from tests.support.paths import ROOT

PLAYTHROUGHS = ROOT / "tests" / "data" / "playthroughs.json"

RIGHT, LEFT, DOWN, UP, START, SELECT, B, A = map(int, reversed(Button))
_HABITS = (RIGHT | B, RIGHT | A | B, RIGHT, RIGHT | A, 0, A, LEFT, LEFT | A, DOWN, UP, B, START)


#: Values of `Ram.PLAYER_STATE` ("GameEngineSubroutine" in the SMB disassembly).
_VINE, _SIDE_PIPE, _PIPE, _POLE, _LOST, _PLAYING = 1, 2, 3, 4, 6, 8
_WATER, _CASTLE = 0, 3  # `Ram.AREA_TYPE`
_GAME, _VICTORY = 1, 2  # `Ram.MODE`
_LOOP_PAGES = 4  # how far a wrong path in a castle sends Mario back


_SEEN = (Ram.PLAYER_STATE, Ram.MODE, Ram.PLAYER_PAGE, Ram.AREA_TYPE)


class Divergence(AssertionError):
    """The two consoles differ."""


class Sights:
    """Count events of the play, read from the game's memory once a frame.

    Attributes:
        counts: frames; of them under water and in castles; pipes entered, vines climbed to their
            end, wrong paths that sent Mario back, lives lost, poles held, axes reached.
    """

    NAMES = (
        "frames", "water_frames", "castle_frames", "pipes", "vines", "loops", "deaths", "poles",
        "axes",
    )  # fmt: skip

    def __init__(self) -> None:
        self.counts = dict.fromkeys(self.NAMES, 0)
        self._state = self._mode = self._page = 0

    def look(self, ram: UInt8Array) -> None:
        """Count what the last frame shows."""
        state, mode, page, kind = (int(ram[at]) for at in _SEEN)
        counts, entered = self.counts, state if state != self._state else -1
        counts["frames"] += 1
        counts["axes"] += mode == _VICTORY != self._mode
        if mode == _GAME:
            playing = state == _PLAYING == self._state
            counts["water_frames"] += playing and kind == _WATER
            counts["castle_frames"] += playing and kind == _CASTLE
            back = (self._page - page) & 0xFF
            counts["loops"] += playing and kind == _CASTLE and back == _LOOP_PAGES
            counts["pipes"] += entered in (_SIDE_PIPE, _PIPE)
            counts["vines"] += entered == _VINE
            counts["deaths"] += entered == _LOST
            counts["poles"] += entered == _POLE
        self._state, self._mode, self._page = state, mode, page


class LockstepConsole:
    """Both consoles as one; memory and picture are compared after every frame.

    Now and then the native console is replaced by a new one that was given its save-state, so that
    every comparison after that also says that the save-state held everything.

    Attributes:
        sights: what was come through so far, frames included.
        restores: save-states gone on from so far.
    """

    def __init__(self, seed: int = 0, *, restore_every_frames: int = 97) -> None:
        self.native = NativeConsole()
        self.oracle = NesPyConsole()
        self.sights = Sights()
        self.restores = 0
        self._random = random.Random(seed)
        self._restore_every_frames = restore_every_frames

    @property
    def ram(self) -> UInt8Array:
        return self.oracle.ram  # this view stays valid when the native console is replaced

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
            self._compare(buttons)
            self.sights.look(self.oracle.ram)
            if self._random.randrange(self._restore_every_frames) == 0:
                self._change_native()

    @property
    def frames(self) -> int:
        """Frames compared so far."""
        return self.sights.counts["frames"]

    def _change_native(self) -> None:
        state = self.native.save_state()
        # A picture that is drawn from a save-state is the same.
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
    """Read the button bytes, one per controllable frame, that clear each level."""
    data = json.loads(PLAYTHROUGHS.read_text())
    skip = data["frame_skip"]
    return {
        level: [buttons for buttons, steps in play for _ in range(steps * skip)]
        for level, play in data["levels"].items()
    }


def random_buttons(seed: int) -> Iterator[int]:
    """Yield random buttons, mostly to the right."""
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
        What happened, counted: :attr:`Sights.NAMES` and restores.

    Raises:
        Divergence: the consoles differ.
    """
    before, restores = dict(console.sights.counts), console.restores
    stage.start_level(console, level)
    films = playthroughs()
    film = films.get(level or "", [])
    if seed % 4 == 3 and f"{level} vine" in films:
        film = films[f"{level} vine"]
    elif seed % 2:
        film = film[: len(film) * (seed // 2 % 3 + 1) // 4]
    for buttons in film:
        stage.play_frame(console, buttons)
        if stage.is_over(console, single_level=True):
            break
        stage.skip_unplayable(console, single_level=True)
    for buttons in random_buttons(seed):
        if console.frames - before["frames"] >= frames:
            break
        console.step(buttons)
    seen = {name: count - before[name] for name, count in console.sights.counts.items()}
    return {**seen, "restores": console.restores - restores}


def check_native_is_built() -> None:
    """Fail early, with advice, when the native extension is missing."""
    try:
        NativeConsole()
    except MarioError as error:
        raise SystemExit(str(error)) from error
