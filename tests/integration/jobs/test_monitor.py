"""`mario monitor` on a real store and a real MLflow file: the page shows their state."""

from __future__ import annotations

import shutil
import threading
import urllib.request
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from mario.jobs.context import JobContext, JobSettings
from mario.jobs.monitor import LoopMonitor, monitor
from mario.store.store import ExperimentStore
from mario.telemetry.instruments import InstrumentSet
from tests.support.processes import free_port, wait_for_http
from tests.support.store_rows import (
    MODEL,
    evaluation_key,
    evaluation_record,
    registered,
    verdict,
)

DIGESTS = {number: f"{number:064x}" for number in range(1, 4)}


@pytest.fixture
def context(tmp_path: Path, empty_mlflow: Path) -> JobContext:
    shutil.copy(empty_mlflow, tmp_path / "mlflow.db")
    return JobContext(JobSettings.embedded(tmp_path))


def test_the_page_follows_the_store(context: JobContext) -> None:
    instruments = InstrumentSet()
    loop = LoopMonitor(instruments)
    get = instruments.registry.get_sample_value
    model = {"model": MODEL}
    store = context.store
    loop.refresh(context)
    assert list(instruments.registry.collect()) == []
    registered(store, 1, DIGESTS[1])
    first = verdict(store, (1, DIGESTS[1]), (None, "random:80:4"))
    store.ledger.promote(MODEL, 1, verdict_id=first, promoted_by="test")
    for _ in range(2):  # a second reading counts nothing twice
        loop.refresh(context)
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
    # The ledger was written without moving the alias, and the page shows that.
    assert get("mario_champion_alias_in_line", model) == 0
    registered(store, 2, DIGESTS[2])
    second = verdict(store, (2, DIGESTS[2]), (1, DIGESTS[1]))
    store.ledger.promote(MODEL, 2, verdict_id=second, promoted_by="test")
    loop.refresh(context)
    assert get("mario_champion_info", champion) is None
    assert get("mario_champion_info", {**model, "version": "2", "digest": DIGESTS[2]}) == 1
    assert get("mario_promotions_total", {**model, "reason": "gate"}) == 1
    assert get("mario_promotions_total", {**model, "reason": "first"}) == 1


def play(store: ExperimentStore, digest: str, source: str, first: int, cleared: int) -> None:
    """Store an evaluation of 60 units on new seeds, of which some cleared."""
    key = evaluation_key(digest, source, "screening")
    evaluation = store.evaluations.open(key, planned_units=60)
    store.evaluations.add(
        evaluation.id,
        [
            evaluation_record(
                digest,
                2**62 + first + index,
                cleared=index < cleared,
                end_reason="flag" if index < cleared else "death",
            )
            for index in range(60)
        ],
    )
    store.evaluations.finish(evaluation.id)


def test_drift_is_measured_against_the_nightly_baseline(context: JobContext) -> None:
    instruments = InstrumentSet()
    loop = LoopMonitor(instruments)
    champion = {"model": MODEL, "version": "1"}

    def get(name: str, **labels: str) -> float | None:
        return instruments.registry.get_sample_value(f"mario_champion_{name}", labels)

    store = context.store
    registered(store, 1, DIGESTS[1])
    first = verdict(store, (1, DIGESTS[1]), (None, "random:80:4"))
    store.ledger.promote(MODEL, 1, verdict_id=first, promoted_by="test")
    play(store, DIGESTS[1], "", 0, cleared=60)  # a screening is not a nightly check
    loop.refresh(context)
    assert get("drift_p_value", **champion) is None
    # The policy clears half of its units, although its promotion looked better.
    play(store, DIGESTS[1], "nightly baseline", 100, cleared=30)
    play(store, DIGESTS[1], "nightly 2026-11-01", 200, cleared=28)
    loop.refresh(context)
    assert get("drift_p_value", **champion) == 1
    baseline, steady = get("baseline_score", **champion), get("nightly_score", **champion)
    play(store, DIGESTS[1], "nightly 2026-11-02", 300, cleared=5)
    loop.refresh(context)
    alarm = get("drift_p_value", **champion)
    worse = get("nightly_score", **champion)
    assert alarm is not None
    assert alarm < 0.001
    assert baseline is not None
    assert steady is not None
    assert worse is not None
    assert baseline > steady > worse
    assert get("baseline_score", **champion) == baseline
    # The next champion starts without a night.
    registered(store, 2, DIGESTS[2])
    second = verdict(store, (2, DIGESTS[2]), (1, DIGESTS[1]))
    store.ledger.promote(MODEL, 2, verdict_id=second, promoted_by="test")
    loop.refresh(context)
    assert get("drift_p_value", **champion) is None
    assert get("nightly_score", **champion) is None


def test_a_missing_database_is_opened_once_it_exists(context: JobContext) -> None:
    port, stop = free_port(), threading.Event()
    pages: list[str] = []
    thread = threading.Thread(
        target=monitor,
        args=(JobContext(context.settings, create=False),),
        kwargs={"port": port, "poll_seconds": 0.1, "stop": stop, "on_page": pages.append},
        daemon=True,
    )
    thread.start()
    url = f"http://127.0.0.1:{port}/metrics"
    try:
        wait_for_http(url, 120)
        store = context.store
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
        thread.join(120)
    assert not thread.is_alive()
    assert pages == [url]
