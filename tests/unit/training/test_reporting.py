"""When episodes reach the sinks, and what a report of progress says."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from mario.config.run_states import HealthState, RunStatus
from mario.training.episodes import EpisodeWindow
from mario.training.reporting import Reporter
from mario.training.sinks import Progress, RunStart, SinkSet
from tests.support.training_runs import Listener, small_config, training_episode


def test_episodes_count_at_once_and_are_delivered_at_the_boundary() -> None:
    listener, window = Listener(), EpisodeWindow(4)
    reporter = Reporter(SinkSet([listener]), window, 640)
    first, second = training_episode(0, 0), training_episode(1, 0)
    reporter.add([first])
    reporter.add([second])
    assert window.seen == 2
    assert not listener.episodes
    reporter.deliver()
    reporter.deliver()
    assert listener.episodes == [first, second]


def test_progress_has_the_rate_of_this_attempt() -> None:
    now = 10.0
    listener, heard, window = Listener(), [], EpisodeWindow(4)
    reporter = Reporter(
        SinkSet([listener]), window, 640, on_progress=heard.append, clock=lambda: now
    )
    reporter.start(RunStart(small_config(), Path("run"), 100, 2))
    reporter.add([training_episode(0, 0, x_px=100), training_episode(1, 0, x_px=300)])
    reporter.progress(100, HealthState.WARMING, {})
    now = 14.0
    reporter.progress(140, HealthState.HEALTHY, {"train/loss": 1})
    assert listener.progress == heard
    begun, last = heard
    assert (begun.steps_per_second, begun.seconds_left) == (0.0, None)
    assert last == Progress(
        total_steps=140, target_steps=640, steps_per_second=10.0, seconds_left=50.0, episodes=0,
        mean_furthest_px=200.0, mean_return=0.0, state=HealthState.HEALTHY,
        scalars={"train/loss": 1.0},
    )  # fmt: skip
    assert reporter.rate(140) == (4.0, 10.0)


def test_the_end_carries_the_event_that_stops_the_sinks() -> None:
    listener, stop = Listener(), threading.Event()
    reporter = Reporter(SinkSet([listener]), EpisodeWindow(1), 640)
    reporter.end(RunStatus.INTERRUPTED, "stopped on request", 64, stop)
    (end,) = listener.ends
    assert (end.status, end.reason, end.total_steps) == ("interrupted", "stopped on request", 64)
    assert end.stop is stop


@pytest.mark.parametrize("steps", [640, 700])
def test_nothing_is_left_at_the_target(steps: int) -> None:
    heard: list[Progress] = []
    times = iter((0.0, 1.0))
    reporter = Reporter(SinkSet(), EpisodeWindow(1), 640, heard.append, lambda: next(times))
    reporter.start(RunStart(small_config(), Path("run"), 0, 1))
    reporter.progress(steps, HealthState.HEALTHY, {})
    assert heard[0].seconds_left == 0
