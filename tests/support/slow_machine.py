"""For what holds only within some time: on a machine that was too slow for it, it is tried again.

A service that gives a request one second may refuse one that a busy machine sent in two: that is
no failure of the service, and no proof of anything.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import pytest


class TooSlow(Exception):
    """The machine took longer than the attempt may take to prove something."""


@contextmanager
def proves_within(seconds: float) -> Iterator[None]:
    """Take a failure of the block for one only if the block did not last too long.

    Raises:
        TooSlow: it failed, and lasted for longer.
    """
    begun = time.monotonic()
    try:
        yield
    except (Exception, pytest.fail.Exception) as failure:
        if (lasted := time.monotonic() - begun) < seconds:
            raise
        raise TooSlow(f"{lasted:.1f} s instead of less than {seconds:g}") from failure


def without_a_stall(attempt: Callable[[], None], attempts: int = 4) -> None:
    """Repeat what measures time until it comes out right: a machine stalls, but not every time."""
    for _ in range(attempts - 1):
        with suppress(AssertionError):
            return attempt()
    return attempt()


def until_proved(attempt: Callable[[], None], attempts: int = 5) -> None:
    """Repeat what the machine was too slow for; what fails in time fails at once.

    Raises:
        TooSlow: it was too slow every time.
    """
    for _ in range(attempts - 1):
        with suppress(TooSlow):
            return attempt()
    return attempt()
