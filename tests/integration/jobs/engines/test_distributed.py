"""Evaluation on a real Dask cluster: the records of the local engine, each stored once."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mario.cli.experiment_options import engine_settings
from mario.config.evaluation import PROTOCOL
from mario.config.gate import GateRule
from mario.config.identities import identity_of_test
from mario.errors import ArtefactError, ConfigError, EvaluationError
from mario.evaluation.records import EpisodeRecord
from mario.evaluation.seeds import units_of
from mario.game.smb.actions import action_set
from mario.jobs.engines.contract import EvaluationEngine
from mario.jobs.engines.dask import DaskEngine, payload_of, play_on_worker, shares
from mario.jobs.engines.factory import open_engine
from mario.jobs.engines.local import LOCAL
from mario.jobs.evaluate import evaluate_stored, evaluation_key
from mario.jobs.gate import play_gate
from mario.jobs.policies import LoadedPolicy, policy_from_artefact, random_policy
from mario.policy.artefact import MANIFEST_FILE, ONNX_FILE
from mario.store.store import ExperimentStore
from tests.support.policies import GOOD, POOR, write_odds_policy

LEVELS = ("1-1",)
UNITS = units_of(LEVELS, "screening", "", 24)


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> LoadedPolicy:
    folder = tmp_path_factory.mktemp("policies") / "good"
    write_odds_policy(folder, GOOD)
    return policy_from_artefact(folder, label="good")


@pytest.fixture(scope="module")
def poor(tmp_path_factory: pytest.TempPathFactory) -> LoadedPolicy:
    folder = tmp_path_factory.mktemp("policies") / "poor"
    write_odds_policy(folder, POOR)
    return policy_from_artefact(folder, label="poor")


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A running cluster, as on other machines: two worker processes behind an address."""
    from distributed import LocalCluster

    with LocalCluster(
        n_workers=2,
        threads_per_worker=1,
        host="127.0.0.1",
        dashboard_address="127.0.0.1:0",
        memory_limit=0,
    ) as running:
        yield running


def evaluate(
    loaded: LoadedPolicy,
    units: tuple[tuple[str, int], ...],
    url: str,
    engine: EvaluationEngine,
    **options: Any,
) -> tuple[EpisodeRecord, ...]:
    with ExperimentStore.open(url) as store:
        key = evaluation_key(loaded, "screening", "", LEVELS)
        outcome = evaluate_stored(loaded, units, key, store, engine=engine, **options)
        stored = store.evaluations.records(outcome.evaluation_id)
        assert sorted(record.unit for record in stored) == sorted(units)
        assert {record.unit: record for record in stored} == {
            record.unit: record for record in outcome.records
        }
        return outcome.records


def test_records_are_those_of_the_local_engine(
    good: LoadedPolicy, cluster: Any, tmp_path: Path
) -> None:
    here = evaluate(good, UNITS, f"sqlite:///{tmp_path / 'here.db'}", LOCAL)
    with DaskEngine(scheduler=cluster.scheduler_address) as engine:
        there = evaluate(good, UNITS, f"sqlite:///{tmp_path / 'there.db'}", engine, environments=3)
    assert there == here


def test_a_killed_worker_changes_nothing(good: LoadedPolicy, cluster: Any, tmp_path: Path) -> None:
    here = evaluate(good, UNITS, f"sqlite:///{tmp_path / 'here.db'}", LOCAL)
    killed: list[int] = []

    def kill_one(done: int, _total: int) -> None:
        if done == 2 and not killed:
            pid = sorted(engine._connected().run(os.getpid).values())[0]
            killed.append(pid)
            os.kill(pid, signal.SIGKILL)

    with DaskEngine(scheduler=cluster.scheduler_address) as engine:
        there = evaluate(
            good, UNITS, f"sqlite:///{tmp_path / 'there.db'}", engine, environments=1,
            on_progress=kill_one,
        )  # fmt: skip
    assert killed
    assert there == here


def test_an_interrupted_evaluation_continues_on_another_engine(
    good: LoadedPolicy, cluster: Any, tmp_path: Path
) -> None:
    url = f"sqlite:///{tmp_path / 'mario.db'}"
    asked: list[tuple[str, int]] = []

    class Counting(DaskEngine):
        def play(self, loaded: LoadedPolicy, units: Any, **options: Any) -> Any:
            asked.extend(units)
            return super().play(loaded, units, **options)

    def interrupt(done: int, _total: int) -> None:
        if done == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluate(good, UNITS, url, LOCAL, on_progress=interrupt)
    with Counting(scheduler=cluster.scheduler_address) as engine:
        evaluate(good, UNITS, url, engine)
    assert len(asked) == len(UNITS) - 5


