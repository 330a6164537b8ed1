"""The observation `pixels`: its only definition, for training, evaluation and serving.

uint8 (4, 84, 84), channels first, newest frame last: the screen in grey, resized by exact area
average. All arithmetic is on integers, so that every implementation gives the same bytes.
"""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

from mario.errors import ConsoleError
from mario.game.console.contract import UInt8Array
from mario.game.smb.observations.contract import ObservationKind

STACK = 4
SIZE_PX = 84
OBSERVATION_SHAPE = (STACK, SIZE_PX, SIZE_PX)

OBSERVATION = ObservationKind("pixels", "grey-area-84-v1", OBSERVATION_SHAPE, "uint8")

_LUMA = np.array([299, 587, 114], dtype=np.float32)


def grey(rgb: UInt8Array) -> UInt8Array:
    """Convert a picture to grey with the luma weights of ITU-R BT.601.

    Args:
        rgb: uint8 (..., 3), red first.

    Returns:
        uint8 (...): (299 R + 587 G + 114 B + 500) // 1000.
    """
    # float32 is exact here, as every partial sum is an integer below 2**24, and uses fast BLAS.
    luma = (rgb.reshape(-1, 3).astype(np.float32) @ _LUMA).astype(np.uint32)
    return ((luma + 500) // 1000).astype(np.uint8).reshape(rgb.shape[:-1])


@cache
def _overlap(pixels_in: int, pixels_out: int) -> npt.NDArray[np.float32]:
    """Compute the overlap of output pixel o with input pixel i along one axis, float32 (out, in).

    Lengths are in units of 1 / lcm, so that every overlap is an integer. The pattern repeats gcd
    times along the axis; this is one repeat: from 240 to 84, 7 output pixels of 20 input pixels.
    """
    repeats = math.gcd(pixels_in, pixels_out)
    # An output pixel is as many units long as a repeat has input pixels, and vice versa.
    unit_in, unit_out = pixels_out // repeats, pixels_in // repeats
    out = np.arange(unit_in)[:, None] * unit_out
    inp = np.arange(unit_out)[None, :] * unit_in
    shared = np.minimum(out + unit_out, inp + unit_in) - np.maximum(out, inp)
    return np.asarray(np.maximum(shared, 0), dtype=np.float32)


def area_resize(screen: UInt8Array) -> UInt8Array:
    """Resize a grey screen to 84 × 84 by exact area average, rounded half up.

    Differs by at most one grey level from OpenCV's `INTER_AREA`, which rounds in float32.

    Args:
        screen: uint8 (height, width), in practice (240, 256).

    Returns:
        uint8 (84, 84).
    """
    height, width = screen.shape
    rows, columns = _overlap(height, SIZE_PX), _overlap(width, SIZE_PX)
    area = rows.shape[1] * columns.shape[1]
    # Every partial sum is an integer of at most 255 areas; float32 is exact below 2**24.
    exact: np.dtype[Any] = np.dtype(np.float32 if 255 * area < 1 << 24 else np.float64)
    by_rows = screen.reshape(-1, rows.shape[1], width).astype(exact)
    halfway = (rows.astype(exact) @ by_rows).reshape(-1, columns.shape[1])
    total = (halfway @ columns.T.astype(exact)).reshape(SIZE_PX, SIZE_PX).astype(np.int64)
    return np.asarray((total + area // 2) // area, dtype=np.uint8)


def frame_from_rgb(rgb: UInt8Array) -> UInt8Array:
    """Convert a picture, uint8 (240, 256, 3), to one frame, uint8 (84, 84).

    Raises:
        ConsoleError: the picture has another shape or dtype.
    """
    if rgb.ndim != 3 or rgb.shape != (240, 256, 3) or rgb.dtype != np.uint8:
        raise ConsoleError(
            f"screen of shape {rgb.shape} and dtype {rgb.dtype}: expected uint8 (240, 256, 3)"
        )
    return area_resize(grey(rgb))


class FrameStack:
    """The last four frames, oldest first."""

    def __init__(self) -> None:
        """Start with black frames; call :meth:`fill` before use."""
        self._frames = np.zeros(OBSERVATION_SHAPE, dtype=np.uint8)

    def fill(self, frame: UInt8Array) -> None:
        """Start an episode: fill the stack with its first frame, uint8 (84, 84)."""
        self._frames[:] = frame

    def push(self, frame: UInt8Array) -> None:
        """Drop the oldest frame and append the newest, uint8 (84, 84)."""
        self._frames[:-1] = self._frames[1:]
        self._frames[-1] = frame

    def observation(self) -> UInt8Array:
        """Copy the stack: uint8 (4, 84, 84), newest frame last."""
        return self._frames.copy()

    def restore(self, frames: UInt8Array) -> None:
        """Set the whole stack, uint8 (4, 84, 84)."""
        self._frames[:] = frames
