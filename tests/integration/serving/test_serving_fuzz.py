"""Generated bad requests get no 5xx answer, and the next valid request succeeds."""

from __future__ import annotations

import base64
import collections
import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from mario.policy.onnx import OnnxPolicy
from serving.api.openapi import document
from serving.launcher import running
from serving.settings import ServingSettings
from serving.worker import build_application
from tests.support.bad_requests import bad_request, send_slowly, status_of
from tests.support.onnx_networks import random_observations, write_test_artefact
from tests.support.serving_load import wait_until
from tests.support.slow_machine import proves_within, until_proved

BYTES = {"content-type": "application/octet-stream"}
BODY_SECONDS = 2.0


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    policy = OnnxPolicy(write_test_artefact(tmp_path_factory.mktemp("policy") / "v1"))
    settings = ServingSettings(
        policy=policy.artefact.folder,
        port=0,
        max_observations=4,
        body_timeout_seconds=BODY_SECONDS,
        session_timeout_seconds=30,
        max_sessions=32,
    )
    log = tmp_path_factory.mktemp("log") / "service.log"
    with running(settings, log=log) as url:
        yield url
    assert "Traceback" not in log.read_text()


def _good(url: str) -> bool:
    body = random_observations(1).tobytes()
    for _ in range(5):
        begun = time.monotonic()
        answer = httpx.post(f"{url}/predict/raw", content=body, headers=BYTES, timeout=60)
        if answer.status_code != 408 or time.monotonic() - begun < BODY_SECONDS:
            break  # otherwise the machine was too slow to send it
    return answer.status_code == 200


def _throw(url: str, count: int, seed: int) -> collections.Counter[int | None]:
    host, port = url.removeprefix("http://").split(":")
    rng = random.Random(seed)
    statuses: collections.Counter[int | None] = collections.Counter()
    for number in range(count):
        request = bad_request(rng)
        status = status_of(host, int(port), request.data, whole=request.whole)
        statuses[status] += 1
        assert status is None or status < 500, (number, request.data[:300])
        # Only a client that closes in the middle of a request may get no answer.
        assert status is not None or not request.whole, (number, request.data[:300])
        if number % 100 == 0:
            assert _good(url), (number, request.data[:300])
    assert _good(url)
    page = httpx.get(f"{url}/metrics").text
    assert 'reason="internal"' not in page
    # Labels are routes and reasons, never text from requests, so the page stays small.
    assert len(page) < 200_000
    return statuses


def test_bad_requests(url: str) -> None:
    statuses = _throw(url, 600, seed=1)
    assert {400, 404, 405, 413, 415} <= set(statuses)


@pytest.mark.slow
def test_ten_thousand_bad_requests(url: str) -> None:
    # One in a hundred happens to be valid, and another closes early and gets no answer.
    statuses = _throw(url, 10_500, seed=2)
    print("\n", dict(statuses))
    unanswered = statuses.pop(None, 0)
    refused = sum(count for status, count in statuses.items() if status and status >= 400)
    assert refused >= 10_000, f"{refused} refused, {unanswered} broken off without an answer"


def test_slow_and_truncated_bodies(url: str) -> None:
    host, port = url.removeprefix("http://").split(":")
    head = (
        b"POST /predict/raw HTTP/1.1\r\nHost: localhost\r\n"
        b"Content-Type: application/octet-stream\r\nContent-Length: 28224\r\n\r\n"
    )
    assert send_slowly(host, int(port), head + bytes(20_000), 12, 0.3) in (408, None)

    def slow_but_whole() -> None:
        with proves_within(BODY_SECONDS):
            assert send_slowly(host, int(port), head + bytes(28_224), 10, 0.05) == 200

    until_proved(slow_but_whole)
    assert status_of(host, int(port), head + bytes(1000), whole=False) in (400, 408, None)
    assert _good(url)


def _bytes_of(media: dict[str, Any]) -> bytes | None:
    if "x-example-zeros" in media:
        return bytes(media["x-example-zeros"])
    text = media.get("x-example-base64")
    return None if text is None else base64.b64decode(text)


