"""Rate limits: token buckets in one file that all workers of a service share.

Connections spread unevenly over the workers, and a connection that is kept open stays with one. A
share of the rate for each worker would refuse a client with one connection and allow a client with
many several bursts. So every worker maps the same buckets into its memory, as it does the sessions.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import time
from pathlib import Path
from typing import Any

import numpy as np

from serving.http.errors import HttpError

_BUCKET = np.dtype([("key", "<u8"), ("left", "<f8"), ("since", "<f8")])
_SETS = 1024
_WAYS = 8


class RateLimiter:
    """A bounded number of token buckets (Turner 1986), one a key.

    The hash of a key selects a set of eight buckets; a new key replaces the least recently used.
    """

    def __init__(
        self, per_second: float, burst: int, path: Path | None = None, *, what: str = "requests"
    ) -> None:
        """Allow ``per_second`` requests on average and ``burst`` at once.

        Args:
            per_second: requests a second; 0 sets no limit.
            burst: requests at once, 1 or more.
            path: file that the workers share; None keeps the buckets in this process.
            what: what is counted, for the error message.
        """
        self._what = what
        self._per_second = per_second
        self._burst = float(burst)
        self._file: int | None = None
        self._buckets: np.ndarray[Any, np.dtype[np.void]]
        if path is None or per_second == 0:
            self._buckets = np.zeros((_SETS, _WAYS), dtype=_BUCKET)
            return
        self._file = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        os.ftruncate(self._file, _SETS * _WAYS * _BUCKET.itemsize)  # a new file is all zeros
        self._buckets = np.memmap(path, dtype=_BUCKET, mode="r+", shape=(_SETS, _WAYS))

    def take(self, key: str) -> None:
        """Count one request.

        Raises:
            HttpError: 429, with the time until the next request is allowed.
        """
        if self._per_second == 0:
            return
        # 0 marks an unused bucket.
        number = int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest()) or 1
        place = number % _SETS
        if self._file is None:
            left = self._take(self._buckets[place], number)
        else:
            fcntl.lockf(self._file, fcntl.LOCK_EX, 1, place)
            try:
                left = self._take(self._buckets[place], number)
            finally:
                fcntl.lockf(self._file, fcntl.LOCK_UN, 1, place)
        if left < 1:
            wait = max(1, int((1 - left) / self._per_second + 0.999))
            raise HttpError(
                429,
                "rate_limit",
                f"more than {self._per_second:g} {self._what} a second; wait, then send them more "
                "slowly",
                retry_after_seconds=wait,
            )

    def _take(self, ways: np.ndarray[Any, np.dtype[np.void]], number: int) -> float:
        """Take one token from a key's bucket if it has one; return the tokens before that."""
        # All processes of the machine share this clock.
        now = time.monotonic()
        keys = ways["key"].tolist()
        if number in keys:
            bucket = ways[keys.index(number)]
            elapsed = max(0.0, now - float(bucket["since"]))
            left = min(self._burst, float(bucket["left"]) + elapsed * self._per_second)
        else:
            bucket = ways[int(ways["since"].argmin())]
            bucket["key"] = number
            left = self._burst
        bucket["left"] = left - 1 if left >= 1 else left
        bucket["since"] = now
        return left
