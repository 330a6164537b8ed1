"""The game of the web page, played frame by frame by the champion or by a person.

An episode follows ``mario-eval-v1``: the same start, the same draws for sticky frames, a decision
every ``frame_skip`` frames. So an episode that only the champion plays ends as an evaluation of the
same level and seed does.
"""

from __future__ import annotations

import io
from typing import Any, Literal

import numpy as np
from PIL import Image

from mario.config.evaluation import NO_OP_MAX_FRAMES, STICKY_PROBABILITY
from mario.config.levels import LEVEL_NAMES
from mario.errors import ConsoleError
from mario.game.console.contract import Console, UInt8Array
from mario.game.console.factory import open_console
from mario.game.rng import SplitMix64
from mario.game.smb import stage
from mario.game.smb.memory import read_state
from mario.game.smb.observations.pixels import FrameStack, area_resize

_STATE_NAMES = ("x_px", "y_px", "score", "coins", "time_left", "status", "world", "stage")

Ended = Literal["flag", "death", "time"]


def open_live_console(name: str) -> Console:
    """Open a console; ``auto`` prefers the native one and falls back to nes-py.

    Raises:
        ConsoleError: the console is not available.
    """
    if name == "nes-py":
        return open_console("nes-py")
    try:
        return open_console("native")
    except (ConsoleError, ImportError):
        if name == "native":
            raise
        return open_console("nes-py")


class LiveGame:
    """A game in progress; not thread-safe.

    Attributes:
        level: the current level.
        seed: seed of the episode.
        frame: controllable frames played in the episode.
        buttons: button byte of the last frame.
        ended: why the episode ended, or None.
        furthest_x_px: furthest x of the episode.
    """

    def __init__(self, console: Console) -> None:
        """Play on ``console``; call :meth:`start` before anything else."""
        self._console = console
        self._stack = FrameStack()
        self._generator = SplitMix64(0)
        self._level_states: dict[str, bytes] = {}
        self._sticky = True
        self.level = LEVEL_NAMES[0]
        self.seed = 0
        self.frame = 0
        self.buttons = 0
        self.ended: Ended | None = None
        self.furthest_x_px = 0

    def start(self, level: str, seed: int, *, sticky: bool) -> None:
        """Start an episode.

        Args:
            level: ``1-1`` … ``8-4``.
            seed: 0 … 2**63 − 1; drives the start and the sticky frames.
            sticky: whether a frame may repeat the buttons of the frame before.

        Raises:
            ConfigError: there is no such level.
        """
        known = self._level_states.get(level)
        if known is None:
            stage.start_level(self._console, level)
            self._level_states[level] = self._console.save_state()
        else:
            self._console.load_state(known)
        self.level, self.seed, self._sticky = level, seed, sticky
        self._generator = SplitMix64(seed)
        self.frame = self.buttons = 0
        self.ended = None
        for _ in range(self._generator.below(NO_OP_MAX_FRAMES + 1)):
            if self._play(0):
                break
        self.furthest_x_px = int(read_state(self._console.ram)["x_px"])
        self._stack.fill(self._picture())

    def play(self, buttons: int, frame_skip: int) -> bool:
        """Play one controllable frame.

        Args:
            buttons: button byte.
            frame_skip: frames between two decisions.

        Returns:
            Whether a decision is due: the observation has just changed.
        """
        if self.ended is not None:
            return False
        held = self._sticky and self._generator.uniform() < STICKY_PROBABILITY
        if not held:
            self.buttons = buttons
        over = self._play(self.buttons)
        self.frame += 1
        state = read_state(self._console.ram)
        self.furthest_x_px = max(self.furthest_x_px, int(state["x_px"]))
        if over:
            dead = int(state["time_left"]) > 0
            self.ended = "flag" if state["flag"] else "death" if dead else "time"
        due = self.frame % frame_skip == 0
        if due:
            self._stack.push(self._picture())
        return due and not over

    def observation(self) -> UInt8Array:
        """The observation, uint8 (4, 84, 84)."""
        return self._stack.observation()

    def status(self) -> dict[str, Any]:
        """The numbers that the page shows beside the picture."""
        state = read_state(self._console.ram)
        return {
            **{name: int(state[name]) for name in _STATE_NAMES},
            "level": self.level,
            "seed": self.seed,
            "frame": self.frame,
            "buttons": self.buttons,
            "furthest_x_px": self.furthest_x_px,
            "ended": self.ended,
        }

    def png(self) -> bytes:
        """The screen as PNG, 256 × 240."""
        buffer = io.BytesIO()
        screen = np.ascontiguousarray(self._console.screen_rgb())
        Image.fromarray(screen).save(buffer, "PNG", compress_level=1)
        return buffer.getvalue()

    def _picture(self) -> UInt8Array:
        return area_resize(self._console.screen_grey())

    def _play(self, buttons: int) -> bool:
        """Play one frame; return whether the episode ended."""
        stage.play_frame(self._console, buttons)
        if stage.is_over(self._console, single_level=True):
            return True
        stage.skip_unplayable(self._console, single_level=True)
        return False