def test_every_example_of_the_openapi_document_works(url: str) -> None:
    # Bad requests may have left sessions behind; those expire.
    assert wait_until(lambda: httpx.post(f"{url}/sessions").status_code == 201, 40)
    written = httpx.get(f"{url}/openapi.json").json()
    ran = collections.Counter[str]()
    for path, methods in written["paths"].items():
        for method, operation in methods.items():
            content = operation.get("requestBody", {}).get("content", {})
            asks: list[dict[str, Any]] = [] if content else [{}]
            for kind, media in content.items():
                examples = media.get("examples", {}).values()
                asks += [{"json": example["value"]} for example in examples]
                data = _bytes_of(media)
                if data is not None:
                    asks.append({"content": data, "headers": {"content-type": kind}})
            for ask in asks:
                name = ""
                if "{id}" in path:
                    name = httpx.post(f"{url}/sessions").json()["session"]
                place = path.replace("{id}", name).replace("{version}", "v1")
                answer = httpx.request(method, url + place, **ask)
                assert answer.status_code in (200, 201), (path, answer.text)
                ran[operation["operationId"]] += 1
                if name and method != "delete":
                    assert httpx.delete(f"{url}/sessions/{name}").status_code == 200
            assert asks, f"{method} {path} has no example"
    assert ran["act"] == ran["predict"] == ran["predict_frames"] == 2
    assert ran.total() >= 22


def test_the_openapi_document_names_every_route(tmp_path: Path) -> None:
    """Only the web page and its files are missing: a route outside the document is not fuzzed."""

    async def inner(*_: object) -> None: ...

    application = build_application(
        ServingSettings(policy=tmp_path, session_file=tmp_path / "s"), inner
    )
    router = application._router
    there = {("/".join(parts), method) for parts, methods in router._patterns for method in methods}
    there |= {(path, method) for path, methods in router._exact.items() for method in methods}
    written = document(ServingSettings())["paths"]
    named = {(path, method.upper()) for path, methods in written.items() for method in methods}
    page = {("/", "GET"), ("/login", "POST"), ("/static/{name}", "GET"), ("/docs", "GET"),
            ("/openapi.json", "GET")}  # fmt: skip
    assert {(path, method) for path, method in there if method != "HEAD"} == named | page


class _Sessions:
    """Live sessions for generated requests, which otherwise fail at the look-up of the name.

    Attributes:
        met: statuses of the requests that were sent to a session that lived, by operation.
    """

    def __init__(self, url: str) -> None:
        self._url = url
        self._name: str | None = None
        self.met: dict[str, collections.Counter[int]] = collections.defaultdict(collections.Counter)

    def living(self) -> str:
        """Return the name of a live session."""
        if self._name is None:
            assert wait_until(self._start, 40)  # bad requests may have left all slots taken
        assert self._name is not None
        return self._name

    def _start(self) -> bool:
        answer = httpx.post(f"{self._url}/sessions")
        self._name = answer.json().get("session")
        return answer.status_code == 201

    def met_one(self, operation: str, status: int) -> None:
        """Record the status of a live session's answer; it must not be unknown or expired."""
        assert status not in (404, 410), operation
        self.met[operation][status] += 1
        if operation.startswith("DELETE") and status == 200:
            self._name = None

    def end(self) -> None:
        """End the remaining session, which must have survived all requests."""
        if self._name is not None:
            path = f"{self._url}/sessions/{self._name}"
            frame = random_observations(1)[0, 0].tobytes()
            answer = httpx.post(f"{path}/act", content=frame, headers=BYTES)
            assert answer.status_code == 200, answer.text
            assert httpx.delete(path).status_code == 200
            self._name = None


