"""Load for the serving benchmarks: many kept connections in one event loop, latencies in s."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field


@dataclass
class Measured:
    """What came of one stretch of load.

    Attributes:
        latencies_seconds: time of each answered request.
        errors: requests that were not answered with 2xx.
        seconds: length of the stretch.
    """

    latencies_seconds: list[float] = field(default_factory=list)
    errors: int = 0
    seconds: float = 0.0


class Connection:
    """One kept HTTP/1.1 connection; just enough of the protocol for the servers measured here."""

    def __init__(self, host: str, port: int) -> None:
        self.host, self.port = host, port
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None

    async def ask(self, request: bytes) -> tuple[int, bytes]:
        """Send a whole request; return status and body."""
        if self._writer is None or self._reader is None:
            self._reader, self._writer = await asyncio.open_connection(
                self.host, self.port, limit=1 << 22
            )
        self._writer.write(request)
        head = await self._reader.readuntil(b"\r\n\r\n")
        status, length, chunked, closes = int(head[9:12]), 0, False, False
        for line in head.lower().split(b"\r\n")[1:]:
            if line.startswith(b"content-length:"):
                length = int(line[15:])
            elif line.startswith(b"transfer-encoding:"):
                chunked = True
            elif line.startswith(b"connection:"):
                closes = b"close" in line
        body = await self._chunks() if chunked else await self._reader.readexactly(length)
        if closes:
            self.close()
        return status, body

    async def _chunks(self) -> bytes:
        assert self._reader is not None
        parts = []
        while size := int((await self._reader.readline()).split(b";")[0], 16):
            parts.append(await self._reader.readexactly(size))
            await self._reader.readline()
        await self._reader.readline()
        return b"".join(parts)

    def close(self) -> None:
        """Close it; the next question opens another."""
        if self._writer is not None:
            self._writer.close()
        self._reader = self._writer = None


def http_request(path: str, body: bytes, headers: dict[str, str]) -> bytes:
    """Write a POST request as bytes."""
    lines = [f"POST {path} HTTP/1.1", "Host: localhost", f"Content-Length: {len(body)}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


async def measure(
    host: str, port: int, requests: list[bytes], *, concurrency: int, seconds: float
) -> Measured:
    """Keep `concurrency` requests in flight for a while."""
    result = Measured()
    end = time.perf_counter() + seconds

    async def client(number: int) -> None:
        connection = Connection(host, port)
        position = number
        while (started := time.perf_counter()) < end:
            try:
                status, _ = await connection.ask(requests[position % len(requests)])
            except (OSError, asyncio.IncompleteReadError):
                connection.close()
                status = 0
            if 200 <= status < 300:
                result.latencies_seconds.append(time.perf_counter() - started)
            else:
                result.errors += 1
            position += concurrency
        connection.close()

    started = time.perf_counter()
    await asyncio.gather(*(client(number) for number in range(concurrency)))
    result.seconds = time.perf_counter() - started
    return result
