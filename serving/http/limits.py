"""HTTP on the wire, with a limit on the size and the time of what the application never sees.

uvicorn's parser gathers a request line, headers and trailers for as long as they come, waits for
the first byte of a new connection for ever, and goes on reading the body of a request that was
refused before its body was. Whoever sends a header without an end, trailers without an end, a body
without an end after a 401, or a thousand connections that say nothing, would hold memory and
descriptors before any token was looked at.
"""

from __future__ import annotations

import asyncio
import os
from typing import Literal

import uvicorn.config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from serving.http.errors import Refusal
from serving.instruments import Instruments
from serving.settings import ServingSettings

_PHRASES = {408: b"Request Timeout", 431: b"Request Header Fields Too Large"}


def guard_connections(settings: ServingSettings, instruments: Instruments) -> None:
    """Make uvicorn use the guarded protocol; call it before uvicorn's configuration is loaded.

    BentoML makes that configuration itself and takes uvicorn's default, so the default is changed.
    """

    class Guarded(GuardedProtocol):
        max_head_bytes = settings.max_header_bytes
        head_seconds = settings.body_timeout_seconds

        def count(self, refusal: Refusal) -> None:
            instruments.get("requests_total", "unknown", str(refusal.status)).inc()
            instruments.get("errors_total", "unknown", refusal.reason).inc()

    # uvicorn believes X-Forwarded-For of whoever is on this machine, if it is told nothing; with
    # another address in each request, nobody there would meet a limit.
    os.environ["FORWARDED_ALLOW_IPS"] = settings.trusted_proxies
    # A class instead of a class's name: `import_from_string` gives anything but a string back.
    uvicorn.config.HTTP_PROTOCOLS["auto"] = Guarded  # type: ignore[assignment]


class GuardedProtocol(HttpToolsProtocol):
    """One connection.

    Attributes:
        max_head_bytes: most bytes of a request line and headers that have no end yet, and most
            bytes that come with a body and are none of it, such as trailers.
        head_seconds: longest time for a head, from the connection or from its first byte on, and
            for the rest of a body whose request is answered already.
    """

    max_head_bytes = 32 << 10
    head_seconds = 10.0
    _part: Literal["none", "head", "body"] = "none"
    """The part of a request that has begun and has no end yet."""
    _part_bytes = 0
    """Bytes of a head so far; of a body, bytes that are none of it."""
    _body_bytes = 0
    _timer: asyncio.TimerHandle | None = None
    _begun = 0
    """Requests that began in the piece that is being read."""

    def count(self, refusal: Refusal) -> None:
        """Take note of a connection that was refused."""

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
        # Only requests that do not come in one piece get here.
        if self._part == "head" and self._timer is None:
            self._start_timer()
        if self._begun > (before == "none"):
            return  # another request ends in this piece; how much of it is whose is not known
        if self._part == "head":
            self._part_bytes += len(data)
        elif before == "body":
            self._part_bytes += len(data) - (self._body_bytes - body_before)
        # Even chunks of one byte each, which nobody sends in earnest, have six bytes around it.
        if self._part_bytes > self.max_head_bytes + 8 * self._body_bytes:
            self._refuse(
                Refusal(
                    431,
                    "headers",
                    f"got {self._part_bytes} bytes of headers and no end of them; expected at most "
                    f"{self.max_head_bytes}",
                    closes=True,
                )
            )

    def on_message_begin(self) -> None:
        """See httptools: the first byte of a request has come."""
        self._part, self._part_bytes, self._body_bytes = "head", 0, 0
        self._begun += 1
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """See httptools: the head is whole."""
        self._part, self._part_bytes = "body", 0
        self._stop_timer()
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """See httptools: a piece of the body has come."""
        self._body_bytes += len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        """See httptools: the request is whole."""
        self._part = "none"
        self._stop_timer()
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """See uvicorn: an answer was written."""
        super().on_response_complete()
        if self._part == "body" and self._timer is None and not self.transport.is_closing():
            # Refused by its headers: the rest is read and dropped, but not for ever.
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
            self.transport.close()  # it has its answer
            return
        self._refuse(
            Refusal(
                408, "head_timeout", "the headers did not arrive in time; send faster", closes=True
            )
        )

    def _refuse(self, refusal: Refusal) -> None:
        part, self._part = self._part, "none"
        self._stop_timer()
        if self.transport.is_closing():
            return
        self.count(refusal)
        answered = self.cycle is None or self.cycle.response_complete
        if part == "body" or not answered:
            # Answered, or read by the application; or an answer to an earlier one is half written.
            self.transport.close()
            return
        body = refusal.body()
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", str(len(body)).encode()),
            *refusal.headers(),
        ]
        lines = [b"HTTP/1.1 %d %s" % (refusal.status, _PHRASES[refusal.status])]
        lines += [name + b": " + value for name, value in headers]
        self.transport.write(b"\r\n".join(lines) + b"\r\n\r\n" + body)
        self.transport.close()
