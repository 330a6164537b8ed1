"""Compare the observation with an independent computation."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mario.errors import ConsoleError
from mario.game.smb.observations.pixels import FrameStack, area_resize, frame_from_rgb, grey


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_area_resize_is_opencv_inter_area_within_one_level(seed: int) -> None:
    screen = np.random.default_rng(seed).integers(0, 256, (240, 256), dtype=np.uint8)
    theirs = cv2.resize(screen, (84, 84), interpolation=cv2.INTER_AREA)
    assert np.abs(area_resize(screen).astype(int) - theirs).max() <= 1


def test_area_resize_by_exact_fractions() -> None:
    """Compute one output pixel by the definition, in integers: rows of 20/7, columns of 64/21."""
    screen = np.random.default_rng(1).integers(0, 256, (240, 256), dtype=np.uint8)
    ours = area_resize(screen)
    for row, column in [(0, 0), (1, 1), (41, 17), (83, 83), (0, 83)]:
        total = 0
        for y in range(240):
            height = max(0, min(20 * (row + 1), 7 * (y + 1)) - max(20 * row, 7 * y))
            for x in range(256):
                width = max(0, min(64 * (column + 1), 21 * (x + 1)) - max(64 * column, 21 * x))
                total += height * width * int(screen[y, x])
        assert ours[row, column] == (total + 640) // 1280


@pytest.mark.parametrize("shape", [(240, 256), (100, 91), (83, 85), (257, 257)])
def test_area_resize_of_any_size_by_repeating_pixels(shape: tuple[int, int]) -> None:
    """Repeat each pixel 84 times along each axis, so that an output pixel sums whole pixels."""
    screen = np.random.default_rng(2).integers(0, 256, shape, dtype=np.uint8)
    height, width = shape
    rows = screen.astype(np.int64).repeat(84, axis=0).reshape(84, height, width).sum(axis=1)
    total = rows.repeat(84, axis=1).reshape(84, 84, width).sum(axis=2)
    expected = (2 * total + height * width) // (2 * height * width)
    np.testing.assert_array_equal(area_resize(screen), expected)


def test_constant_pictures_stay_constant() -> None:
    for level in (0, 1, 127, 255):
        assert (area_resize(np.full((240, 256), level, np.uint8)) == level).all()


def test_grey_is_luma_in_whole_numbers() -> None:
    rgb = np.array([[[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 255]]], np.uint8)
    assert grey(rgb).tolist() == [[76, 150, 29, 255]]


def test_grey_of_every_red_and_green_beside_some_blue() -> None:
    for blue in (0, 1, 77, 128, 254, 255):
        red, green = np.mgrid[0:256, 0:256]
        rgb = np.stack([red, green, np.full_like(red, blue)], axis=-1)
        expected = (299 * red + 587 * green + 114 * blue + 500) // 1000
        np.testing.assert_array_equal(grey(rgb.astype(np.uint8)), expected)


def test_stack_keeps_the_newest_frame_last_and_hands_out_copies() -> None:
    stack = FrameStack()
    stack.fill(np.full((84, 84), 1, np.uint8))
    stack.push(np.full((84, 84), 2, np.uint8))
    first = stack.observation()
    stack.push(np.full((84, 84), 3, np.uint8))
    assert first[:, 0, 0].tolist() == [1, 1, 1, 2]
    assert stack.observation()[:, 0, 0].tolist() == [1, 1, 2, 3]


@pytest.mark.parametrize("shape", [(240, 256), (256, 240, 3), (240, 256, 4)])
def test_other_pictures_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ConsoleError, match=r"expected uint8 \(240, 256, 3\)"):
        frame_from_rgb(np.zeros(shape, np.uint8))
