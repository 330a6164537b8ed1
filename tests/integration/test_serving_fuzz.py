"""Whatever is thrown at the service, it answers without a 5xx, and the next good request works."""

from __future__ import annotations

import collections
import random
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from mario.policy.onnx import OnnxPolicy
from serving.launcher import running
from serving.openapi import document
from serving.settings import ServingSettings
from tests.support.bad_requests import bad_request, send_slowly, status_of
from tests.support.onnx_networks import random_observations, write_test_artefact
from tests.support.serving_load import wait_until

BYTES = {"content-type": "application/octet-stream"}


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    policy = OnnxPolicy(write_test_artefact(tmp_path_factory.mktemp("policy") / "v1"))
    settings = ServingSettings(
        policy=policy.artefact.folder,
        port=0,
        max_observations=4,
        body_timeout_seconds=2,
        session_timeout_seconds=30,
        max_sessions=32,
    )
    log = tmp_path_factory.mktemp("log") / "service.log"
    with running(settings, log=log) as url:
        yield url
    assert "Traceback" not in log.read_text()


def _good(url: str) -> bool:
    answer = httpx.post(
        f"{url}/predict/raw", content=random_observations(1).tobytes(), headers=BYTES
    )
    return answer.status_code == 200


def _throw(url: str, count: int, seed: int) -> collections.Counter[int | None]:
    host, port = url.removeprefix("http://").split(":")
    rng = random.Random(seed)
    statuses: collections.Counter[int | None] = collections.Counter()
    for number in range(count):
        request = bad_request(rng)
        status = status_of(host, int(port), request)
        statuses[status] += 1
        assert status is None or status < 500, (number, request[:300])
        if number % 100 == 0:
            assert _good(url), (number, request[:300])
    assert _good(url)
    page = httpx.get(f"{url}/metrics").text
    assert 'reason="internal"' not in page
    # Labels are routes and reasons, never what a stranger typed: the page stays small.
    assert len(page) < 200_000
    return statuses


def test_bad_requests(url: str) -> None:
    statuses = _throw(url, 600, seed=1)
    assert {400, 404, 405, 413, 415} <= set(statuses)


@pytest.mark.slow
def test_ten_thousand_bad_requests(url: str) -> None:
    statuses = _throw(url, 10_000, seed=2)
    print("\n", dict(statuses))


def test_slow_and_truncated_bodies(url: str) -> None:
    host, port = url.removeprefix("http://").split(":")
    head = (
        b"POST /predict/raw HTTP/1.1\r\nHost: x\r\nContent-Type: application/octet-stream\r\n"
        b"Content-Length: 28224\r\n\r\n"
    )
    assert send_slowly(host, int(port), head + bytes(20_000), 12, 0.3) in (408, None)
    assert send_slowly(host, int(port), head + bytes(28_224), 10, 0.05) == 200
    assert status_of(host, int(port), head + bytes(1000)) in (400, 408, None)
    assert _good(url)


def test_every_example_of_the_document_runs(url: str) -> None:
    # Bad requests may have left sessions behind; those end by themselves.
    assert wait_until(lambda: httpx.post(f"{url}/sessions").status_code == 201, 40)
    ran = 0
    for path, methods in document(ServingSettings())["paths"].items():
        for method, operation in methods.items():
            content = operation.get("requestBody", {}).get("content", {})
            for kind, media in content.items():
                for example in media.get("examples", {}).values():
                    assert kind == "application/json"
                    answer = httpx.request(method, url + path, json=example["value"])
                    assert answer.status_code in (200, 201), answer.text
                    ran += 1
            if not content and "{id}" not in path:
                assert httpx.request(method, url + path).status_code == 200
                ran += 1
    assert ran >= 12


def _check_operation(url: str, operation: Any, examples: int) -> int:
    """Send generated requests of one operation; return how many."""
    from hypothesis import HealthCheck, Phase, given, settings
    from schemathesis.checks import not_a_server_error

    allowed = {int(status) for status in operation.definition.raw["responses"]} | {405}
    sent = 0

    @settings(
        max_examples=examples,
        deadline=None,
        database=None,
        derandomize=True,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=operation.as_strategy())
    def check(case: Any) -> None:
        nonlocal sent
        response = case.call(base_url=url)
        case.validate_response(response, checks=[not_a_server_error])
        assert response.status_code in allowed, response.text
        sent += 1

    check()
    return sent


@pytest.mark.parametrize("examples", [5, pytest.param(100, marks=pytest.mark.slow)])
def test_schemathesis(url: str, examples: int) -> None:
    schemathesis = pytest.importorskip("schemathesis")
    written = httpx.get(f"{url}/openapi.json").json()
    # Hypothesis makes no string of 37,632 characters: anything goes where an observation stands.
    written["components"]["schemas"]["Observation"] = {
        "anyOf": [
            {"type": "string", "contentEncoding": "base64"},
            {"type": "array", "items": {"type": "array", "items": {"type": "number"}}},
        ]
    }
    schema = schemathesis.openapi.from_dict(written)
    sent = sum(
        _check_operation(url, operation.ok(), examples) for operation in schema.get_all_operations()
    )
    assert sent >= 5 * examples
    assert _good(url)
    print(f"\n{sent} schemathesis cases")
