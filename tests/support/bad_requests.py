"""Generate bad requests as raw bytes: sizes, types, truncations, NaN, headers, paths."""

from __future__ import annotations

import json
import random
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass

OBSERVATION_BYTES = 28224

_PATHS = (
    "/predict", "/predict/raw", "/predict/frames", "/sessions", "/sessions/x/act",
    "/sessions/" + "0" * 37 + "/act", "/v2/models/mario/infer", "/v2/models/mario", "/metrics",
    "/", "/card", "/login", "/docs", "/static/app.js", "/v2/models/mario/versions/1/infer",
)  # fmt: skip
_TRICKS = (
    "/../etc/passwd", "//predict", "/predict/", "/%2e%2e/%2e%2e/etc/passwd", "/predict%00",
    "/static/../service.py", "/static/..%2fservice.py", "/sessions/../metrics", "/predict;a=b",
    "/%ff%fe", "/" + "a" * 3000, "/sessions/" + "%41" * 500 + "/act", "/predict?mode=%00",
    "/predict/raw?seed=1&seed=1", "/predict/raw?" + "&".join("a=1" for _ in range(50)),
    "/predict/raw?seed=%F0%9F%8D%84", "/predict/raw?mode", "/.git/config", "/schema.json", "*",
)  # fmt: skip
_TYPES = (
    "application/json", "application/octet-stream", "image/png", "text/plain",
    "multipart/form-data",
    "application/json; charset=utf-16", "application/x-www-form-urlencoded", "", "a" * 500,
    "application/xml", "\x01",
)  # fmt: skip
_METHODS = ("GET", "POST", "PUT", "DELETE", "PATCH", "HEAD", "OPTIONS", "TRACE", "BREW")
_VALUES = (
    "NaN", "Infinity", "-Infinity", "null", "true", "false", "1e999", "-1", "256", "0.5", '"0"',
    "[]", "{}", "1" * 400, "-0", "1E2", '"\\ud800"',
)  # fmt: skip


def _observation_text(rng: random.Random) -> str:
    """An observation as JSON text with one error."""
    row = ["0"] * 84
    row[rng.randrange(84)] = rng.choice(_VALUES)
    good = "[" + ",".join(["0"] * 84) + "]"
    bad = "[" + ",".join(row) + "]"
    rows = [good] * 84
    rows[rng.randrange(84)] = bad
    frame = "[" + ",".join(rows) + "]"
    other = "[" + ",".join([good] * 84) + "]"
    frames = [frame, other, other, other]
    rng.shuffle(frames)
    if rng.random() < 0.3:
        frames = frames[: rng.randrange(4)]
    return "[" + ",".join(frames) + "]"


def _closed_nesting(rng: random.Random) -> str:
    """Complete JSON nested as deep as parsers allow, in any place of the document."""
    opening, closing = rng.choice([("[", "]"), ('{"a":', "}"), ('[{"a":', "}]"), ('["a",', "]")])
    depth = rng.choice([10, 200, 400, 500, 900, 990, 1000, 1010, 1020, 1100, 5000])
    deep = opening * depth + "1" + closing * depth
    good = '"' + "A" * 37632 + '"'
    name = rng.choice(["observation", "observations", "mode", "seed", "frames"])
    protocol_name = rng.choice(["id", "inputs", "outputs", "parameters", "model_name"])
    tensor = '"name": "observation", "datatype": "UINT8"'
    return rng.choice(
        [
            deep,
            f'{{"{name}": {deep}}}',
            f'{{"observation": {good}, "mode": {deep}}}',
            f'{{"observation": {good}, "seed": {deep}}}',
            f'{{"{protocol_name}": {deep}}}',
            f'{{"inputs": [{{{tensor}, "shape": {deep}, "data": []}}]}}',
            f'{{"inputs": [{{{tensor}, "shape": [1, 4, 84, 84], "data": {deep}}}]}}',
            f'{{"inputs": [{{{tensor}, "shape": [1, 4, 84, 84], '
            f'"parameters": {{"binary_data_size": {deep}}}}}]}}',
        ]
    )


def _json_body(rng: random.Random) -> bytes:
    kinds: tuple[Callable[[], str], ...] = (
        lambda: "",
        lambda: rng.choice(_VALUES),
        lambda: '{"observation": ' + rng.choice(_VALUES) + "}",
        lambda: '{"observations": [' + ",".join(rng.choices(_VALUES, k=3)) + "]}",
        lambda: '{"observation": "' + "A" * rng.choice([0, 4, 37631, 37632, 37633]) + '"}',
        lambda: '{"observation": "' + "é" * 37632 + '"}',
        lambda: '{"mode": ' + rng.choice(_VALUES) + "}",
        lambda: '{"seed": ' + rng.choice(_VALUES) + "}",
        lambda: "[" * rng.choice([10, 1000, 100_000]),
        lambda: '{"a":' * rng.choice([10, 5000]),
        lambda: _closed_nesting(rng),
        lambda: _closed_nesting(rng),
        lambda: '{"frames": ["' + "A" * 100 + '","","",""]}',
        lambda: '{"frames": ' + rng.choice(_VALUES) + "}",
        lambda: json.dumps(
            {
                "inputs": [
                    {
                        "name": rng.choice(["observation", "x", ""]),
                        "shape": rng.choice([[1, 4, 84, 84], [0], [-1, 4, 84, 84], [2**63], "x"]),
                        "datatype": rng.choice(["UINT8", "FP32", "BYTES", 5]),
                        "data": rng.choice([[], [0] * 10, "x", None, [[[]]]]),
                    }
                ]
            }
        ),
        lambda: '{"observation": ' + _observation_text(rng) + "}",
        lambda: '{"observation": 1, "observation": 2, "\\u0000": 3}',
    )
    text = rng.choice(kinds)().encode()
    if text and rng.random() < 0.3:
        text = text[: rng.randrange(len(text))]
    return text


