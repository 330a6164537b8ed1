"""Tokens, the page's cookie, rate limits, slow clients, and secrets in logs."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import httpx
import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect

from mario.config.addresses import absolute_url
from mario.errors import ServingError
from serving.api.openapi import document
from serving.launcher import running
from serving.settings import ServingSettings
from tests.support.onnx_networks import random_observations, write_test_artefact
from tests.support.serving_load import wait_until
from tests.support.slow_machine import proves_within, until_proved

OLD, NEW, THIRD = "old-token-0123456789", "new-token-0123456789", "third-token-0123456789"
BYTES = {"content-type": "application/octet-stream"}
MAX_HEADER_BYTES = 8192
HASTY_SECONDS = 1.0
KEPT_SECONDS = 5.0  # by uvicorn, between two requests
#: Invalid tokens, or log-ins, of one address at once; then one a second.
GUESSES = 10


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_test_artefact(tmp_path_factory.mktemp("policy") / "v1").folder


@pytest.fixture(scope="module")
def secured(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    place = tmp_path_factory.mktemp("secured")
    tokens, log = place / "tokens", place / "service.log"
    tokens.write_text(f"{OLD}\n{NEW}\n")
    settings = ServingSettings(
        policy=folder, port=0, tokens_file=tokens, max_header_bytes=MAX_HEADER_BYTES
    )
    with running(settings, log=log) as url:
        yield url, place


@pytest.fixture(scope="module")
def hasty(folder: Path) -> Iterator[str]:
    """A service that allows HASTY_SECONDS for headers and for a body."""
    settings = ServingSettings(
        policy=folder, port=0, tokens=OLD, body_timeout_seconds=HASTY_SECONDS
    )
    with running(settings) as url:
        yield url


def _ask(url: str, token: str | None, path: str = "/predict/raw") -> httpx.Response:
    headers = BYTES if token is None else BYTES | {"authorization": f"Bearer {token}"}
    return httpx.post(url + path, content=random_observations(1).tobytes(), headers=headers)


def test_everything_but_health_needs_a_token(secured: tuple[str, Path]) -> None:
    url, _ = secured
    for path in ("/livez", "/healthz", "/readyz", "/v2/health/live", "/v2/health/ready"):
        assert httpx.get(url + path).status_code == 200
    for path, methods in document(ServingSettings())["paths"].items():
        if path in ("/livez", "/healthz", "/readyz") or path.endswith(("/live", "/ready")):
            continue
        for method in methods:
            answer = httpx.request(method, url + path.replace("{id}", "0" * 37))
            assert answer.status_code == 401, (method, path)
            assert answer.headers["www-authenticate"].startswith("Bearer")
    for path in ("/metrics", "/openapi.json", "/docs", "/card", "/static/app.js", "/"):
        assert httpx.get(url + path).status_code == 401, path
    assert _ask(url, None).status_code == 401
    assert _ask(url, "wrong-token-0123456789").status_code == 401
    assert _ask(url, OLD[:-1]).status_code == 401
    assert _ask(url, OLD).status_code == 200
    assert (
        httpx.get(f"{url}/metrics", headers={"authorization": f"bearer {NEW}"}).status_code == 200
    )


def test_tokens_are_rotated_without_a_restart(secured: tuple[str, Path]) -> None:
    url, place = secured
    tokens = place / "tokens"
    before = tokens.read_text()
    try:
        tokens.write_text(f"{NEW}\n{THIRD}\n")
        time.sleep(
            1.2
        )  # the file is checked once a second; a request before that would count as a guess
        assert _ask(url, THIRD).status_code == 200
        assert _ask(url, NEW).status_code == 200
        assert _ask(url, OLD).status_code == 401
        tokens.write_text("short\n")  # an invalid file keeps the former tokens
        time.sleep(2.2)
        assert _ask(url, NEW).status_code == 200
    finally:
        tokens.write_text(before)
    time.sleep(1.2)
    assert wait_until(lambda: _ask(url, OLD).status_code == 200)


def test_the_page_exchanges_a_token_for_a_cookie(secured: tuple[str, Path]) -> None:
    url, _ = secured
    with httpx.Client(base_url=url) as client:
        form = client.get("/")
        assert form.status_code == 401
        assert "password" in form.text
        assert client.post("/login", data={"token": "wrong"}).status_code == 401
        answer = client.post("/login", data={"token": OLD})
        assert answer.status_code == 303
        cookie = answer.headers["set-cookie"]
        assert "HttpOnly" in cookie
        assert "SameSite=Strict" in cookie
        assert OLD not in cookie
        assert client.get("/").status_code == 200
        assert client.get("/card").json()["version"] == "v1"
        until, signature = client.cookies["mario_page"].split(".")
        client.cookies.set("mario_page", f"{int(until) + 1}.{signature}")
    fresh = {"cookie": f"mario_page={int(until) + 1}.{signature}"}
    assert httpx.get(f"{url}/card", headers=fresh).status_code == 401


def test_the_watch_socket_needs_a_token_and_refuses_unknown_messages(
    secured: tuple[str, Path],
) -> None:
    url, _ = secured
    address = f"ws{url.removeprefix('http')}/watch"
    authorised = {"Authorization": f"Bearer {OLD}"}
    refused = (
        (address, {}),
        (address, {"Authorization": "Bearer wrong-token-0123456789"}),
        (address, authorised | {"Origin": "http://elsewhere.example"}),
        (address + "/../watch", authorised),
        (f"{address}er", authorised),
    )
    for place, headers in refused:
        with pytest.raises(InvalidStatus) as caught, connect(place, additional_headers=headers):
            pass
        assert caught.value.response.status_code == 403
    own = authorised | {"Origin": url}
    start = {"type": "start", "level": "1-1", "seed": 1}
    wrong: list[str | bytes] = [
        b"\x00\xff",
        "",
        "{",
        "[]",
        "x" * 600,
        "[" * 500,
        *(
            json.dumps(message)
            for message in (
                {"type": "buttons", "value": 256},
                {"type": "buttons", "value": True},
                {"type": "speed", "value": 1e9},
                {"type": "pause", "value": 1},
                {"type": "control", "value": "both"},
                start | {"level": "9-1"},
                start | {"level": ["1-1"]},
                start | {"seed": 1.5},
                start | {"seed": 2**63},
                start | {"sticky": "yes"},
                {"type": "stop"},
            )
        ),
    ]
    for message in wrong:
        with connect(address, additional_headers=own) as socket_:
            socket_.send(message)
            with pytest.raises(ConnectionClosed) as closed:
                _read_on(socket_)
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 4400, message
    metrics = f"{url}/metrics"
    gone = "\nmario_serving_watchers 0.0\n"
    assert wait_until(lambda: gone in httpx.get(metrics, headers=authorised).text)
    with ExitStack() as watching:
        for _ in range(4):
            pages = watching.enter_context(connect(address, additional_headers=own))
            assert pages.recv(timeout=60)
        with pytest.raises(InvalidStatus), connect(address, additional_headers=own):
            pass  # the fifth of four
    assert _ask(url, OLD).status_code == 200
    page = httpx.get(metrics, headers=authorised).text
    for reason in ("token", "origin", "watchers"):
        assert f'endpoint="/watch",reason="{reason}"' in page


def _read_on(connection: ClientConnection) -> None:
    """Read messages until the service closes, or 500 frames of the game."""
    for _ in range(500):
        connection.recv(timeout=60)


def _guess(ask: Callable[[int], httpx.Response], refusals: int) -> httpx.Response:
    """Guess until the limit refused ``refusals`` guesses; return the first such answer.

    However slow the machine is, no more guesses pass than the limit allows in that time.
    """
    started = time.monotonic()
    answers: dict[int, list[httpx.Response]] = {401: [], 429: []}
    for number in range(2000):
        answer = ask(number)
        answers[answer.status_code].append(answer)
        if len(answers[429]) == refusals:
            break
    assert len(answers[401]) <= GUESSES + 1 + time.monotonic() - started
    assert len(answers[429]) == refusals
    return answers[429][0]


def test_guessing_tokens_is_rate_limited(secured: tuple[str, Path]) -> None:
    url, _ = secured
    with httpx.Client(base_url=url) as client:  # one connection: faster than the limit refills
        _guess(lambda number: client.post("/login", data={"token": f"guess{number}"}), 5)


def test_invalid_tokens_are_limited_and_valid_ones_are_not(secured: tuple[str, Path]) -> None:
    url, _ = secured
    wrong: tuple[dict[str, str], ...] = (
        {"authorization": "Bearer wrong-token-0123456789"},
        {"cookie": f"mario_page={int(time.time()) + 99}.{'0' * 64}"},
    )
    with httpx.Client(base_url=url) as client:
        for headers in wrong:

            def guess(_: int, headers: dict[str, str] = headers) -> httpx.Response:
                return client.get("/card", headers=headers)

            refused = _guess(guess, 20)
            assert refused.headers["retry-after"] == "1"
            assert "wrong token" in refused.json()["error"]
            assert _ask(url, OLD).status_code == 200
            assert _ask(url, None).status_code == 401  # without a token it is no guess
        address = f"ws{url.removeprefix('http')}/watch"
        for _ in range(50):  # the limit refills one guess a second, which this may use
            _guess(guess, 1)
            with pytest.raises(InvalidStatus), connect(address, additional_headers=wrong[0]):
                pass
            if _count(url, "/watch", "rate_limit"):
                break
    for endpoint in ("/card", "/watch"):
        assert _count(url, endpoint, "rate_limit"), endpoint


def _count(url: str, endpoint: str, reason: str) -> int:
    """The number of errors of an endpoint with a reason."""
    page = httpx.get(f"{url}/metrics", headers={"authorization": f"Bearer {OLD}"}).text
    line = rf'\nmario_serving_errors_total{{endpoint="{endpoint}",reason="{reason}"}} (\d+)'
    found = re.search(line, page)
    return 0 if found is None else int(found[1])


def test_no_secret_in_the_log(secured: tuple[str, Path]) -> None:
    url, place = secured
    _ask(url, OLD)
    _ask(url, "wrong-token-0123456789")
    log = (place / "service.log").read_text()
    assert "Starting" in log
    # Pages that close in the middle of a frame and bad requests do not fill the log either.
    assert "Traceback" not in log
    for secret in (OLD, NEW, THIRD, "wrong-token-0123456789"):
        assert secret not in log


def _connect(url: str) -> socket.socket:
    host, port = url.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=60)


def test_large_headers_and_slow_bodies_are_refused(secured: tuple[str, Path], hasty: str) -> None:
    url, _ = secured
    authorised = {"authorization": f"Bearer {OLD}"}
    answer = httpx.get(f"{url}/card", headers=authorised | {"x-large": "x" * 9000})
    assert answer.status_code == 431
    with _connect(hasty) as connection:
        connection.sendall(
            b"POST /predict/raw HTTP/1.1\r\nHost: x\r\nContent-Length: 28224\r\n"
            b"Content-Type: application/octet-stream\r\n"
            b"Authorization: Bearer " + OLD.encode() + b"\r\n\r\n" + b"\0" * 100
        )
        assert connection.recv(4096).startswith(b"HTTP/1.1 408")
    _still_answers(hasty)


def _still_answers(hasty: str) -> None:
    def answers() -> None:
        with proves_within(HASTY_SECONDS):
            assert _ask(hasty, OLD).status_code == 200

    until_proved(answers)


def _until_closed(url: str, start: bytes, piece: bytes) -> tuple[bytes, float]:
    """Send a piece every 0.1 s until the service closes; return its answer and the seconds."""
    answer, begun = b"", time.monotonic()
    with _connect(url) as connection, suppress(ConnectionResetError, BrokenPipeError):
        connection.sendall(start)
        connection.settimeout(0.1)
        while time.monotonic() - begun < 60:
            try:
                got = connection.recv(4096)
            except TimeoutError:
                connection.sendall(piece)
            else:
                if not got:
                    break
                answer += got
        else:
            raise AssertionError(f"it is still open, after {answer!r}")
    return answer, time.monotonic() - begun


def _assert_cut_off(url: str, start: bytes, piece: bytes, status: bytes) -> None:
    """Trickle until the service closes, which must be soon after HASTY_SECONDS."""
    for _ in range(3):  # the machine may stall, but not always
        answer, seconds = _until_closed(url, start, piece)
        assert seconds > HASTY_SECONDS / 2
        if answer.startswith(b"HTTP/1.1 " + status) and seconds < HASTY_SECONDS + 5:
            return
    raise AssertionError(f"closed after {seconds:.1f} s with {answer!r}")


def _whole_answer(connection: socket.socket) -> bytes:
    """Read one complete answer, whose headers and body may arrive separately."""
    answer, missing = b"", 1
    while missing > 0:
        piece = connection.recv(4096)
        assert piece, answer
        answer += piece
        head, _, body = answer.partition(b"\r\n\r\n")
        length = re.search(rb"(?i)\r\ncontent-length: (\d+)", head)
        missing = 1 if length is None else int(length[1]) - len(body)
    return answer


def _to_the_end(connection: socket.socket) -> bytes:
    answer = b""
    with suppress(ConnectionResetError):
        while piece := connection.recv(4096):
            answer += piece
    return answer


def test_endless_headers_and_silent_connections_are_cut_off(
    secured: tuple[str, Path], hasty: str
) -> None:
    url, _ = secured
    # Silence, and headers that trickle in.
    _assert_cut_off(hasty, b"", b"", b"408")
    _assert_cut_off(hasty, b"GET /livez HTTP/1.1\r\n", b"X-Slow: 1\r\n", b"408")

    def counted() -> None:
        with proves_within(HASTY_SECONDS):
            assert _count(hasty, "unknown", "head_timeout") >= 2

    until_proved(counted)
    # Endless: refused at the first byte beyond max_header_bytes, not collected.
    for start in (b"GET /livez HTTP/1.1\r\nX: ", b"GET /", b"GET /livez HTTP/1.1\r\nX: y\r\n"):
        with _connect(url) as connection:
            connection.sendall(start + b"x" * (MAX_HEADER_BYTES - len(start)))
            connection.settimeout(0.1)
            with pytest.raises(TimeoutError):
                connection.recv(4096)
            connection.settimeout(60)
            connection.sendall(b"x")
            assert _to_the_end(connection).startswith(b"HTTP/1.1 431"), start
    assert _count(url, "unknown", "headers") >= 3


def test_headers_in_two_pieces_and_a_second_request_are_accepted(hasty: str) -> None:
    def one_head(connection: socket.socket) -> None:
        with proves_within(HASTY_SECONDS):
            connection.sendall(b"GET /livez HTT")
            time.sleep(0.2)
            connection.sendall(b"P/1.1\r\nHost: x\r\n\r\n")
            assert _whole_answer(connection).startswith(b"HTTP/1.1 200")

    def two_heads() -> None:
        with _connect(hasty) as connection:
            one_head(connection)
            with proves_within(KEPT_SECONDS):
                time.sleep(
                    HASTY_SECONDS + 0.2
                )  # longer than headers may take, between two requests
                one_head(connection)

    until_proved(two_heads)


def test_the_body_of_a_refused_request_is_read_for_a_limited_time(
    secured: tuple[str, Path], hasty: str
) -> None:
    """A 401 is sent before the body is read; the client may not hold the connection after that."""
    url, _ = secured
    head = b"POST /predict/raw HTTP/1.1\r\nHost: x\r\nContent-Type: application/octet-stream\r\n"
    # A body that trickles in, and trailers.
    for start, piece in (
        (head + b"Content-Length: 28224\r\n\r\n", b"\0"),
        (head + b"Transfer-Encoding: chunked\r\n\r\n0\r\n", b"X-T: y\r\n"),
    ):
        _assert_cut_off(hasty, start, piece, b"401")
    # Endless trailers, and one endless trailer: refused beyond max_header_bytes.
    start = head + b"Transfer-Encoding: chunked\r\n\r\n0\r\n"
    for trailers in (b"X-T: " + b"y" * 992 + b"\r\n", b"y" * 999):
        refused = _count(url, "unknown", "headers")
        with _connect(url) as connection:
            connection.sendall(start)
            assert _whole_answer(connection).startswith(b"HTTP/1.1 401")
            connection.sendall(b"X-T: y" + trailers * (1 + MAX_HEADER_BYTES // len(trailers)))
            assert _to_the_end(connection) == b""
        assert _count(url, "unknown", "headers") == refused + 1
    # If the body does arrive, the connection stays usable.
    with _connect(url) as connection:
        connection.sendall(head + b"Content-Length: 28224\r\n\r\n" + bytes(1000))
        assert _whole_answer(connection).startswith(b"HTTP/1.1 401")
        for _ in range(2):
            connection.sendall(bytes(13_612))
            time.sleep(0.2)
        connection.sendall(b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n")
        assert _whole_answer(connection).startswith(b"HTTP/1.1 200")
    # Chunks of one byte are valid.
    with _connect(url) as connection:
        connection.sendall(
            head
            + b"Authorization: Bearer "
            + OLD.encode()
            + b"\r\nTransfer-Encoding: chunked\r\n\r\n"
        )
        for _ in range(28):
            connection.sendall(b"1\r\n\0\r\n" * 1008)
        connection.sendall(b"0\r\n\r\n")
        assert connection.recv(4096).startswith(b"HTTP/1.1 200")


def test_the_rate_limit_is_per_token(folder: Path) -> None:
    settings = ServingSettings(
        policy=folder,
        port=0,
        tokens=f"{OLD},{NEW}",
        rate_limit_per_second=0.01,
        rate_limit_burst=5,
    )
    with running(settings) as url:
        started = time.monotonic()
        answers = [_ask(url, OLD) for _ in range(8)]
        assert [a.status_code for a in answers] == [200] * 5 + [429] * 3
        waited = time.monotonic() - started
        assert 100 - waited <= int(answers[-1].headers["retry-after"]) <= 100
        assert _ask(url, NEW).status_code == 200
        assert httpx.get(f"{url}/livez").status_code == 200
        page = httpx.get(f"{url}/metrics", headers={"authorization": f"Bearer {NEW}"}).text
        assert 'reason="rate_limit"' in page


def test_forwarded_addresses_count_only_from_trusted_proxies(folder: Path) -> None:
    """Limits count by connection; only a trusted proxy may name the client behind it."""
    limits = {"rate_limit_per_second": 0.001, "rate_limit_burst": 5}
    body = random_observations(1).tobytes()

    def ask(url: str, number: int) -> int:
        headers = BYTES | {"x-forwarded-for": f"10.1.2.{number}"}
        return httpx.post(f"{url}/predict/raw", content=body, headers=headers).status_code

    with running(ServingSettings(policy=folder, port=0, **limits)) as url:
        assert [ask(url, number) for number in range(10)] == [200] * 5 + [429] * 5
    trusting = ServingSettings(policy=folder, port=0, trusted_proxies="127.0.0.1", **limits)
    with running(trusting) as url:
        assert [ask(url, number) for number in range(10)] == [200] * 10
        assert [ask(url, 77) for _ in range(6)] == [200] * 5 + [429]


def test_guesses_with_forged_addresses_count_as_one_client(secured: tuple[str, Path]) -> None:
    url, _ = secured
    with httpx.Client(base_url=url) as client:

        def guess(number: int) -> httpx.Response:
            address = {"x-forwarded-for": f"10.1.2.{number}"}
            return client.post("/login", data={"token": f"guess-{number}"}, headers=address)

        _guess(guess, 10)


def test_invalid_settings_are_refused_by_name_without_secrets() -> None:
    cases = [
        ({"HOST": "0.0.0.0"}, "MARIO_SERVING_TOKENS"),
        ({"TOKENS": "short-secret"}, "16"),
        ({"TOKENS_FILE": "/nowhere"}, "tokens file"),
        ({"PORT": "99999"}, "MARIO_SERVING_PORT"),
        ({"WORKERS": "many"}, "MARIO_SERVING_WORKERS"),
        ({"SHADOW_SHARE": "2"}, "MARIO_SERVING_SHADOW_SHARE"),
        ({"SPEED": "1"}, "no such setting"),
        ({"TRUSTED_PROXIES": "127.0.0.1,proxy.example"}, "MARIO_SERVING_TRUSTED_PROXIES"),
    ]
    for environment, words in cases:
        with pytest.raises(ServingError) as caught:
            ServingSettings.from_env({f"MARIO_SERVING_{k}": v for k, v in environment.items()})
        assert words in str(caught.value), environment
        assert "short-secret" not in str(caught.value)
    assert OLD not in repr(ServingSettings(tokens=OLD))
    assert ServingSettings(host="0.0.0.0", tokens=OLD).to_env()["MARIO_SERVING_TOKENS"] == OLD
    assert ServingSettings().to_env() == {}


def test_mario_serve_starts_a_client_plays_and_the_service_stops(tmp_path: Path) -> None:
    # A policy that always runs right dies at the first enemy.
    policy = write_test_artefact(tmp_path / "v1", constant_action=1).folder
    programs = Path(sys.executable).parent
    process = subprocess.Popen(
        [programs / "mario", "serve", "--policy", policy, "--port", "0"],
        cwd=tmp_path,
        env=os.environ | {"MARIO_SERVING_TOKENS": OLD},
        stdout=subprocess.PIPE,
        text=True,
    )

    def play(token: str, url: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [
                sys.executable,
                "-m",
                "mario.client",
                "--url",
                url,
                "--level",
                "1-1",
                "--seed",
                "1",
            ],
            env=os.environ | {"MARIO_TOKEN": token},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        url = line.split()[2].rstrip("/")

        def ready() -> bool:
            try:
                return httpx.get(f"{url}/readyz").status_code == 200
            except httpx.HTTPError:
                return False

        assert wait_until(ready, 150)
        played = play(OLD, url)
        assert played.returncode == 0, played.stderr
        words = r"1-1 seed 1: DEATH at \d{3} px after \d+ steps, version v1\n"
        assert re.fullmatch(words, played.stdout), played.stdout
        refused = play("wrong-token-0123456789", url)
        assert refused.returncode == 2
        assert "got 401" in refused.stderr
        assert "Traceback" not in refused.stderr
    finally:
        process.terminate()
        code = process.wait(timeout=30)
    assert code == 0
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{url}/livez")


def test_relative_database_urls_are_made_absolute() -> None:
    assert absolute_url("sqlite:///runs/x.db") == f"sqlite:///{Path('runs/x.db').absolute()}"
    for url in ("sqlite:////runs/x.db", "postgresql+psycopg2://a@b/c", "http://mlflow:5000"):
        assert absolute_url(url) == url
