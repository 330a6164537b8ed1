"""The metrics page of a training run, read over HTTP by Prometheus' parser."""

import json
import math
import re
import urllib.request
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

from mario.config.run_states import HealthState
from mario.errors import ConfigError
from mario.telemetry.instruments import InstrumentSet, instrument
from mario.telemetry.loop import LoopMetrics
from mario.telemetry.names import ALL_METRICS, series_names
from mario.telemetry.page import MetricsPage
from mario.telemetry.store import StoreMetrics
from mario.telemetry.training import TrainingMetrics


def read(page: MetricsPage) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    with urllib.request.urlopen(f"http://127.0.0.1:{page.port}/metrics", timeout=10) as answer:
        text = answer.read().decode()
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def value(samples: dict, name: str, **labels: str) -> float:
    return samples[name, tuple(sorted(labels.items()))]


def test_names_follow_the_conventions() -> None:
    for metric in ALL_METRICS:
        assert re.fullmatch(r"mario_[a-z]+(_[a-z]+)+", metric.name), metric.name
        assert metric.name.endswith("_total") == (metric.kind == "counter"), metric.name
        assert metric.help.endswith("."), metric.name
        assert bool(metric.buckets) == (metric.kind == "histogram"), metric.name
        # Base units only: https://prometheus.io/docs/practices/naming/
        assert not re.search(r"_(ms|milliseconds|minutes|percent|kb|mb)(_|$)", metric.name)
    assert len({metric.name for metric in ALL_METRICS}) == len(ALL_METRICS)


def test_every_metric_appears_under_its_name() -> None:
    registry = CollectorRegistry()
    for metric in ALL_METRICS:
        made = instrument(metric, registry)
        if metric.labels:
            made.labels(*["x"] * len(metric.labels))
    shown = {sample.name for family in registry.collect() for sample in family.samples}
    created = {name for name in shown if name.endswith("_created")}
    assert shown - created == series_names()


def test_a_training_runs_page_exists_while_the_run_lives(tmp_path: Path) -> None:
    instruments = InstrumentSet()
    training = TrainingMetrics(instruments, "r1")
    store = StoreMetrics(instruments, "r1")
    training.start(
        config="demo", config_hash="ab", algorithm="ppo", task="1-1", environments=8,
        planned_steps=1000,
    )  # fmt: skip
    training.steps(128)
    training.steps(128)
    training.episode("death", 7)
    training.window(furthest_x_px=900.0, shaped_return=3.5, clear_ratio=0.25)
    training.window(furthest_x_px=400.0, shaped_return=1.5)
    training.pace(steps_per_second=100.0, rollout_seconds=1.5, update_seconds=0.5)
    training.update(entropy_ratio=0.7, approximate_kl=math.nan, nonfinite=2)
    training.checkpoint("written", 0.2)
    training.selection(0.4)
    training.selection(0.3)
    training.sink_error("wandb")
    store.written({"episodes": 3}, 0.01)
    store.failed()
    store.waiting(5, 6)
    targets = tmp_path / "targets"
    with MetricsPage(instruments.registry, targets=targets, name="r1") as page:
        (target,) = targets.iterdir()
        assert json.loads(target.read_text()) == [
            {
                "targets": [f"127.0.0.1:{page.port}"],
                "labels": {"job": "training", "instance": "r1"},
            }
        ]
        samples = read(page)
    assert value(samples, "mario_training_steps_total", run="r1") == 256
    assert value(samples, "mario_training_furthest_x_px", run="r1") == 400
    assert value(samples, "mario_training_best_furthest_x_px", run="r1") == 900
    assert math.isnan(value(samples, "mario_training_approximate_kl", run="r1"))
    assert value(samples, "mario_training_best_selection_score", run="r1") == 0.4
    assert value(samples, "mario_training_selection_score", run="r1") == 0.3
    by_environment = "mario_training_episodes_by_environment_total"
    assert value(samples, by_environment, run="r1", environment="7") == 1
    assert value(samples, by_environment, run="r1", environment="0") == 0
    assert value(samples, "mario_store_available", run="r1") == 0
    assert value(samples, "mario_store_written_rows_total", run="r1", table="episodes") == 3
    # What was not measured is absent, not 0.
    assert not any(name == "mario_training_q_value_max" for name, _ in samples)
    assert list(targets.iterdir()) == []
    with pytest.raises(OSError, match="refused"):
        read(page)


def test_exactly_one_health_state_holds() -> None:
    instruments = InstrumentSet()
    training = TrainingMetrics(instruments, "r1")
    steps = [("warming", ()), ("healthy", ()), ("warning", ("entropy",)), ("collapsed", ("kl",))]
    for state, rules in steps:
        training.health(state, rules)
        shown = {
            each: instruments.registry.get_sample_value(
                "mario_training_health", {"run": "r1", "state": each}
            )
            for each in HealthState
        }
        assert {each for each, on in shown.items() if on} == {state}
        assert len(shown) == len(HealthState)
    get = instruments.registry.get_sample_value
    assert get("mario_training_health_rule", {"run": "r1", "rule": "entropy"}) == 0
    assert get("mario_training_health_rule", {"run": "r1", "rule": "kl"}) == 1
    assert get("mario_training_health_changes_total", {"run": "r1", "state": "collapsed"}) == 1
    assert get("mario_training_health_changes_total", {"run": "r1", "state": "warming"}) == 0
    with pytest.raises(ValueError, match="not a valid HealthState"):
        training.health("fine", ())  # type: ignore[arg-type]


def test_a_former_champions_series_are_removed() -> None:
    instruments = InstrumentSet()
    loop = LoopMetrics(instruments)
    loop.champion("mario-1-1", "1", "aa", 10.0)
    loop.champion("mario-1-2", "5", "cc", 11.0)
    loop.champion("mario-1-1", "2", "bb", 12.0)
    loop.verdict("mario-1-1", "reject", evidence=0.5, units=40, guards=("per_level",))
    loop.flow_ended("pipeline", "completed")
    loop.evaluation("mario-1-1", "2", "confirmation", score=0.5, clear_ratio=0.2, furthest_x_px=900)
    champions = {
        (sample.labels["model"], sample.labels["version"])
        for family in instruments.registry.collect()
        for sample in family.samples
        if sample.name == "mario_champion_info"
    }
    assert champions == {("mario-1-1", "2"), ("mario-1-2", "5")}


def test_an_occupied_port_gives_one_line() -> None:
    with (
        MetricsPage(CollectorRegistry()) as page,
        pytest.raises(ConfigError, match=rf"got 127\.0\.0\.1:{page.port}.*use port 0"),
    ):
        MetricsPage(CollectorRegistry(), port=page.port)


def test_wrong_use_of_a_metric_raises() -> None:
    instruments = InstrumentSet()
    with pytest.raises(AssertionError):
        instruments.set("mario_training_steps_total", 1, run="r1")
    with pytest.raises(KeyError):
        instruments.set("mario_training_no_such_metric", 1)
