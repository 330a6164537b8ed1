"""What the collapse detector is given for each update, and what is reported of it."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import spearmanr

from mario.training.collapse_detector import HealthRules
from mario.training.episodes import EpisodeWindow
from mario.training.health_monitor import HealthMonitor, make_sample
from mario.training.sinks import SinkSet
from tests.support.training_runs import Listener, training_episode


class Monitored:
    """A monitor with a clock that the test sets."""

    def __init__(self, rules: HealthRules | None = None) -> None:
        self.now, self.listener, self.window = 0.0, Listener(), EpisodeWindow(2)
        sinks = SinkSet([self.listener])
        self.monitor = HealthMonitor(self.window, sinks, 1_000, rules, clock=lambda: self.now)

    def observe(self, steps: int, **signals: float) -> str:
        health = self.monitor.observe(
            steps, scalars={"train/loss": 1.0}, signals=signals, gradient_norm=1.0
        )
        return health.state


def test_updates_are_numbered_and_reported(caplog: pytest.LogCaptureFixture) -> None:
    run = Monitored(HealthRules(patience=2, warmup_updates=1))
    states = [run.observe(steps, entropy_ratio=0.01) for steps in (64, 128, 192)]
    assert states == ["warning", "collapsed", "collapsed"]
    assert [(s.update, s.total_steps, s.progress) for s, _ in run.listener.health] == [
        (1, 64, 0.064), (2, 128, 0.128), (3, 192, 0.192),
    ]  # fmt: skip
    assert [health.state for _, health in run.listener.health] == states
    assert run.monitor.health.state == run.monitor.reported_state == "collapsed"
    # Changes are logged, what stays is not.
    assert [record.getMessage() for record in caplog.records] == [
        "warning after 64 steps: entropy 1.0% of its maximum",
        "collapsed after 128 steps: entropy 1.0% of its maximum",
    ]


def test_a_late_update_is_a_signal_but_not_after_a_selection() -> None:
    run = Monitored(HealthRules(stale_seconds=10.0))
    for seconds in (0.0, 10.0, 30.0):
        run.now = seconds
        run.observe(64)
    run.now = 80.0
    run.monitor.restart_clock()
    run.now = 85.0
    run.observe(128)
    ages = [sample.seconds_since_update for sample, _ in run.listener.health]
    assert ages == [None, None, 20.0, None]


def test_a_refused_update_is_a_divergence() -> None:
    run = Monitored()
    run.window.add(training_episode(0, 0, x_px=80))
    assert run.monitor.refuse(64, "a gradient is not finite").state == "diverged"
    ((sample, _),) = run.listener.health
    assert (sample.update, sample.non_finite, sample.mean_furthest_px) == (1, True, 80)
    assert sample.gradient_norm is None


def test_after_a_rollback_the_policy_is_judged_by_its_own_episodes() -> None:
    run = Monitored(HealthRules(patience=1))
    run.window.add(training_episode(0, 0, x_px=80))
    run.observe(64, entropy_ratio=0.01)
    run.monitor.roll_back()
    assert run.monitor.reported_state == "collapsed"  # until the next update is judged
    run.window.add(training_episode(0, 1, x_px=90))  # begun before the rollback
    assert run.window.mean_furthest_px() is None
    assert run.observe(128) == "warming"
    assert run.listener.health[-1][1].changed


def test_a_resumed_run_continues_with_what_was_remembered() -> None:
    begun, resumed, whole = Monitored(), Monitored(), Monitored()
    for run in (begun, whole):
        run.window.add(training_episode(1, 0, x_px=80))
        run.observe(64, entropy_ratio=0.05)
    resumed.monitor.restore(begun.monitor.to_dict())
    assert (resumed.monitor.update, resumed.monitor.health.state) == (1, "warning")
    for run in (resumed, whole):
        run.observe(128, entropy_ratio=0.05)
    assert resumed.listener.health[-1] == whole.listener.health[-1]


def test_windows_of_episodes() -> None:
    """Means of the last 100 and 20 over all environments; of the last two of each environment."""
    generator = np.random.default_rng(1)
    window, records = EpisodeWindow(4), []
    for number in range(130):
        env_index = int(generator.integers(0, 3))  # environment 3 never finishes one
        x_px = int(generator.integers(40, 900))
        records.append(
            training_episode(env_index, number, x_px, float(0.1 * x_px + generator.normal(0, 9)))
        )
        window.finished += 1
        window.add(records[-1])
    window.finished += 1  # one more ended, which nobody recorded

    sample = make_sample(
        window, update=7, total_steps=640, target_steps=1_280, gradient_norm=2.0,
        scalars={"train/value_loss": 0.5}, signals={"value_loss": 0.5, "entropy_ratio": 0.4},
    )  # fmt: skip
    last, recent = records[-100:], records[-20:]
    assert sample.mean_furthest_px == pytest.approx(sum(r.furthest_x_px for r in last) / 100)
    assert sample.mean_return == pytest.approx(sum(r.shaped_return for r in last) / 100)
    assert sample.recent_furthest_px == pytest.approx(sum(r.furthest_x_px for r in recent) / 20)
    assert sample.recent_return == pytest.approx(sum(r.shaped_return for r in recent) / 20)
    correlation = spearmanr([r.shaped_return for r in recent], [r.furthest_x_px for r in recent])
    assert sample.return_progress_correlation == pytest.approx(correlation.statistic)
    for env_index in range(3):
        own = [r.furthest_x_px for r in records if r.env_index == env_index][-2:]
        assert sample.environments_furthest_px[env_index] == pytest.approx(sum(own) / 2)
    assert math.isnan(sample.environments_furthest_px[3])
    assert (sample.episodes_finished, sample.episodes_seen) == (131, 130)
    assert (sample.progress, sample.value_loss, sample.entropy_ratio) == (0.5, 0.5, 0.4)
    assert not sample.non_finite


@pytest.mark.parametrize(
    ("scalars", "norm", "expected"),
    [
        ({"train/value_loss": math.nan}, 1.0, True),
        ({"train/loss": math.inf}, 1.0, True),
        ({"train/loss": 1.0}, math.inf, True),
        # Without variance in the returns the explained share is no number; that is no divergence.
        ({"train/explained_variance": math.nan, "train/loss": 1.0}, 1.0, False),
    ],
)
def test_non_finite_numbers(scalars: dict[str, float], norm: float, expected: bool) -> None:
    sample = make_sample(
        EpisodeWindow(1), update=1, total_steps=1, target_steps=10, gradient_norm=norm,
        scalars=scalars, signals={},
    )  # fmt: skip
    assert sample.non_finite is expected