def test_the_gate_plays_on_a_cluster_and_decides_the_same(
    good: LoadedPolicy, poor: LoadedPolicy, cluster: Any, tmp_path: Path
) -> None:
    rule = GateRule(primary="progress", alpha=0.4, max_units=24, min_units=8)

    def judge(engine: EvaluationEngine, name: str) -> Any:
        with ExperimentStore.open(f"sqlite:///{tmp_path / name}.db") as store:
            key = identity_of_test(good.digest, poor.digest, LEVELS, rule)
            return play_gate(
                good, poor, rule, LEVELS, store, test_key=key, environments=4, engine=engine
            ).pairs

    here = judge(LOCAL, "here")
    with DaskEngine(scheduler=cluster.scheduler_address) as engine:
        there = judge(engine, "there")
    # A cluster plays more units in advance; those after the stop are not counted.
    shorter = min(len(here), len(there))
    assert there[:shorter] == here[:shorter]


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_400_units_on_1_2_and_4_workers(good: LoadedPolicy, tmp_path: Path) -> None:
    units = units_of(LEVELS, "screening", "", 400)
    here = evaluate(good, units, f"sqlite:///{tmp_path / 'here.db'}", LOCAL)
    for workers in (1, 2, 4):
        with DaskEngine(workers=workers) as engine:
            url = f"sqlite:///{tmp_path / f'{workers}.db'}"
            assert evaluate(good, units, url, engine) == here
            assert len(engine._connected().scheduler_info(n_workers=-1)["workers"]) == workers


def test_tasks_hold_every_unit_once_and_in_order() -> None:
    for workers in (1, 2, 4, 50):
        for environments in (1, 8):
            tasks = shares(UNITS, workers, environments)
            assert [unit for task in tasks for unit in task] == list(UNITS)
            assert max(map(len, tasks)) <= 4 * environments
    assert len(shares(UNITS, 4, 8)) >= 4


def test_a_worker_refuses_a_policy_that_changed_on_the_way(good: LoadedPolicy) -> None:
    payload = payload_of(good)
    played = play_on_worker(payload, UNITS[:1], 1, "native", PROTOCOL)
    assert EpisodeRecord.from_dict(played[0]).unit == UNITS[0]
    with pytest.raises(EvaluationError, match="same version"):
        play_on_worker(payload, UNITS[:1], 1, "native", "mario-eval-v0")
    other = replace(payload, digest="0" * 64)
    with pytest.raises(ArtefactError, match="expected the very files"):
        play_on_worker(other, UNITS[:1], 1, "native", PROTOCOL)
    broken = {**payload.files, ONNX_FILE: payload.files[ONNX_FILE] + b"x"}
    with pytest.raises(ArtefactError):
        play_on_worker(
            replace(payload, digest="1" * 64, files=broken), UNITS[:1], 1, "native", PROTOCOL
        )


def test_a_changed_folder_is_not_sent(tmp_path: Path) -> None:
    write_odds_policy(tmp_path / "policy", GOOD)
    loaded = policy_from_artefact(tmp_path / "policy")
    manifest = tmp_path / "policy" / MANIFEST_FILE
    manifest.write_text(manifest.read_text() + "\n")
    with pytest.raises(ArtefactError, match="load the policy again"):
        payload_of(loaded)


def test_the_random_policy_is_sent_without_files() -> None:
    specs = action_set("simple")
    loaded = random_policy(specs, frame_skip=4)
    played = play_on_worker(payload_of(loaded), UNITS[:1], 1, "native", PROTOCOL)
    (here,) = LOCAL.play(loaded, UNITS[:1], environments=1, console="native")
    assert EpisodeRecord.from_dict(played[0]) == here


def test_engines_are_chosen_by_configuration() -> None:
    with open_engine(None) as engine:
        assert engine is LOCAL
    settings = engine_settings(None, None, 3, None)
    assert (settings.engine, settings.workers) == ("dask", 3)
    with open_engine(settings) as engine:  # starts nothing before its first units
        assert engine.at_once(8) == 24
    for engine, workers, scheduler in (
        ("local", 2, None), ("dask", 2, "tcp://127.0.0.1:1"), ("dask", None, "127.0.0.1"),
        ("spark", None, None),
    ):  # fmt: skip
        with pytest.raises(ConfigError, match="expected"):
            engine_settings(None, engine, workers, scheduler)


def test_a_scheduler_that_does_not_answer_is_an_error(good: LoadedPolicy) -> None:
    engine = DaskEngine(scheduler="tcp://127.0.0.1:1", connect_seconds=0.5)
    with pytest.raises(EvaluationError, match="dask scheduler"):
        list(engine.play(good, UNITS[:1], environments=1, console="native"))
