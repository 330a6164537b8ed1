"""The request and the response of a handler, and reading a body within limits."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass, field
from typing import Any

import orjson

from serving.http.errors import HttpError

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
AsgiApp = Callable[[Scope, Receive, Send], Awaitable[None]]

JSON = b"application/json"
BYTES = b"application/octet-stream"


class ClientDisconnected(Exception):
    """The client closed the connection before its request was complete."""


@dataclass(slots=True)
class Request:
    """One complete HTTP request.

    Attributes:
        method: GET, POST, …
        path: decoded path.
        query: raw query string.
        headers: header name in lower case → value; the last one of repeated headers.
        body: the whole body.
        parameters: values of the path parameters of the route.
        started: ``time.perf_counter()`` when the headers had arrived.
    """

    method: str
    path: str
    query: bytes
    headers: dict[bytes, bytes]
    body: bytes = b""
    parameters: dict[str, str] = field(default_factory=dict)
    started: float = field(default_factory=time.perf_counter)

    def content_type(self) -> bytes:
        """Media type of the body, without parameters, in lower case."""
        return self.headers.get(b"content-type", b"").split(b";", 1)[0].strip().lower()

    def require_content_type(self, *allowed: bytes) -> bytes:
        """Return the media type of the body.

        Raises:
            HttpError: 415, the type is not in ``allowed``, or the body is compressed.
        """
        got = self.content_type()
        if got not in allowed:
            names = " or ".join(item.decode() for item in allowed)
            raise HttpError(
                415,
                "content_type",
                f"got content type {_printable(got) or 'none'}; expected {names}; "
                "set the Content-Type header",
            )
        self.require_plain()
        return got

    def require_plain(self) -> None:
        """Refuse a body that is compressed.

        Raises:
            HttpError: 415.
        """
        encoding = self.headers.get(b"content-encoding", b"identity").strip().lower()
        if encoding not in (b"identity", b""):
            raise HttpError(
                415,
                "content_encoding",
                f"got content encoding {_printable(encoding)}; expected none; send it plain",
            )

    def accepts_bytes(self) -> bool:
        """Whether the client prefers bytes to JSON; at equal weights, the type named first."""
        accept = self.headers.get(b"accept", b"").lower()
        if BYTES not in accept:
            return False
        as_bytes, as_json = preference(accept, BYTES), preference(accept, JSON)
        if as_bytes == as_json:
            named = accept.find(JSON)
            return as_bytes > 0 and (named < 0 or accept.find(BYTES) < named)
        return as_bytes > as_json

    def elapsed_seconds(self) -> float:
        """Seconds since the headers arrived."""
        return time.perf_counter() - self.started


def preference(accept: bytes, kind: bytes) -> float:
    """The weight that a client gives a media type (RFC 9110, section 12.5.1).

    Args:
        accept: the Accept header, in lower case.
        kind: a media type.

    Returns:
        0 (not accepted) to 1, from the most specific range that matches; 0 if none matches or the
        weight is not a number.
    """
    ranges = {kind: 3, kind.partition(b"/")[0] + b"/*": 2, b"*/*": 1}
    best, weight = 0, 0.0
    for item in accept.split(b","):
        name, *parameters = (part.strip() for part in item.split(b";"))
        if ranges.get(name, 0) <= best:
            continue
        best, weight = ranges[name], 1.0
        for parameter in parameters:
            if parameter.startswith(b"q="):
                try:
                    weight = min(1.0, max(0.0, float(parameter[2:])))
                except ValueError:
                    weight = 0.0
    return weight


@dataclass(slots=True)
class Response:
    """One HTTP response."""

    status: int = 200
    body: bytes = b""
    content_type: bytes = JSON
    headers: list[tuple[bytes, bytes]] = field(default_factory=list)


def json_response(
    document: Any, status: int = 200, headers: list[tuple[bytes, bytes]] | None = None
) -> Response:
    """Make a JSON response; NumPy arrays become lists."""
    return Response(
        status, orjson.dumps(document, option=orjson.OPT_SERIALIZE_NUMPY), JSON, headers or []
    )


async def read_body(
    receive: Receive, headers: dict[bytes, bytes], *, limit_bytes: int, timeout_seconds: float
) -> bytes:
    """Read the whole body.

    Args:
        receive: ASGI's receive.
        headers: the request's headers.
        limit_bytes: largest body.
        timeout_seconds: longest time for all of it.

    Raises:
        HttpError: 413, 400 or 408.
        ClientDisconnected: the client closed the connection.
    """
    declared = headers.get(b"content-length")
    if declared is not None:
        if not declared.isdigit() or len(declared) > 18:
            raise HttpError(400, "content_length", "the Content-Length header is not a number")
        if int(declared) > limit_bytes:
            raise _too_large(int(declared), limit_bytes)
    # Most bodies arrive in one piece; the others share one deadline.
    message = await _receive(receive, timeout_seconds)
    chunk: bytes = message.get("body", b"")
    if not message.get("more_body", False):
        if len(chunk) > limit_bytes:
            raise _too_large(len(chunk), limit_bytes)
        return chunk
    chunks, size = [chunk], len(chunk)
    deadline = time.monotonic() + timeout_seconds
    while message.get("more_body", False):
        message = await _receive(receive, deadline - time.monotonic())
        chunk = message.get("body", b"")
        size += len(chunk)
        if size > limit_bytes:
            raise _too_large(size, limit_bytes)
        chunks.append(chunk)
    return b"".join(chunks)


async def _receive(receive: Receive, timeout_seconds: float) -> Message:
    try:
        async with asyncio.timeout(timeout_seconds):
            message = await receive()
    except TimeoutError:
        raise HttpError(
            408, "body_timeout", "the body did not arrive in time; send it faster", closes=True
        ) from None
    if message["type"] == "http.disconnect":
        raise ClientDisconnected
    return message


def _too_large(got: int, limit_bytes: int) -> HttpError:
    return HttpError(
        413,
        "too_large",
        f"got a body of at least {got} bytes; expected at most {limit_bytes}; send fewer "
        "observations at a time",
        closes=True,
    )


def _printable(value: bytes) -> str:
    return "".join(c for c in value[:60].decode("latin-1") if c.isascii() and c.isprintable())
