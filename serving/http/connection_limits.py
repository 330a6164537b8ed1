"""Size and time limits on connections, below the ASGI application.

uvicorn's parser collects a request line, headers and trailers without a limit, waits for the first
byte of a connection without a limit, and goes on reading the body of a request that is already
answered. So a client could hold memory and file descriptors before its token is checked: with an
endless header, endless trailers, an endless body after a 401, or a thousand silent connections.
"""

from __future__ import annotations

import asyncio
import os
from typing import Literal

import uvicorn.config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from serving.http.errors import HttpError
from serving.metrics import ServingMetrics
from serving.settings import ServingSettings

_PHRASES = {408: b"Request Timeout", 431: b"Request Header Fields Too Large"}


def limit_connections(settings: ServingSettings, metrics: ServingMetrics) -> None:
    """Make uvicorn use :class:`LimitedProtocol`; call it before uvicorn loads its configuration.

    BentoML makes that configuration with uvicorn's default protocol, so this changes the default.
    """

    class Limited(LimitedProtocol):
        max_head_bytes = settings.max_header_bytes
        head_seconds = settings.body_timeout_seconds

        def count(self, error: HttpError) -> None:
            metrics.get("requests_total", "unknown", str(error.status)).inc()
            metrics.get("errors_total", "unknown", error.reason).inc()

    # By default uvicorn trusts X-Forwarded-For from this machine: a local client could evade every
    # limit with another address in each request.
    os.environ["FORWARDED_ALLOW_IPS"] = settings.trusted_proxies
    # A class instead of its name: `import_from_string` returns anything but a string unchanged.
    uvicorn.config.HTTP_PROTOCOLS["auto"] = Limited  # type: ignore[assignment]


class LimitedProtocol(HttpToolsProtocol):
    """One connection.

    Attributes:
        max_head_bytes: most bytes of an unfinished request line with headers, and most bytes that
            surround a body, such as trailers.
        head_seconds: longest time for a request line with headers, counted from the connection or
            from the first byte, and for the rest of a body whose request is already answered.
    """

    max_head_bytes = 32 << 10
    head_seconds = 10.0
    _part: Literal["none", "head", "body"] = "none"
    """The part of a request that is being received."""
    _part_bytes = 0
    """Bytes of the head so far; while a body arrives, the bytes around it."""
    _body_bytes = 0
    _timer: asyncio.TimerHandle | None = None
    _begun = 0
    """Requests that began in the current piece of data."""

    def count(self, error: HttpError) -> None:
        """Count a refused connection; overridden."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """See :class:`asyncio.Protocol`."""
        super().connection_made(transport)
        self._start_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        """See :class:`asyncio.Protocol`."""
        self._stop_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """See :class:`asyncio.Protocol`."""
        before, self._begun = self._part, 0
        body_before = self._body_bytes
        super().data_received(data)
        if self._part == "none":
            return
        # Only a request that arrives in several pieces gets here.
        if self._part == "head" and self._timer is None:
            self._start_timer()
        if self._begun > (before == "none"):
            return  # two requests share this piece, so its bytes cannot be attributed
        if self._part == "head":
            self._part_bytes += len(data)
        elif before == "body":
            self._part_bytes += len(data) - (self._body_bytes - body_before)
        # A chunk of one byte, the smallest possible, has six bytes around it.
        if self._part_bytes > self.max_head_bytes + 8 * self._body_bytes:
            self._refuse(
                HttpError(
                    431,
                    "headers",
                    f"got {self._part_bytes} bytes of unfinished headers; expected at most "
                    f"{self.max_head_bytes}",
                    closes=True,
                )
            )

    def on_message_begin(self) -> None:
        """See httptools: the first byte of a request arrived."""
        self._part, self._part_bytes, self._body_bytes = "head", 0, 0
        self._begun += 1
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """See httptools: the headers are complete."""
        self._part, self._part_bytes = "body", 0
        self._stop_timer()
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """See httptools: a piece of the body arrived."""
        self._body_bytes += len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        """See httptools: the request is complete."""
        self._part = "none"
        self._stop_timer()
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """See uvicorn: the response was written."""
        super().on_response_complete()
        if self._part == "body" and self._timer is None and not self.transport.is_closing():
            # Answered before its body: the rest is read and dropped, for a limited time.
            self._start_timer()

    def _start_timer(self) -> None:
        self._timer = self.loop.call_later(self.head_seconds, self._late)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _late(self) -> None:
        self._timer = None
        if self._part == "body":
            self.transport.close()  # the response was sent
            return
        self._refuse(
            HttpError(
                408, "head_timeout", "the headers did not arrive in time; send faster", closes=True
            )
        )

    def _refuse(self, error: HttpError) -> None:
        part, self._part = self._part, "none"
        self._stop_timer()
        if self.transport.is_closing():
            return
        self.count(error)
        answered = self.cycle is None or self.cycle.response_complete
        if part == "body" or not answered:
            # Already answered, or the application reads it, or an earlier response is unfinished.
            self.transport.close()
            return
        body = error.body()
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", str(len(body)).encode()),
            *error.headers(),
        ]
        lines = [b"HTTP/1.1 %d %s" % (error.status, _PHRASES[error.status])]
        lines += [name + b": " + value for name, value in headers]
        self.transport.write(b"\r\n".join(lines) + b"\r\n\r\n" + body)
        self.transport.close()
