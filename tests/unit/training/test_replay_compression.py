"""Packed observations of a replay buffer are restored byte for byte."""

from __future__ import annotations

import numpy as np
import pytest

from mario.training.replay_compression import pack, unpack


def stacks(rows: int, environments: int, ends: list[tuple[int, int]]) -> np.ndarray:
    """Observations as a run stores them; `ends` are (row, environment) where an episode begins."""
    generator = np.random.default_rng(0)
    found = np.zeros((rows, environments, 4, 84, 84), np.uint8)
    for row in range(rows):
        for environment in range(environments):
            frame = generator.integers(0, 256, (84, 84), dtype=np.uint8)
            if row == 0 or (row, environment) in ends:
                found[row, environment] = frame
            else:
                found[row, environment, :3] = found[row - 1, environment, 1:]
                found[row, environment, 3] = frame
    return found


@pytest.mark.parametrize("block", [3, 1_024])
def test_round_trip_and_size(block: int) -> None:
    ends = [(4, 0), (4, 1), (9, 1)]
    observations = stacks(12, 2, ends)
    packed = pack(observations, block)
    assert sorted(map(tuple, packed["where"].tolist())) == sorted([(0, 0), (0, 1), *ends])
    out = np.full((15, 2, 4, 84, 84), 7, np.uint8)
    unpack(packed["newest"], packed["whole"], packed["where"], out)  # type: ignore[arg-type]
    assert np.array_equal(out[:12], observations)
    assert (out[12:] == 7).all()


def test_unrelated_observations_are_restored_too() -> None:
    observations = np.random.default_rng(1).integers(0, 256, (5, 3, 4, 84, 84), dtype=np.uint8)
    packed = pack(observations)
    out = np.zeros_like(observations)
    unpack(packed["newest"], packed["whole"], packed["where"], out)  # type: ignore[arg-type]
    assert np.array_equal(out, observations)