def _bytes_body(rng: random.Random) -> bytes:
    size = rng.choice(
        [0, 1, 100, 7055, 7057, OBSERVATION_BYTES - 1, OBSERVATION_BYTES + 1, 184_319, 184_321]
    )
    start = rng.choice([b"", b"\x89PNG\r\n\x1a\n", b"\xff\xd8", b"GIF89a", b"{", b"\x80\x04"])
    return (start + rng.randbytes(size))[:size] if size else b""


@dataclass(frozen=True)
class BadRequest:
    """A request that must get a 4xx, never a 5xx.

    Attributes:
        data: the bytes to send.
        whole: whether a server has all of it then; only one that has not may go unanswered.
    """

    data: bytes
    whole: bool


def bad_request(rng: random.Random) -> BadRequest:
    """Generate one random bad request."""
    path = rng.choice(_TRICKS) if rng.random() < 0.3 else rng.choice(_PATHS)
    method = "POST" if rng.random() < 0.7 else rng.choice(_METHODS)
    body = _json_body(rng) if rng.random() < 0.6 else _bytes_body(rng)
    headers = ["Host: localhost"]
    kind = rng.choice(_TYPES)
    headers.append(f"Content-Type: {kind}")
    length: object = len(body)
    whole = True
    roll = rng.random()
    if roll < 0.05:
        length = rng.choice([-1, "x", 10**30, "0x10", "1, 1", ""])
    elif roll < 0.10:
        length, whole = rng.choice([10**12, (4 << 20) + 1]), False
    if roll < 0.85:
        headers.append(f"Content-Length: {length}")
    elif roll < 0.95:
        headers.append("Transfer-Encoding: chunked")
        body = rng.choice([b"zz\r\n", b"5\r\nhello\r\n0\r\n\r\n", b"ffffffff\r\n", b"0\r\n\r\n"])
        whole = body != b"ffffffff\r\n"
    if rng.random() < 0.1:
        headers.append("X-Large: " + "x" * rng.choice([5000, 40_000, 100_000]))
    if rng.random() < 0.1:
        headers.extend(f"X-{n}: y" for n in range(rng.choice([10, 500])))
    if rng.random() < 0.1:
        headers.append(
            "Inference-Header-Content-Length: " + str(rng.choice([-1, "x", 0, 5, 10**9, 10**20]))
        )
    if rng.random() < 0.05:
        headers.append(
            rng.choice(["broken header", ": empty", "A\x00B: c", "Cookie: mario_page=.;"])
        )
    if rng.random() < 0.05:
        headers.append("Content-Encoding: gzip")
    if rng.random() < 0.05:
        headers.append("Accept: " + rng.choice(["image/*", "\x00", "x" * 3000]))
    version = "HTTP/1.1" if rng.random() < 0.97 else rng.choice(["HTTP/9.9", "HTTP/1.0", ""])
    head = f"{method} {path} {version}\r\n" + "\r\n".join(headers) + "\r\n\r\n"
    return BadRequest(head.encode("latin-1", "replace") + body, whole)


def status_of(host: str, port: int, request: bytes, *, whole: bool = True) -> int | None:
    """Send a request on a new connection; return None if it closes without an answer.

    Args:
        host: where to.
        port: where to.
        request: the bytes.
        whole: whether that is all of a request. If not, the sending half is closed behind it, as
            by a client that broke off; if it is, the connection stays open for the answer.

    Raises:
        TimeoutError: neither an answer nor an end came within a minute.
    """
    with socket.create_connection((host, port), timeout=60) as connection:
        try:
            connection.sendall(request)
            if not whole:
                connection.shutdown(socket.SHUT_WR)
        except TimeoutError:
            raise
        except OSError:
            pass  # refused before all was sent
        try:
            answer = connection.recv(65536)
        except ConnectionResetError:
            return None
    if not answer:
        return None
    assert answer.startswith(b"HTTP/1."), answer[:100]
    assert b"Traceback" not in answer
    return int(answer.split(b" ", 2)[1])


def send_slowly(
    host: str, port: int, request: bytes, pieces: int, pause_seconds: float
) -> int | None:
    """Send a request slowly, in pieces."""
    with socket.create_connection((host, port), timeout=60) as connection:
        size = max(1, len(request) // pieces)
        try:
            for start in range(0, len(request), size):
                connection.sendall(request[start : start + size])
                time.sleep(pause_seconds)
            answer = connection.recv(65536)
        except (ConnectionResetError, BrokenPipeError, TimeoutError):
            return None
    return int(answer.split(b" ", 2)[1]) if answer else None
