"""How often somebody may ask: token buckets in one file that all workers of a service share.

Connections do not spread evenly over the workers, and one that is kept stays with its worker: a
share of the rate for each worker would refuse an honest client and give a dishonest one several
bursts. So the buckets are mapped into every worker's memory, as the sessions are.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import time
from pathlib import Path
from typing import Any

import numpy as np

from serving.http.errors import Refusal

_BUCKET = np.dtype([("key", "<u8"), ("left", "<f8"), ("since", "<f8")])
_SETS = 1024
_WAYS = 8


class RateLimit:
    """A token bucket (Turner 1986) for each key, bounded in number.

    A key has eight places that its hash names; the longest unused of them is forgotten first.
    """

    def __init__(
        self, per_second: float, burst: int, path: Path | None = None, *, what: str = "requests"
    ) -> None:
        """Allow ``per_second`` on average and ``burst`` at once; 0 sets no limit.

        Args:
            per_second: requests a second, 0 or more.
            burst: requests at once, 1 or more.
            path: file that the workers share; None keeps the buckets in this process.
            what: what is counted, in words for those who are refused.
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
        os.ftruncate(self._file, _SETS * _WAYS * _BUCKET.itemsize)  # zeros, or as it is
        self._buckets = np.memmap(path, dtype=_BUCKET, mode="r+", shape=(_SETS, _WAYS))

    def take(self, key: str) -> None:
        """Count one request.

        Raises:
            Refusal: 429 with the time after which one more is allowed.
        """
        if self._per_second == 0:
            return
        # 0 marks a place that was never used.
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
            raise Refusal(
                429,
                "rate_limit",
                f"more than {self._per_second:g} {self._what} a second; wait, then go on more "
                "slowly",
                retry_after_seconds=wait,
            )

    def _take(self, ways: np.ndarray[Any, np.dtype[np.void]], number: int) -> float:
        """Take one from a key's bucket if there is one; return what was in it."""
        # The same clock in all processes of the machine.
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
