"""Parsing, tokens, rate limits and the shared folder, without a server."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mario.errors import ServingError
from serving.api.request_parsing import decode_base64, parse_query
from serving.http.application import Application, Route
from serving.http.authentication import Authenticator
from serving.http.errors import HttpError
from serving.http.json_body import parse_object
from serving.http.messages import Message, Request, Response, json_response
from serving.http.rate_limit import RateLimiter
from serving.metrics import ServingMetrics
from serving.settings import ServingSettings
from serving.shared_folder import private_folder
from tests.support.paths import ROOT


def test_the_rate_limit_refills_and_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("serving.http.rate_limit.time.monotonic", lambda: now[0])
    limit = RateLimiter(2.0, 3)
    for _ in range(3):
        limit.take("a")
    with pytest.raises(HttpError) as caught:
        limit.take("a")
    assert caught.value.status == 429
    assert caught.value.retry_after_seconds == 1
    limit.take("b")
    now[0] += 0.5
    limit.take("a")
    with pytest.raises(HttpError):
        limit.take("a")
    held = limit._buckets.nbytes
    for number in range(20_000):
        limit.take(f"key{number}")
    assert limit._buckets.nbytes == held < 1 << 20
    # A recently used key is not evicted before older ones.
    now[0] += 0.1
    for _ in range(3):
        limit.take("c")
    for number in range(1000):
        limit.take(f"later{number}")
    with pytest.raises(HttpError):
        limit.take("c")


def test_workers_share_the_rate_limit_of_a_token(tmp_path: Path) -> None:
    """Two limiters on one file stand for two workers; the second runs in another process."""
    limit = RateLimiter(0.001, 5, tmp_path / "rates")
    for _ in range(3):
        limit.take("token")
    code = (
        "from pathlib import Path\n"
        "from serving.http.rate_limit import RateLimiter\n"
        f"limit = RateLimiter(0.001, 5, Path({str(tmp_path / 'rates')!r}))\n"
        "for _ in range(3):\n"
        "    try:\n"
        "        limit.take('token'); print('taken')\n"
        "    except Exception as error: print(error.status)\n"
        "limit.take('other')\n"
    )
    root = ROOT
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=root, check=True
    )
    assert done.stdout.split() == ["taken", "taken", "429"]
    with pytest.raises(HttpError):
        limit.take("token")


@pytest.mark.parametrize(
    ("accept", "as_bytes"),
    [
        ("", False),
        ("*/*", False),
        ("application/*", False),
        ("text/html,*/*;q=0.8", False),
        ("application/octet-stream", True),
        ("Application/Octet-Stream ; q=0.9", True),
        ("application/octet-stream, */*;q=0.1", True),
        ("application/octet-stream;q=0.5, application/json", False),
        ("application/octet-stream;q=0", False),
        ("application/octet-stream;q=0, */*", False),
        ("application/json, application/octet-stream", False),
        ("application/octet-stream, application/json", True),
        ("application/json;q=0.5,application/octet-stream;q=0.6", True),
        ("application/octet-stream;q=nan", False),
        ("application/octet-stream-2", False),
        (";;,,q=1;application/octet-stream", False),
    ],
)
def test_the_answer_has_the_accepted_type(accept: str, as_bytes: bool) -> None:
    request = Request("POST", "/predict/raw", b"", {b"accept": accept.encode()})
    assert request.accepts_bytes() is as_bytes


def test_without_tokens_only_this_machine_is_answered() -> None:
    """`bentoml serve --host 0.0.0.0` listens on all addresses, whatever the settings say."""

    async def answer(request: Request) -> Response:
        return json_response({"path": request.path})

    async def inner(*_: object) -> None: ...

    def ask(application: Application, path: str, server: tuple[str, int | None]) -> int:
        statuses: list[int] = []

        async def receive() -> dict[str, object]:
            return {"type": "http.request", "body": b""}

        async def send(message: Message) -> None:
            if message["type"] == "http.response.start":
                statuses.append(message["status"])

        scope = {
            "type": "http", "method": "GET", "path": path, "query_string": b"", "headers": [],
            "server": server, "client": ("10.0.0.9", 1),
        }  # fmt: skip
        asyncio.run(application(scope, receive, send))
        return statuses[0]

    def build(settings: ServingSettings) -> Application:
        routes = [
            Route("GET", "/livez", answer, public=True),
            Route("GET", "/card", answer),
        ]
        metrics = ServingMetrics(10)
        authenticator = Authenticator(settings)
        limits = {"rate_limit": RateLimiter(0, 1), "attempts": RateLimiter(0, 1)}
        return Application(
            settings, metrics, authenticator, routes, inner=inner, parts=[], **limits
        )

    bare = build(ServingSettings())
    for local in ("127.0.0.1", "::1", "::ffff:127.0.0.1"):
        assert ask(bare, "/card", (local, 3000)) == 200
    assert ask(bare, "/card", ("/run/mario.sock", None)) == 200
    for other in ("10.0.0.5", "::ffff:10.0.0.5", "2001:db8::1"):
        assert ask(bare, "/card", (other, 3000)) == 403
        assert ask(bare, "/livez", (other, 3000)) == 200
    guarded = build(ServingSettings(tokens="some-token-0123456789"))
    assert ask(guarded, "/card", ("10.0.0.5", 3000)) == 401


@pytest.mark.parametrize("text", ["AA=A", "AAA", "A A=", "é", "AAAA\n", "====", "AA=="[:-1]])
def test_base64_is_strict(text: str) -> None:
    with pytest.raises(HttpError):
        decode_base64(text, "here")


@pytest.mark.parametrize(
    "body",
    [
        b'{"seed": 1, "seed": 2}',
        b'{"seed": 1, "mode": "greedy", "mode": "sample"}',
        rb'{"seed": 1, "\u0073eed": 2}',
        b'{"inputs": [{"name": "a", "name": "b"}]}',
        b'{"inputs": [1, [{"name": 1, "name": 2}]]}',
        b'{"inputs": [{"name": "a", "data": [1]}, {"name": "b", "data": [1], "data": [2]}]}',
        b'{"mode": "\\ud800"}',
    ],
)
def test_repeated_keys_are_refused(body: bytes) -> None:
    with pytest.raises(HttpError) as caught:
        parse_object(body, ("seed", "mode", "inputs"))
    assert caught.value.status == 400


@pytest.mark.parametrize(
    "body",
    [
        b"{}",
        rb'{"seed": 1, "mode": "\u0067reedy"}',
        b'{"inputs": [{"name": "a"}, {"name": "b"}]}',
        b'{"mode": "mode", "seed": 1}',
        b'{"inputs": [1, "a", {"b": "c"}, [["d"]]], "mode": ["e", 2, {"f": {}}]}',
    ],
)
def test_equal_names_in_different_objects_are_no_repetition(body: bytes) -> None:
    assert parse_object(body, ("seed", "mode", "inputs")) == json.loads(body)


@pytest.mark.parametrize("query", [b"a=1", b"mode", b"mode=1&mode=2", b"mode=%ff", b"&" * 20])
def test_queries_are_strict(query: bytes) -> None:
    with pytest.raises(HttpError):
        parse_query(query, ("mode",))


_WORKER = """
import subprocess, sys
code = '''
import sys
from serving.shared_folder import service_folder
folder = service_folder()
(folder / "sessions").touch()
print(folder, flush=True)
sys.stdin.read()
'''
# A worker is a child of the service's process.
sys.exit(subprocess.run([sys.executable, "-c", code]).returncode)
"""


def test_a_service_removes_the_folders_of_ended_services(tmp_path: Path) -> None:
    def start() -> tuple[subprocess.Popen[str], Path]:
        process = subprocess.Popen(
            [sys.executable, "-c", _WORKER],
            cwd=ROOT,
            env=os.environ | {"TMPDIR": str(tmp_path)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert process.stdout is not None
        folder = Path(process.stdout.readline().strip())
        assert folder.is_relative_to(tmp_path)
        assert (folder / "sessions").exists()
        return process, folder

    held, kept = start()
    ended, left = start()
    try:
        assert left != kept
        ended.communicate("")
        assert left.exists()
        last, own = start()
        last.communicate("")
        assert (kept.exists(), left.exists(), own.exists()) == (True, False, True)
        assert kept.parent.stat().st_mode & 0o077 == 0
    finally:
        held.communicate("")


def test_a_folder_of_another_user_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert private_folder("mine").stat().st_mode & 0o777 == 0o700
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / f"trap-{os.getuid()}").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ServingError, match="TMPDIR"):
        private_folder("trap")
