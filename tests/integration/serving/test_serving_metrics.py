"""Every metric of the service appears, changes with its events, and belongs to one service."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx
import numpy as np
import psutil
import pytest
from prometheus_client.parser import text_string_to_metric_families
from websockets.sync.client import connect

from mario.policy.manifest import ObservationStatistics
from mario.telemetry.names import SERVING_METRICS
from serving.launcher import running
from serving.settings import ServingSettings
from tests.support.onnx_networks import random_observations, write_test_artefact
from tests.support.serving_load import let_sessions_age, wait_until

BYTES = {"content-type": "application/octet-stream"}
JSON = {"content-type": "application/json"}
SESSION_TIMEOUT_SECONDS = 300.0
# The training data is 20 grey levels and 10 standard deviations brighter than black screens.
TRAINING = ObservationStatistics(
    count=100,
    brightness_mean=20,
    brightness_std=2,
    contrast_mean=10,
    contrast_std=2,
    black_share=0.25,
    frozen_share=0.125,
)

Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def _samples(url: str) -> Samples:
    page = httpx.get(f"{url}/metrics").text
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(page)
        for sample in family.samples
    }


def _total(samples: Samples, name: str, **labels: str) -> float:
    wanted = set(labels.items())
    return sum(v for (n, given), v in samples.items() if n == name and wanted <= set(given))


def _value(url: str, name: str, **labels: str) -> float:
    return _total(_samples(url), f"mario_serving_{name}", **labels)


def _link(root: Path, role: str, target: str) -> None:
    aside = root / f".{role}.new"
    aside.symlink_to(root / target)
    aside.replace(root / role)


def _raw(url: str, observations: np.ndarray) -> httpx.Response:
    content = observations.tobytes()
    return httpx.post(f"{url}/predict/raw", content=content, headers=BYTES, timeout=60)


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """A champion with training statistics, and a challenger as shadow and canary."""
    for number in (1, 2, 3):
        write_test_artefact(tmp_path / f"v{number}", number, training_statistics=TRAINING)
    _link(tmp_path, "champion", "v1")
    _link(tmp_path, "challenger", "v2")
    settings = ServingSettings(
        policy=tmp_path,
        port=0,
        poll_seconds=0.1,
        shadow_share=1,
        canary_share=0.5,
        session_file=tmp_path / "sessions",
        session_timeout_seconds=SESSION_TIMEOUT_SECONDS,
        body_timeout_seconds=240,
    )
    with running(settings) as url:
        assert wait_until(lambda: httpx.get(f"{url}/card").json()["challenger"] == "v2")
        yield url, tmp_path


@contextmanager
def _held_request(url: str) -> Iterator[None]:
    """A request whose body never arrives."""
    host, port = url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(
            b"POST /predict/raw HTTP/1.1\r\nHost: localhost\r\nContent-Length: 28224\r\n"
            b"Content-Type: application/octet-stream\r\n\r\n"
        )
        yield


def test_every_metric_moves(served: tuple[str, Path]) -> None:
    url, root = served
    before = _samples(url)
    seen: list[Samples] = []

    def comes(condition: Callable[[Samples], bool]) -> bool:
        def look() -> bool:
            seen.append(_samples(url))
            return condition(seen[-1])

        return wait_until(look)

    # Requests, errors, observations, the shadow.
    for observations in (random_observations(3), np.zeros((2, 4, 84, 84), np.uint8)):
        for _ in range(8):
            assert _raw(url, observations).status_code == 200
    assert httpx.post(f"{url}/predict", content=b"{}", headers=JSON).status_code == 400
    # Sessions: the challenger answers half of them.
    frame = random_observations(1)[0, 0].tobytes()
    for _ in range(20):
        name = httpx.post(f"{url}/sessions").json()["session"]
        answer = httpx.post(f"{url}/sessions/{name}/act", content=frame, headers=BYTES)
        assert answer.status_code == 200
    assert comes(lambda s: _total(s, "mario_serving_sessions") == 20)
    # Requests in flight, waiting observations, watching pages.
    with _held_request(url):
        # Loading the metrics page is a request too.
        assert comes(lambda s: _total(s, "mario_serving_in_flight_requests") >= 2)
    with connect(f"ws{url.removeprefix('http')}/watch"):
        assert comes(lambda s: _total(s, "mario_serving_watchers") == 1)
    many, enough = random_observations(64).tobytes(), threading.Event()

    def ask() -> set[int]:
        statuses = set()
        with httpx.Client(base_url=url, headers=BYTES, timeout=60) as client:
            while not enough.is_set():
                statuses.add(client.post("/predict/raw", content=many).status_code)
        return statuses

    with ThreadPoolExecutor(8) as pool:
        load = [pool.submit(ask) for _ in range(8)]
        try:
            assert comes(lambda s: _total(s, "mario_serving_queue_observations") > 0)
        finally:
            enough.set()
        assert set().union(*(asked.result() for asked in load)) == {200}
    # A swap.
    _link(root, "champion", "v3")
    assert comes(lambda s: _total(s, "mario_serving_version_info", version="v3") == 1)

    for metric in SERVING_METRICS:
        suffixes = ("_bucket", "_sum", "_count") if metric.kind == "histogram" else ("",)
        for suffix in suffixes:
            name = metric.name + suffix
            start = {key: value for key, value in before.items() if key[0] == name}
            later = [{k: v for k, v in s.items() if k[0] == name} for s in seen]
            assert any(found != start for found in later), f"{name} never moved"
        labels = {label for s in seen for key in s if key[0].startswith(metric.name + suffixes[0])
                  for label, _ in key[1]} - {"le"}  # fmt: skip
        assert labels == set(metric.labels), metric.name

    # Gauges fall back.
    def all_over(samples: Samples) -> bool:
        gauges = ("sessions", "in_flight_requests", "watchers", "queue_observations")
        # The only request in flight is the one for this page.
        return [_total(samples, f"mario_serving_{name}") for name in gauges] == [0, 1, 0, 0]

    let_sessions_age(root / "sessions", SESSION_TIMEOUT_SECONDS)
    assert comes(all_over), {k: v for k, v in seen[-1].items() if not k[1]}
    assert _total(seen[-1], "mario_serving_version_info", version="v1") == 0
    # v3 has answered only the watching page: its window starts empty.
    for _ in range(9):
        assert _raw(url, np.zeros((1, 4, 84, 84), np.uint8)).status_code == 200
    now = _samples(url)
    assert _total(now, "mario_serving_observation_brightness_drift") == pytest.approx(-10)
    assert _total(now, "mario_serving_observation_contrast_drift") == pytest.approx(-5)
    assert _total(now, "mario_serving_observation_black_ratio") == 1
    assert _total(now, "mario_serving_observation_frozen_ratio") == 1
    assert _total(now, "mario_serving_observation_black_excess_ratio") == 0.75
    assert _total(now, "mario_serving_observation_frozen_excess_ratio") == 0.875


def test_latency_buckets_separate_common_latencies(served: tuple[str, Path]) -> None:
    """Common latencies have a bucket boundary on both sides and none exceeds the last one."""
    url, _ = served
    for count in (1, 16, 64):
        for _ in range(10):
            assert _raw(url, random_observations(count)).status_code == 200
    samples = _samples(url)
    for name, label in (
        ("request", ("endpoint", "/predict/raw")),
        ("inference", ("role", "champion")),
    ):
        cumulative = sorted(
            (float(dict(labels)["le"]), value)
            for (n, labels), value in samples.items()
            if n == f"mario_serving_{name}_seconds_bucket" and label in labels
        )
        assert cumulative[0][0] == 0.0001
        assert cumulative[-2][1] == cumulative[-1][1] > 0, "nothing took longer than the last"
        counts = np.diff([0.0, *(value for _, value in cumulative)])
        assert (counts > 0).sum() >= 3, cumulative


@contextmanager
def _service(policy: Path, workers: int = 1) -> Iterator[str]:
    settings = ServingSettings(policy=policy, port=0, workers=workers, poll_seconds=0.1)
    with running(settings) as url:
        yield url


def test_a_second_service_keeps_the_metrics_of_the_first(tmp_path: Path) -> None:
    """BentoML empties a folder that all services of a user share; here each has its own."""
    policy = write_test_artefact(tmp_path / "v1").folder
    with _service(policy) as first:
        for _ in range(7):
            _raw(first, random_observations(1))
        with _service(policy) as second:
            for _ in range(2):
                _raw(second, random_observations(1))
            for url, expected in ((first, 7), (second, 2)):
                got = _value(url, "requests_total", endpoint="/predict/raw", status="200")
                assert got == expected
        _raw(first, random_observations(1))
        assert _value(first, "requests_total", endpoint="/predict/raw", status="200") == 8


def _workers(url: str) -> set[int]:
    """The processes that listen on the service's port, without the supervisor."""
    port = int(url.rsplit(":", 1)[1])
    found = set()
    for process in psutil.Process().children(recursive=True):
        try:
            words = process.cmdline()
            if "_bentoml_impl.worker.service" in " ".join(words) and any(
                c.laddr.port == port for c in process.net_connections("tcp")
            ):
                found.add(process.pid)
        except psutil.Error:
            continue
    return found


def test_a_killed_worker_is_replaced_and_its_gauges_disappear(tmp_path: Path) -> None:
    policy = write_test_artefact(tmp_path / "v1").folder
    with _service(policy, workers=2) as url:
        assert wait_until(lambda: _value(url, "version_info") == 2)
        with httpx.Client(base_url=url) as client:
            session = client.post("/sessions").json()["session"]
        workers = _workers(url)
        assert len(workers) == 2
        os.kill(min(workers), signal.SIGKILL)
        assert wait_until(lambda: len(_workers(url) - {min(workers)}) == 2, 60)

        def loaded() -> bool:
            try:
                return _value(url, "swaps_total", result="swapped") == 3
            except httpx.HTTPError:
                return False  # the dead worker had accepted this connection

        assert wait_until(loaded, 60)
        assert _value(url, "version_info") == 2
        # Any worker continues the session: it is in the service's folder.
        frame = random_observations(1)[0, 0].tobytes()
        for _ in range(8):
            path = f"{url}/sessions/{session}/act"
            assert httpx.post(path, content=frame, headers=BYTES).status_code == 200
    started = time.monotonic()
    assert wait_until(lambda: not any(psutil.pid_exists(pid) for pid in workers), 30), started
