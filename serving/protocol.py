"""HTTP on the wire, with a limit on the size and the time of what comes before a body.

uvicorn's parser gathers a request line and headers for as long as they come, and waits for the
first byte of a new connection for ever. Whoever sends a header without an end, or a thousand
connections that say nothing, would hold memory and descriptors before any token was looked at.
"""

from __future__ import annotations

import asyncio

import uvicorn.config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from serving.instruments import Instruments
from serving.refusal import Refusal
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

    # A class instead of a class's name: `import_from_string` gives anything but a string back.
    uvicorn.config.HTTP_PROTOCOLS["auto"] = Guarded  # type: ignore[assignment]


class GuardedProtocol(HttpToolsProtocol):
    """One connection.

    Attributes:
        max_head_bytes: most bytes of a request line and headers that have no end yet.
        head_seconds: longest time for them, from the connection or from their first byte on.
    """

    max_head_bytes = 32 << 10
    head_seconds = 10.0
    _head_open = False
    """Whether a head has begun and has no end yet."""
    _head_bytes = 0
    _head_timer: asyncio.TimerHandle | None = None

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
        super().data_received(data)
        if not self._head_open:
            return
        # Only heads that do not come in one piece, which is nearly none, get here.
        self._head_bytes += len(data)
        if self._head_bytes > self.max_head_bytes:
            self._refuse(
                Refusal(
                    431,
                    "headers",
                    f"got {self._head_bytes} bytes of headers and no end of them; expected at most "
                    f"{self.max_head_bytes}",
                    closes=True,
                )
            )
        elif self._head_timer is None:
            self._start_timer()

    def on_message_begin(self) -> None:
        """See httptools: the first byte of a request has come."""
        self._head_open, self._head_bytes = True, 0
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """See httptools: the head is whole."""
        self._head_open = False
        self._stop_timer()
        super().on_headers_complete()

    def _start_timer(self) -> None:
        self._head_timer = self.loop.call_later(self.head_seconds, self._late)

    def _stop_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _late(self) -> None:
        self._head_timer = None
        self._refuse(
            Refusal(
                408, "head_timeout", "the headers did not arrive in time; send faster", closes=True
            )
        )

    def _refuse(self, refusal: Refusal) -> None:
        self._head_open = False
        self._stop_timer()
        if self.transport.is_closing():
            return
        self.count(refusal)
        if self.cycle is not None and not self.cycle.response_complete:
            self.transport.close()  # an answer to an earlier request is half written
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
