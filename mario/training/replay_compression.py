"""Packs the observations of a replay buffer for checkpoints, to a quarter, without loss.

An observation is four frames of which three are in the observation before it. So only the newest
frame of each is kept, and the whole observation where that does not hold (an episode's start, the
place where the ring closes).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from mario.game.console.contract import UInt8Array


def pack(observations: UInt8Array, block_rows: int = 256) -> dict[str, npt.NDArray[np.generic]]:
    """Pack observations.

    Args:
        observations: uint8 (T, N, 4, 84, 84), in the order they were stored in.
        block_rows: rows compared at once, ≥ 1; bounds the memory that packing needs.

    Returns:
        ``newest`` uint8 (T, N, 84, 84), ``whole`` uint8 (W, 4, 84, 84) and ``where`` int64 (W, 2),
        the row and environment of each.
    """
    rows, environments, frames = observations.shape[:3]
    pixels = observations.reshape(rows, environments, frames, -1)
    # Eight pixels at a time: a run that is stopped has little time.
    words = pixels.view(np.uint64) if pixels.shape[-1] % 8 == 0 else pixels
    irregular = np.ones((rows, environments), np.bool_)
    for start in range(1, rows, block_rows):
        stop = min(start + block_rows, rows)
        older = words[start:stop, :, :-1]
        before = words[start - 1 : stop - 1, :, 1:]
        irregular[start:stop] = np.any(older != before, axis=(2, 3))
    where = np.argwhere(irregular)
    return {
        "newest": np.ascontiguousarray(observations[:, :, -1]),
        "whole": observations[where[:, 0], where[:, 1]],
        "where": where.astype(np.int64),
    }


def unpack(
    newest: UInt8Array, whole: UInt8Array, where: npt.NDArray[np.int64], out: UInt8Array
) -> None:
    """Unpack what :func:`pack` packed.

    Args:
        newest: uint8 (T, N, 84, 84).
        whole: uint8 (W, 4, 84, 84).
        where: int64 (W, 2).
        out: uint8 (at least T, N, 4, 84, 84); its first T rows are written.
    """
    irregular: dict[int, list[int]] = {}
    for index, (row, _) in enumerate(where):
        irregular.setdefault(int(row), []).append(index)
    for row in range(len(newest)):
        if row:
            out[row, :, :-1] = out[row - 1, :, 1:]
        out[row, :, -1] = newest[row]
        for index in irregular.get(row, ()):
            out[row, where[index, 1]] = whole[index]
