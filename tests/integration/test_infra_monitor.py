"""`mario monitor` over a real store and a real MLflow file: what the page says is what they say."""

from __future__ import annotations

import shutil
import threading
import urllib.request
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from mario.jobs.monitor import LoopMonitor, monitor
from mario.jobs.runtime import Runtime
from mario.registry import ModelRegistry
from mario.store.store import ExperimentStore
from mario.telemetry_export import Instruments
from mario.tracking import prepare_tracking
from tests.support.processes import free_port, wait_for_http
from tests.support.store_rows import MODEL, registered, verdict

DIGESTS = {number: f"{number:064x}" for number in range(1, 4)}


@pytest.fixture(scope="module")
def empty_mlflow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An MLflow file just set up; setting one up takes seconds, copying it none."""
    path = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    prepare_tracking(f"sqlite:///{path}")
    return path


@pytest.fixture
def runtime(tmp_path: Path, empty_mlflow: Path) -> Runtime:
    shutil.copy(empty_mlflow, tmp_path / "mlflow.db")
    return Runtime.embedded(tmp_path)


def test_the_page_follows_the_store(runtime: Runtime) -> None:
    instruments = Instruments()
    loop = LoopMonitor(instruments)
    get = instruments.registry.get_sample_value
    model = {"model": MODEL}
    with ExperimentStore.open(runtime.database_url) as store:
        registry = ModelRegistry(runtime.tracking_uri, store, runtime.artifact_dir)
        loop.refresh(store, registry)
        assert list(instruments.registry.collect()) == []
        registered(store, 1, DIGESTS[1])
        first = verdict(store, (1, DIGESTS[1]), (None, "random:80:4"))
        store.ledger.promote(MODEL, 1, verdict_id=first, promoted_by="test")
        for _ in range(2):  # a second look counts nothing twice
            loop.refresh(store, registry)
            champion = {**model, "version": "1", "digest": DIGESTS[1]}
            assert get("mario_champion_info", champion) == 1
            assert get("mario_promotions_total", {**model, "reason": "first"}) == 1
            assert get("mario_gate_verdicts_total", {**model, "decision": "promote"}) == 1
        score = get(
            "mario_evaluation_furthest_x_px",
            {**model, "version": "1", "seed_family": "confirmation"},
        )
        assert score == 1264
        played = get("mario_evaluation_units_total", {**model, "seed_family": "confirmation"})
        assert played == sum(
            each.finished_units for each in store.evaluations.list(policy_digest=DIGESTS[1])
        )
        # The ledger was written by hand: no alias follows it, and the page says so.
        assert get("mario_champion_alias_in_line", model) == 0
        registered(store, 2, DIGESTS[2])
        second = verdict(store, (2, DIGESTS[2]), (1, DIGESTS[1]))
        store.ledger.promote(MODEL, 2, verdict_id=second, promoted_by="test")
        loop.refresh(store, registry)
        assert get("mario_champion_info", champion) is None
        assert get("mario_champion_info", {**model, "version": "2", "digest": DIGESTS[2]}) == 1
        assert get("mario_promotions_total", {**model, "reason": "gate"}) == 1
        assert get("mario_promotions_total", {**model, "reason": "first"}) == 1


def test_a_database_that_is_away_is_asked_again(
    runtime: Runtime, capsys: pytest.CaptureFixture[str]
) -> None:
    port, stop = free_port(), threading.Event()
    thread = threading.Thread(
        target=monitor,
        args=(runtime,),
        kwargs={"port": port, "poll_seconds": 0.1, "stop": stop},
        daemon=True,
    )
    thread.start()
    url = f"http://127.0.0.1:{port}/metrics"
    try:
        wait_for_http(url, 30)
        with ExperimentStore.open(runtime.database_url) as store:
            registered(store, 1, DIGESTS[1])
            first = verdict(store, (1, DIGESTS[1]), (None, "random:80:4"))
            store.ledger.promote(MODEL, 1, verdict_id=first, promoted_by="test")
        for _ in range(600):
            with urllib.request.urlopen(url, timeout=10) as answer:
                text = answer.read().decode()
            names = {family.name for family in text_string_to_metric_families(text)}
            if "mario_champion_info" in names:
                break
            stop.wait(0.1)
        assert "mario_champion_info" in names
    finally:
        stop.set()
        thread.join(30)
    assert not thread.is_alive()
    assert f":{port}/metrics" in capsys.readouterr().out
