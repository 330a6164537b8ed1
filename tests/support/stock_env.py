"""Stock gym-super-mario-bros, patched for NumPy 2 only; and the usual wrappers."""

from __future__ import annotations

import contextlib
import io
from collections import deque
from functools import cache
from typing import Any

import numpy as np

from mario.game.console.nes_py import _nes_env_class


class _IntRam(np.ndarray):
    """RAM whose single bytes are Python integers, as the package expects from NumPy 1."""

    def __getitem__(self, key: Any) -> Any:
        value = super().__getitem__(key)
        return int(value) if isinstance(value, np.integer) else value


@cache
def stock_class() -> type[Any]:
    """Return `SuperMarioBrosEnv` with integer RAM reads (`gym.make` itself fails on NumPy 2)."""
    _nes_env_class()  # patches nes-py's ROM reader
    with contextlib.redirect_stderr(io.StringIO()):
        from gym_super_mario_bros import SuperMarioBrosEnv

    class StockEnv(SuperMarioBrosEnv):  # type: ignore[misc]
        def _ram_buffer(self) -> Any:
            return super()._ram_buffer().view(_IntRam)

    return StockEnv


def stock_env(level: str | None) -> Any:
    """Make the stock environment of one level, or of the whole game for None."""
    target = None if level is None else tuple(int(part) for part in level.split("-"))
    return stock_class()(rom_mode="vanilla", target=target)


class UsualStack:
    """The usual preprocessing: JoypadSpace, skip 4, grey, resize 84 × 84, stack 4 (OpenCV)."""

    def __init__(self, level: str, buttons: tuple[int, ...], skip: int = 4) -> None:
        self._env = stock_env(level)
        self._buttons = buttons
        self._skip = skip
        self._frames: deque[np.ndarray] = deque(maxlen=4)

    def _frame(self, screen: np.ndarray) -> np.ndarray:
        import cv2

        grey = cv2.cvtColor(np.ascontiguousarray(screen), cv2.COLOR_RGB2GRAY)
        return cv2.resize(grey, (84, 84), interpolation=cv2.INTER_AREA)

    def reset(self) -> np.ndarray:
        frame = self._frame(self._env.reset())
        self._frames.extend([frame] * 4)
        return np.stack(self._frames)

    def step(self, action: int) -> tuple[np.ndarray, float, bool, dict[str, Any]]:
        total, done, info = 0.0, False, {}
        for _ in range(self._skip):
            screen, reward, done, info = self._env.step(self._buttons[action])
            total += reward
            if done:
                break
        self._frames.append(self._frame(screen))
        return np.stack(self._frames), total, done, info

    def close(self) -> None:
        self._env.close()