def _check_operation(url: str, operation: Any, examples: int, sessions: _Sessions) -> int:
    """Send generated requests of one operation; return their number."""
    from hypothesis import HealthCheck, Phase, given, settings
    from hypothesis import strategies as st
    from schemathesis.checks import not_a_server_error

    allowed = {int(status) for status in operation.definition.raw["responses"]} | {405}
    frame = random_observations(1)[0, 0].tobytes()
    sent = 0

    @settings(
        max_examples=examples,
        deadline=None,
        database=None,
        derandomize=True,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=operation.as_strategy(), kind=st.sampled_from(["as is", "living", "good"]))
    def check(case: Any, kind: str) -> None:
        nonlocal sent
        lives = "id" in case.path_parameters and kind != "as is"
        if lives:
            case.path_parameters["id"] = sessions.living()
            if kind == "good" and operation.label.endswith("/act"):
                # Send a valid frame in between, so that bad requests meet a session in use.
                case.media_type, case.body = BYTES["content-type"], frame
        response = case.call(base_url=url)
        case.validate_response(response, checks=[not_a_server_error])
        assert response.status_code in allowed, response.text
        if lives:
            sessions.met_one(operation.label, response.status_code)
        sent += 1

    check()
    sessions.end()
    return sent


@pytest.mark.parametrize("examples", [5, pytest.param(100, marks=pytest.mark.slow)])
def test_schemathesis(url: str, examples: int) -> None:
    schemathesis = pytest.importorskip("schemathesis")
    written = httpx.get(f"{url}/openapi.json").json()
    # Hypothesis does not generate strings of 37,632 characters, so observations are loosened.
    written["components"]["schemas"]["Observation"] = {
        "anyOf": [
            {"type": "string", "contentEncoding": "base64"},
            {"type": "array", "items": {"type": "array", "items": {"type": "number"}}},
        ]
    }
    schema = schemathesis.openapi.from_dict(written)
    sessions = _Sessions(url)
    sent = sum(
        _check_operation(url, operation.ok(), examples, sessions)
        for operation in schema.get_all_operations()
    )
    assert sent >= 5 * examples
    # About two of three requests with a session in the path use a live one.
    act, delete = sessions.met["POST /sessions/{id}/act"], sessions.met["DELETE /sessions/{id}"]
    assert min(act.total(), delete.total()) >= 0.4 * examples
    if examples >= 100:
        assert act[200] >= 0.1 * examples
        assert {400, 415} & set(act)
        assert delete[200] >= 0.3 * examples
    assert _good(url)
    print(f"\n{sent} schemathesis cases; on living sessions act {dict(act)}, end {dict(delete)}")


@pytest.mark.parametrize("examples", [3, pytest.param(40, marks=pytest.mark.slow)])
def test_schemathesis_follows_links_between_operations(url: str, examples: int) -> None:
    """Links of the document carry the session's name through start, act, end and act again."""
    schemathesis = pytest.importorskip("schemathesis")
    from hypothesis import HealthCheck, Phase, settings
    from schemathesis.checks import not_a_server_error

    schema = schemathesis.openapi.from_dict(httpx.get(f"{url}/openapi.json").json())
    statuses: dict[str, collections.Counter[int]] = collections.defaultdict(collections.Counter)
    started: list[str] = []

    class Sequences(schema.include(path_regex="^/sessions").as_state_machine()):  # type: ignore[misc]
        def get_call_kwargs(self, case: Any) -> dict[str, Any]:
            return {"base_url": url}

        def validate_response(self, response: Any, case: Any, **_: Any) -> None:
            case.validate_response(response, checks=[not_a_server_error])
            statuses[case.operation.label][response.status_code] += 1
            if response.status_code == 201:
                started.append(response.json()["session"])

        def teardown(self) -> None:
            for name in started:
                httpx.delete(f"{url}/sessions/{name}")
            started.clear()

    Sequences.run(
        settings=settings(
            max_examples=examples,
            stateful_step_count=8,
            deadline=None,
            database=None,
            derandomize=True,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
    )
    print("\n", {label: dict(counts) for label, counts in statuses.items()})
    assert statuses["POST /sessions"][201] >= examples
    # Act gets 400 for an invalid body or an invalid name; 200 only for a session.
    assert statuses["DELETE /sessions/{id}"][200] >= examples // 3
    assert _good(url)
