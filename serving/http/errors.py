"""The exception that becomes an HTTP error answer."""

from __future__ import annotations

import json


class HttpError(Exception):
    """An error answer to a request.

    Attributes:
        status: HTTP status: 4xx, or 503 when the service is busy or has no version.
        reason: short constant; the label of the error metric.
        message: what was got, what was expected, what to do.
        retry_after_seconds: sent as ``Retry-After``.
        closes: whether to close the connection, because the rest of the request was not read.
    """

    def __init__(
        self,
        status: int,
        reason: str,
        message: str,
        *,
        retry_after_seconds: int | None = None,
        closes: bool = False,
    ) -> None:
        """Answer with ``status``, ``reason`` and ``message``."""
        super().__init__(message)
        self.status = status
        self.reason = reason
        self.message = message
        self.retry_after_seconds = retry_after_seconds
        self.closes = closes

    def body(self) -> bytes:
        """The answer's JSON body; Open Inference Protocol clients read ``error`` only."""
        return json.dumps({"error": self.message, "reason": self.reason}).encode()

    def headers(self) -> list[tuple[bytes, bytes]]:
        """Headers that this error adds to the answer."""
        headers = []
        if self.retry_after_seconds is not None:
            headers.append((b"retry-after", str(self.retry_after_seconds).encode()))
        if self.closes:
            headers.append((b"connection", b"close"))
        if self.status == 401:
            headers.append((b"www-authenticate", b'Bearer realm="mario"'))
        return headers


def bad_request(reason: str, message: str) -> HttpError:
    """Make a 400: the client must change the request."""
    return HttpError(400, reason, message)
