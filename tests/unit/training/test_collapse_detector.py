"""The collapse detector: each signal alone, by hand, and the collapse of the older project."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from scipy.stats import spearmanr

from mario.training.collapse_detector import (
    CollapseDetector,
    Health,
    HealthRules,
    HealthSample,
    spearman,
)
from mario.training.episodes import EpisodeWindow, TrainingEpisode
from tests.support.paths import ROOT
from tests.support.training_runs import training_episode

RULES = HealthRules()


def healthy(update: int, **changes: Any) -> HealthSample:
    """A sample of a run that learns."""
    base = HealthSample(
        update=update,
        total_steps=1_000 * update,
        mean_return=50.0 + update,
        mean_furthest_px=500.0 + 10 * update,
        recent_return=50.0 + update,
        recent_furthest_px=500.0 + 10 * update,
        environments_furthest_px=tuple(480.0 + 10 * update + 5 * i for i in range(8)),
        return_progress_correlation=0.95,
        episodes_finished=10 * update,
        episodes_seen=10 * update,
        entropy_ratio=0.7,
        dominant_action_share=0.4,
        approx_kl=0.008,
        clip_fraction=0.1,
        explained_variance=0.6,
        value_loss=1.0,
        gradient_norm=2.0,
        dormant_share=0.3,
        frozen_observation_share=0.02,
    )
    return replace(base, **changes)


def episode(env_index: int, x_px: int) -> TrainingEpisode:
    """An episode that ended in a death at `x_px`."""
    return training_episode(env_index, 0, x_px, x_px / 10)


def feed(detector: CollapseDetector, updates: int, first: int = 1, **changes: Any) -> list[Health]:
    return [detector.update(healthy(first + i, **changes)) for i in range(updates)]


def test_a_learning_run_is_warming_then_healthy() -> None:
    states = [health.state for health in feed(CollapseDetector(), 50)]
    assert states == ["warming"] * 9 + ["healthy"] * 41


# signal: (bad value, rule, updates until the end, outcome); the run is healthy for 20 updates.
BAD = {
    "entropy": ({"entropy_ratio": 0.01}, "entropy", 3, "collapsed"),
    "dominant action": ({"dominant_action_share": 0.99}, "dominant_action", 3, "collapsed"),
    "KL too high": ({"approx_kl": 0.5}, "kl_high", 2, "collapsed"),
    "KL too low": ({"approx_kl": 0.0, "clip_fraction": 0.0}, "kl_dead", 10, "collapsed"),
    "clip fraction": ({"clip_fraction": 0.8}, "clip_fraction", 3, "collapsed"),
    "explained variance": ({"explained_variance": -5.0}, "explained_variance", 3, "collapsed"),
    "value loss": ({"value_loss": 51.0}, "value_loss", 2, "diverged"),
    "gradient": ({"gradient_norm": 201.0}, "gradient", 3, "diverged"),
    "dormant": ({"dormant_share": 1.0}, "dormant", 2, "collapsed"),
    "frozen": ({"frozen_observation_share": 1.0}, "frozen_observations", 2, "collapsed"),
    "reward sign": ({"return_progress_correlation": -0.9}, "reward_against_progress", 2,
                    "collapsed"),
    "furthest x": ({"recent_furthest_px": 300.0}, "furthest_x", 2, "collapsed"),
    "not finite": ({"non_finite": True}, "non_finite", 1, "diverged"),
    "Q-values": ({"q_max": 300.0, "q_bound": 100.0}, "q_bound", 3, "diverged"),
}  # fmt: skip


@pytest.mark.parametrize("signal", list(BAD))
def test_each_signal_alone_ends_the_run_after_its_patience(signal: str) -> None:
    changes, rule, patience, outcome = BAD[signal]
    detector = CollapseDetector()
    feed(detector, 20)
    found = feed(detector, patience + 3, 21, **changes)
    states = [health.state for health in found]
    assert states[: patience - 1] == ["warning"] * (patience - 1)
    assert states[patience - 1] == outcome
    assert found[patience - 1].rules[0] == rule
    assert found[patience - 1].changed
    # It is final: what comes after is not another run.
    assert detector.update(healthy(40)).state == outcome


def test_the_runbook_names_every_rule_that_ends_a_run_as_diverged() -> None:
    text = (ROOT / "docs/runbooks/training.md").read_text(encoding="utf-8")
    section = text.partition("## MarioTrainingDiverged")[2].partition("\n## ")[0]
    named = set(re.findall(r"^ +- `(\w+)`", section, re.MULTILINE))
    assert named == {rule for _, rule, _, outcome in BAD.values() if outcome == "diverged"}


def test_the_guide_shows_a_reason_as_the_detector_gives_it() -> None:
    text = (ROOT / "docs/guides/store.md").read_text(encoding="utf-8")
    (shown,) = re.findall(r"collapsed \((.*?)\)", text)
    detector = CollapseDetector()
    feed(detector, 20)
    health = feed(detector, 3, 21, entropy_ratio=0.02)[-1]
    assert (health.state, shown) == ("collapsed", "; ".join(health.reasons))


@pytest.mark.parametrize("signal", [signal for signal in BAD if BAD[signal][2] > 1])
def test_one_bad_update_is_chance(signal: str) -> None:
    changes, _, patience, _ = BAD[signal]
    detector = CollapseDetector()
    feed(detector, 20)
    for round_ in range(4):
        feed(detector, patience - 1, 21 + 20 * round_, **changes)
        back = feed(detector, 5, 35 + 20 * round_)
        assert back[-1].state == "healthy"


@pytest.mark.parametrize(
    ("changes", "rule"),
    [
        # A schedule that ends at 0 ends like this.
        ({"approx_kl": 0.0, "clip_fraction": 0.0, "progress": 0.96}, "kl_dead"),
        ({"entropy_ratio": 0.05}, "entropy"),
        ({"episodes_seen": 25}, "unseen_episodes"),
        ({"seconds_since_update": 3_600.0}, "stale"),
        ({"recent_furthest_px": 430.0}, "furthest_x"),
        ({"recent_return": 5.0}, "return"),
        ({"value_loss": 11.0}, "value_loss"),
        ({"q_max": 150.0, "q_bound": 100.0}, "q_bound"),
    ],
)
def test_suspicion_is_a_warning_and_never_the_end(changes: dict[str, Any], rule: str) -> None:
    detector = CollapseDetector()
    feed(detector, 20)
    for health in feed(detector, 15, 21, **changes):
        assert health.state == "warning"
        assert rule in health.rules


def test_kl_is_judged_against_what_is_usual_for_the_run() -> None:
    quiet = CollapseDetector()
    feed(quiet, 20, approx_kl=0.001)
    assert feed(quiet, 2, 21, approx_kl=0.05)[-1].state == "collapsed"
    lively = CollapseDetector()
    feed(lively, 20, approx_kl=0.01)
    assert feed(lively, 2, 21, approx_kl=0.05)[-1].state == "healthy"


def test_the_collapse_of_the_older_project() -> None:
    """Of 8 environments, 1 to 7 collapse and 0 does not; reading 0 alone shows nothing."""
    detector = CollapseDetector()
    feed(detector, 40)
    best = 500.0 + 10 * 40
    for age in range(1, 10):
        update = 40 + age
        # Each update, one eighth of the last 100 episodes comes from environment 0.
        share = min(1.0, age / 12)
        fallen = share * (7 / 8)
        mean = (1 - fallen) * best + fallen * 45
        sample = healthy(
            update,
            environments_furthest_px=(best + 10 * age, *([45.0] * 7)),
            mean_furthest_px=mean,
            recent_furthest_px=mean,
        )
        health = detector.update(sample)
        if health.state == "collapsed":
            break
    assert health.state == "collapsed"
    assert health.rules[0] == "environments"
    assert "7 of 8 environments" in health.reasons[0]
    assert age == RULES.drop_patience


def test_half_the_environments_in_a_bad_episode_is_normal() -> None:
    detector = CollapseDetector()
    feed(detector, 40)
    for health in feed(detector, 10, 41, environments_furthest_px=(900.0,) * 4 + (45.0,) * 4):
        assert health.state == "healthy"


def test_signals_that_an_algorithm_lacks_are_ignored() -> None:
    detector = CollapseDetector()
    for update in range(1, 40):
        health = detector.update(HealthSample(update, 1_000 * update, value_loss=0.1))
    assert health == Health("healthy")


def test_memory_survives_json_in_the_middle_of_a_streak() -> None:
    straight, first = CollapseDetector(), CollapseDetector()
    for detector in (straight, first):
        feed(detector, 20)
        feed(detector, 2, 21, entropy_ratio=0.01)
    second = CollapseDetector()
    second.restore(json.loads(json.dumps(first.to_dict())))
    sample = healthy(23, entropy_ratio=0.01)
    assert second.update(sample) == straight.update(sample)
    assert second.state == "collapsed"


def test_restart_forgets_the_streaks_and_keeps_the_furthest_x() -> None:
    detector = CollapseDetector()
    feed(detector, 20)
    feed(detector, 3, 21, entropy_ratio=0.01)
    detector.restart()
    assert detector.state == "warming"
    feed(detector, 12, 24, recent_furthest_px=300.0, mean_furthest_px=300.0)
    assert detector.state == "collapsed"


def test_a_run_that_recovers_after_a_rollback_continues() -> None:
    """Fewer than 20 episodes end while the detector warms again: only those since then count."""
    detector, window = CollapseDetector(), EpisodeWindow(8)

    def play(count: int, x_px: int) -> None:
        for _ in range(count):
            window.finished += 1
            window.add(episode(window.seen % 8, x_px))

    def sample(update: int) -> HealthSample:
        returns, furthest = window.recent()
        enough = len(returns) == 20
        return healthy(
            update,
            mean_return=window.mean_return(),
            mean_furthest_px=window.mean_furthest_px(),
            recent_return=np.mean(returns) if enough else None,
            recent_furthest_px=np.mean(furthest) if enough else None,
            environments_furthest_px=window.environments_furthest_px(),
        )

    for update in range(1, 41):
        play(10, 1_000)
        assert detector.update(sample(update)).state in ("warming", "healthy")
    while detector.state != "collapsed":
        update += 1
        play(10, 100)
        detector.update(sample(update))
    detector.restart()
    window.roll_back()
    assert window.mean_furthest_px() is None
    assert all(math.isnan(x_px) for x_px in window.environments_furthest_px())
    rolled_back_at = update
    play(8, 100)  # begun by the ruined policy, one in each environment
    play(1, 3_000)  # a lucky one is not what the run is measured by
    for update in range(rolled_back_at + 1, rolled_back_at + 60):
        if update % 2:
            play(1, 1_000)
        # A stop and a resume in between change nothing.
        saved = json.loads(json.dumps([detector.to_dict(), window.to_dict()]))
        detector, window = CollapseDetector(), EpisodeWindow(8)
        detector.restore(saved[0])
        window.restore(saved[1])
        assert detector.update(sample(update)).state in ("warming", "healthy"), update
    assert detector.state == "healthy"


def test_a_q_value_is_not_judged_before_the_first_reward() -> None:
    detector = CollapseDetector()
    for update in range(1, 6):
        sample = HealthSample(
            update, update, q_max=0.01, q_bound=0.0, episodes_finished=3, episodes_seen=3
        )
        assert detector.update(sample) == Health("warming")
        # A reward of standing still: what an episode's end costs or brings is not known yet.
        sample = HealthSample(update, update, q_max=9.0, q_bound=1.0, episodes_finished=0)
        assert CollapseDetector().update(sample).rules == ()


def test_recovery_from_a_collapse_is_a_change_of_state() -> None:
    detector = CollapseDetector()
    feed(detector, 20)
    feed(detector, 3, 21, entropy_ratio=0.01)
    detector.restart()
    restored = CollapseDetector()
    restored.restore(json.loads(json.dumps(detector.to_dict())))
    for each in (detector, restored):
        first, second = feed(each, 2, 24)
        assert (first.state, first.changed) == ("warming", True)
        assert (second.state, second.changed) == ("warming", False)


def test_samples_survive_json() -> None:
    sample = healthy(3, environments_furthest_px=(1.0, math.nan), approx_kl=math.inf)
    again = HealthSample.from_dict(json.loads(json.dumps(sample.to_dict())))
    assert again.approx_kl == math.inf
    assert again.environments_furthest_px[0] == 1.0
    assert math.isnan(again.environments_furthest_px[1])
    assert replace(again, environments_furthest_px=()) == replace(
        sample, environments_furthest_px=()
    )


def test_spearman_against_scipy() -> None:
    generator = np.random.default_rng(0)
    for _ in range(20):
        first = generator.integers(0, 9, 20).astype(float)
        second = first + generator.normal(0, 4, 20)
        expected = spearmanr(first, second).statistic
        assert spearman(list(first), list(second)) == pytest.approx(expected)
    assert spearman([1.0, 1.0, 1.0], [1.0, 2.0, 3.0]) is None
