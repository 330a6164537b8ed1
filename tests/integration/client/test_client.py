"""The Python client with the real service, directly and through a proxy that injects faults."""

from __future__ import annotations

import http.client
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest

from mario.client.client import MarioClient
from mario.errors import ServingError
from serving.launcher import free_port, running
from serving.settings import ServingSettings
from tests.support.onnx_networks import random_observations, write_test_artefact
from tests.support.serving_load import wait_until

PREFIX = "/some/where"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_test_artefact(tmp_path_factory.mktemp("policy") / "v1").folder


@pytest.fixture(scope="module")
def url(folder: Path) -> Iterator[str]:
    with running(ServingSettings(policy=folder, port=0, max_sessions=4)) as url:
        yield url


class Proxy(ThreadingHTTPServer):
    """Forwards requests below a path and injects faults into the next answers.

    Attributes:
        faults: fault of each of the next requests: ``lose`` the answer and close, ``quiet``: close
            silently after the answer, or ``strange``: answer something else.
        passed: requests that reached the service, by the last part of the path.
        connections: connections to the proxy so far.
        closed: set when the proxy closed one of them.
    """

    daemon_threads = True

    def __init__(self, service: str) -> None:
        super().__init__(("127.0.0.1", 0), ProxyHandler)
        self.service = urlsplit(service)
        self.faults: list[str] = []
        self.passed: Counter[str] = Counter()
        self.connections = 0
        self.closed = threading.Event()

    def shutdown_request(self, request: Any) -> None:
        super().shutdown_request(request)
        self.closed.set()  # from here on the client can notice it


