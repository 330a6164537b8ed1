"""The set of sinks: an error or a hang of one sink reaches neither the run nor the others."""

from __future__ import annotations

import threading
import time

import pytest

from mario.config.run_states import RunStatus
from mario.training.sinks import RunEnd, SinkSet, TrainingSink, end_timeout_seconds, wait_until_done
from tests.support.slow_machine import without_a_stall

END = RunEnd(RunStatus.INTERRUPTED, "SIGTERM", 0)


class Meets(TrainingSink):
    """Ends only when the others are ending, too."""

    def __init__(self, barrier: threading.Barrier) -> None:
        self._barrier = barrier

    def on_end(self, end: RunEnd) -> None:
        self._barrier.wait()


class Hangs(TrainingSink):
    """Waits for a server that never answers, without a limit of its own."""

    def __init__(self, released: threading.Event) -> None:
        self._released = released

    def on_end(self, end: RunEnd) -> None:
        self._released.wait()


class Waits(TrainingSink):
    """Waits for a server that never answers, as long as it may."""

    def __init__(self) -> None:
        self.gave_up = False

    def on_end(self, end: RunEnd) -> None:
        never = threading.Event()
        self.gave_up = not wait_until_done(never.wait, end_timeout_seconds(end), end.stop)


class Fails(TrainingSink):
    def flush(self) -> bool:
        raise OSError("the disk is full")

    def on_end(self, end: RunEnd) -> None:
        raise OSError("the disk is full")


def test_sinks_end_in_parallel_so_that_their_waits_do_not_add_up() -> None:
    barrier = threading.Barrier(3, timeout=120)
    sinks = SinkSet([Meets(barrier) for _ in range(3)])
    sinks.on_end(END)
    assert sinks.failures == [0, 0, 0]  # one after another, the first would wait for ever


def test_a_failed_flush_is_counted_and_blocks_no_checkpoint() -> None:
    barrier = threading.Barrier(1, timeout=120)
    sinks = SinkSet([Fails(), Meets(barrier)])
    assert sinks.flush()
    sinks.on_end(END)
    assert sinks.failures == [2, 0]


def test_a_sink_that_hangs_is_abandoned() -> None:
    def left_behind() -> None:
        released = threading.Event()
        sinks = SinkSet([Hangs(released), Hangs(released), Meets(threading.Barrier(1))])
        began = time.monotonic()
        try:
            sinks.on_end(END)
        finally:
            released.set()
        # Both share one wait; without it the run would never end.
        assert time.monotonic() - began < 8
        assert sinks.failures == [1, 1, 0]

    without_a_stall(left_behind)


@pytest.mark.parametrize("after_seconds", [0.0, 0.5])
def test_a_finished_run_that_is_stopped_waits_more_briefly(after_seconds: float) -> None:
    def ends() -> None:
        stop, released, waits = threading.Event(), threading.Event(), Waits()
        sinks = SinkSet([Hangs(released), waits])
        end = RunEnd(RunStatus.FINISHED, "", 0, stop)
        timer = threading.Timer(after_seconds, stop.set)
        began = time.monotonic()
        timer.start()
        try:
            sinks.on_end(end)
        finally:
            released.set()
        # Not stopped: 20 s for the servers, and 2 more for the one that hangs.
        assert time.monotonic() - began < 8
        assert waits.gave_up  # in time to close its journal, so it is not left behind
        assert sinks.failures == [1, 0]

    without_a_stall(ends)


def test_waiting_ends_when_everything_is_done() -> None:
    done, stop = threading.Event(), threading.Event()
    assert not wait_until_done(done.wait, 0.3, stop)
    threading.Timer(0.3, done.set).start()
    assert wait_until_done(done.wait, 60, stop)
    stop.set()
    assert wait_until_done(done.wait, 0, stop)  # what is done is seen, however short the wait
