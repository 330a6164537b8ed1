"""How the service says no: one exception with a status, a reason for the metrics and a sentence."""

from __future__ import annotations

import json


class Refusal(Exception):
    """A request that is answered with an error.

    Attributes:
        status: HTTP status, 4xx, or 503 when the service is busy or has no version.
        reason: short constant that labels the error metric.
        sentence: what was got, what was expected, what to do.
        retry_after_seconds: when the client may try again; sent as ``Retry-After``.
        closes: whether the connection is closed, as the rest of the request was not read.
    """

    def __init__(
        self,
        status: int,
        reason: str,
        sentence: str,
        *,
        retry_after_seconds: int | None = None,
        closes: bool = False,
    ) -> None:
        """Refuse with ``status`` for ``reason``, explained in ``sentence``."""
        super().__init__(sentence)
        self.status = status
        self.reason = reason
        self.sentence = sentence
        self.retry_after_seconds = retry_after_seconds
        self.closes = closes

    def body(self) -> bytes:
        """The answer's JSON body; ``error`` alone is what Open Inference Protocol clients read."""
        return json.dumps({"error": self.sentence, "reason": self.reason}).encode()

    def headers(self) -> list[tuple[bytes, bytes]]:
        """Headers that belong to this status."""
        headers = []
        if self.retry_after_seconds is not None:
            headers.append((b"retry-after", str(self.retry_after_seconds).encode()))
        if self.closes:
            headers.append((b"connection", b"close"))
        if self.status == 401:
            headers.append((b"www-authenticate", b'Bearer realm="mario"'))
        return headers


def bad_request(reason: str, sentence: str) -> Refusal:
    """A 400: the request itself must be changed."""
    return Refusal(400, reason, sentence)
