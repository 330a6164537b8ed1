"""One game that a page watches: the champion plays it frame by frame, or the person at the page.

An episode is played as ``mario-eval-v1`` plays it: the same start, the same draws for sticky
frames, a decision every ``frame_skip`` frames. So what the page shows for a level and a seed is
what evaluation would have recorded, as long as nobody takes the pad.
"""

from __future__ import annotations

import io
from typing import Any, Literal

import numpy as np
from PIL import Image

from mario.errors import ConsoleError
from mario.game.console.contract import Console
from mario.game.console.factory import open_console
from mario.game.rng import SplitMix64
from mario.game.smb import stage
from mario.game.smb.levels import LEVEL_NAMES
from mario.game.smb.memory import read_state
from mario.game.smb.observations.pixels import FrameStack, area_resize
from mario.policy.manifest import Uint8Array

NO_OP_MAX_FRAMES = 30
STICKY_PROBABILITY = 0.25
_STATE_NAMES = ("x_px", "y_px", "score", "coins", "time_left", "status", "world", "stage")

Ended = Literal["flag", "death", "time"]


def open_live_console(name: str) -> Console:
    """Open a console; ``auto`` takes the native one where it was built.

    Raises:
        ConsoleError: there is none.
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
    """A game in progress. Not safe for two threads at once.

    Attributes:
        level: the level that is played.
        seed: seed of the episode.
        frame: controllable frames played in the episode.
        buttons: what the console saw on the last frame.
        ended: why the episode is over, or None.
        furthest_x_px: furthest x of the episode.
    """

    def __init__(self, console: Console) -> None:
        """Play on ``console``; call :meth:`start` first."""
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
            seed: 0 … 2**63 − 1, drives start and stickiness.
            sticky: whether a frame may keep the buttons of the frame before.

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
            buttons: button byte that is held.
            frame_skip: frames between two decisions.

        Returns:
            Whether a decision is due now: the observation has just changed.
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

    def observation(self) -> Uint8Array:
        """What the policy sees: uint8 (4, 84, 84)."""
        return self._stack.observation()

    def status(self) -> dict[str, Any]:
        """What the page writes beside the picture."""
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
        """The picture as PNG, 256 × 240."""
        buffer = io.BytesIO()
        screen = np.ascontiguousarray(self._console.screen_rgb())
        Image.fromarray(screen).save(buffer, "PNG", compress_level=1)
        return buffer.getvalue()

    def _picture(self) -> Uint8Array:
        return area_resize(self._console.screen_grey())

    def _play(self, buttons: int) -> bool:
        """Play one frame; return whether the episode is over."""
        stage.play_frame(self._console, buttons)
        if stage.is_over(self._console, single_level=True):
            return True
        stage.skip_unplayable(self._console, single_level=True)
        return False