class ProxyHandler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Proxy

    def setup(self) -> None:
        super().setup()
        self.server.connections += 1

    def do_GET(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        fault = self.server.faults.pop(0) if self.server.faults else ""
        if fault == "strange":
            status, headers, answer = 200, {"content-type": "text/html"}, b"<p>hello"
        elif not self.path.startswith(f"{PREFIX}/"):
            status, headers, answer = 404, {}, b"nothing here"
        else:
            path = self.path.removeprefix(PREFIX)
            self.server.passed[path.split("?")[0].rpartition("/")[2]] += 1
            inner = http.client.HTTPConnection(
                str(self.server.service.hostname), self.server.service.port, timeout=20
            )
            sent = {k: v for k, v in self.headers.items() if k.lower() not in ("host",)}
            inner.request(self.command, path, body, sent)
            response = inner.getresponse()
            answer, status = response.read(), response.status
            headers = {k: v for k, v in response.getheaders() if k != "content-length"}
            inner.close()
        if fault != "lose":
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("content-length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)
        self.close_connection = fault in ("lose", "quiet")

    do_POST = do_DELETE = do_GET  # noqa: N815

    def log_message(self, format: str, *arguments: object) -> None:
        """Log nothing."""


@contextmanager
def _through(url: str) -> Iterator[tuple[Proxy, MarioClient]]:
    with Proxy(url) as proxy:
        threading.Thread(target=proxy.serve_forever, daemon=True).start()
        try:
            port = proxy.server_address[1]
            with MarioClient(f"http://127.0.0.1:{port}{PREFIX}/") as client:
                yield proxy, client
        finally:
            proxy.shutdown()


def _frame(number: int) -> np.ndarray:
    return np.full((84, 84), number, np.uint8)


def test_after_a_lost_answer_only_requests_without_side_effects_are_repeated(url: str) -> None:
    with _through(url) as (proxy, client):
        session = client.start_session()
        assert client.act(session, _frame(1))["frames"] == 1
        proxy.faults = ["lose"]
        with pytest.raises(
            ServingError, match=r"got no answer to POST /sessions/.*may have processed"
        ):
            client.act(session, _frame(2))
        assert proxy.passed["act"] == 2
        assert client.act(session, _frame(3))["frames"] == 3  # the lost request counted once
        for ask in (client.start_session, lambda: client.end_session(session)):
            proxy.faults = ["lose"]
            with pytest.raises(ServingError, match="not repeated"):
                ask()
        assert proxy.passed["sessions"] == 2
        observations = random_observations(2)
        proxy.faults = ["lose"]
        answer = client.predict(observations)
        assert proxy.passed["raw"] == 2
        np.testing.assert_array_equal(answer.values, client.predict(observations).values)
        proxy.faults = ["lose", "lose"]
        with pytest.raises(ServingError, match="got no answer to POST /predict/raw"):
            client.predict(observations)


def test_an_idle_connection_closed_by_the_service_is_replaced(url: str) -> None:
    with _through(url) as (proxy, client):
        session = client.start_session()
        for number in range(1, 4):
            proxy.faults, before = ["quiet"], proxy.connections
            proxy.closed.clear()
            assert client.act(session, _frame(number))["frames"] == number
            assert proxy.closed.wait(60)
            assert proxy.connections == before + (number > 1)
        assert proxy.passed["act"] == 3
        client.end_session(session)


def test_the_path_of_the_url_is_kept(url: str) -> None:
    with _through(url) as (_, client):
        assert client.ready()
        assert client.card()["version"] == "v1"
        assert client.play("1-1", seed=3, max_steps=10).versions == ("v1",)
        with pytest.raises(ServingError, match="POST /predict/raw: got 400"):
            client.predict(random_observations(1), mode="a b&seed=1")


@pytest.mark.parametrize(
    "observations",
    [
        random_observations(2).astype(np.float32),
        np.zeros((2, 84, 84, 4), np.uint8),  # the same number of bytes in another order
        np.zeros((4, 84, 84), np.uint8),
        np.zeros((0, 4, 84, 84), np.uint8),
        random_observations(1).astype(np.int8),
    ],
)
def test_invalid_observations_are_not_sent(observations: np.ndarray) -> None:
    with pytest.raises(ServingError, match=r"expected uint8 \(N, 4, 84, 84\)"):
        MarioClient("http://127.0.0.1:9").predict(observations)


@pytest.mark.parametrize("shape", [(256, 240, 3), (84, 84, 1), (4, 84, 84)])
def test_invalid_screens_are_not_sent(shape: tuple[int, ...]) -> None:
    with pytest.raises(ServingError, match=r"expected uint8 \(240, 256, 3\)"):
        MarioClient("http://127.0.0.1:9").act("x", np.zeros(shape, np.uint8))
    with pytest.raises(ServingError, match="float32"):
        MarioClient("http://127.0.0.1:9").act("x", np.zeros((84, 84), np.float32))


def test_errors_name_the_url() -> None:
    for scheme in ("http", "https"):
        address = f"{scheme}://127.0.0.1:{free_port()}/mario"
        with pytest.raises(ServingError, match=f"^{address}: got no connection.*mario serve"):
            MarioClient(address).card()
    for wrong in ("127.0.0.1:3000", "ftp://x", "http://", "http://x:port", "http://x/?a=b"):
        with pytest.raises(ServingError, match="expected http://host:port"):
            MarioClient(wrong)
    with pytest.raises(ServingError) as caught:
        MarioClient("http://ann:secret@x")
    assert "secret" not in str(caught.value)
    with pytest.raises(ServingError, match="token") as caught:
        MarioClient("http://x", token="secret-token-0123456789\n")
    assert "secret" not in str(caught.value)


def test_an_answer_of_another_kind_of_service_is_an_error(url: str) -> None:
    with _through(url) as (proxy, client):
        for ask in (
            client.card,
            client.start_session,
            lambda: client.predict(random_observations(1)),
            lambda: client.act("x", _frame(1)),
        ):
            proxy.faults = ["strange"]
            with pytest.raises(ServingError, match="unexpected answer"):
                ask()


def test_an_episode_waits_for_a_busy_service_for_a_limited_time(folder: Path) -> None:
    settings = ServingSettings(
        policy=folder, port=0, max_sessions=1, rate_limit_per_second=2, rate_limit_burst=2
    )
    with running(settings) as url:
        with MarioClient(url) as client:
            started = time.monotonic()
            episode = client.play("1-1", seed=3, max_steps=6)
            assert episode.steps == 6
            assert time.monotonic() - started >= 1.5  # two at once, then two a second
        with (
            MarioClient(url, patience_seconds=0) as hasty,
            pytest.raises(ServingError, match="got 429"),
        ):
            # Over one connection, so faster than two a second.
            _ = [hasty.predict(random_observations(1)) for _ in range(200)]
        with MarioClient(url) as client:
            session = client.start_session()
            started = time.monotonic()
            # Sessions expire after five minutes, longer than the patience of half a minute.
            with pytest.raises(ServingError, match="sessions are in use"):
                client.start_session()
            assert time.monotonic() - started < 25
            client.end_session(session)
            assert wait_until(lambda: client.start_session() != session)
