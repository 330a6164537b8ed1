"""A game client on 32 sessions at 15 decisions a second: is every answer there within 66 ms?

Each session plays its own game on the native console, sends what it sees and holds the buttons
that come back: once with ready frames of 84 × 84, once with the screen as PNG, once with the screen
as it is, 240 × 256 × 3 bytes. Sessions are spread evenly over the 66.7 ms between two decisions.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import struct
import sys
import tempfile
import time
import zlib
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import numpy.typing as npt
import psutil

from benchmarks._report import Row, finish, print_table, target
from benchmarks._serving_load import Connection, http_request
from mario.config.game import GameConfig
from mario.game.batch.contract import EpisodeSpec, GameBatch
from mario.game.batch.factory import open_batch
from serving.launcher import running
from serving.settings import ServingSettings
from tests.support.onnx_networks import write_test_artefact

SESSIONS, PER_SECOND, DEADLINE_MS = 32, 15, 66.0
_BYTES = {"Content-Type": "application/octet-stream"}
_PNG = {"Content-Type": "image/png"}
#: What a session sends for one decision: ready frames, PNG pictures, or raw screens.
KINDS = ("frame", "png", "rgb")


@dataclass
class _Measured:
    """What all sessions of one stretch saw; seconds."""

    latencies: list[float] = field(default_factory=list)
    late_sends: list[float] = field(default_factory=list)
    errors: int = 0
    request_bytes: int = 0
    client_cpu: float = 0.0
    server_cpu: float = 0.0


def png(screen: npt.NDArray[np.uint8]) -> bytes:
    """Write a screen uint8 (240, 256, 3) as a PNG in true colours, fast (ISO/IEC 15948).

    Pillow takes three times as long for the same; 480 pictures a second must leave the client
    time to play.
    """

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    rows = np.zeros((240, 1 + 256 * 3), np.uint8)  # each row begins with its filter: none
    rows[:, 1:] = screen.reshape(240, -1)
    head = struct.pack(">IIBBBBB", 256, 240, 8, 2, 0, 0, 0)
    return b"".join(
        (
            b"\x89PNG\r\n\x1a\n",
            chunk(b"IHDR", head),
            chunk(b"IDAT", zlib.compress(rows.tobytes(), 1)),
            chunk(b"IEND", b""),
        )
    )


def _request(kind: str, path: str, batch: GameBatch, observation: npt.NDArray[np.uint8]) -> bytes:
    """What a session asks now."""
    if kind == "frame":
        return http_request(path, observation[0, -1].tobytes(), _BYTES)
    screen = batch.screen_rgb(0)
    if kind == "png":
        return http_request(path, png(screen), _PNG)
    return http_request(path, screen.tobytes(), _BYTES)


async def _play(
    number: int, kind: str, port: int, begin: float, end: float, measured: _Measured
) -> None:
    """Play one session."""
    batch = open_batch(1, GameConfig(), buttons=range(256), threads=1)
    observation = np.zeros((1, 4, 84, 84), np.uint8)
    batch.begin(0, EpisodeSpec("1-1", number), observation)
    connection = Connection("127.0.0.1", port)
    _, body = await connection.ask(
        http_request("/sessions", b"{}", {"Content-Type": "application/json"})
    )
    session = f"/sessions/{json.loads(body)['session']}"
    path, episode = f"{session}/act", number
    request = _request(kind, path, batch, observation)
    due = begin + number / SESSIONS / PER_SECOND
    while due < end:
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
        measured.late_sends.append(time.perf_counter() - due)
        # The deadline runs from when the decision was due, so a late send counts against it.
        status, body = await connection.ask(request)
        measured.latencies.append(time.perf_counter() - due)
        measured.request_bytes += len(request)
        due += 1 / PER_SECOND
        if status != 200:
            measured.errors += 1
            continue
        buttons = np.array([json.loads(body)["buttons"]])
        if batch.step(buttons, observation).end[0]:
            episode += SESSIONS
            batch.begin(0, EpisodeSpec("1-1", episode), observation)
        request = _request(kind, path, batch, observation)
    connection.close()
    batch.close()


async def _run(kind: str, port: int, seconds: float) -> _Measured:
    measured = _Measured()
    client, server = time.process_time(), _server_cpu()
    begin = time.perf_counter() + 1
    await asyncio.gather(
        *(_play(n, kind, port, begin, begin + seconds, measured) for n in range(SESSIONS))
    )
    measured.client_cpu = time.process_time() - client
    measured.server_cpu = _server_cpu() - server
    return measured


def _server_cpu() -> float:
    """CPU time of the service's processes so far, seconds."""
    times = [process.cpu_times() for process in psutil.Process().children(recursive=True)]
    return sum(item.user + item.system for item in times)


def _row(kind: str, measured: _Measured) -> Row:
    values = np.array(measured.latencies) * 1000
    return {
        "sends": kind, "sessions": SESSIONS, "decisions": len(values),
        "mean_request_bytes": measured.request_bytes // len(values),
        "p50_ms": round(float(np.median(values)), 2),
        "p99_ms": round(float(np.quantile(values, 0.99)), 2),
        "max_ms": round(float(values.max()), 2),
        "max_late_send_ms": round(max(measured.late_sends) * 1000, 2),
        "server_cpu_ms": round(measured.server_cpu / len(values) * 1000, 3),
        "client_cpu_ms": round(measured.client_cpu / len(values) * 1000, 3),
        "missed_deadlines": int((values > DEADLINE_MS).sum()), "errors": measured.errors,
        "load_average": round(os.getloadavg()[0], 1),
    }  # fmt: skip


def main() -> int:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="20 seconds of each, instead of 120")
    quick = parser.parse_args().quick
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:2])
    rows = []
    with tempfile.TemporaryDirectory() as place:
        folder = write_test_artefact(Path(place) / "v1").folder
        settings = ServingSettings(policy=folder, port=0)
        with running(settings, ready_seconds=180) as url:
            port = int(url.rsplit(":", 1)[1])
            for kind in KINDS:
                rows.append(_row(kind, asyncio.run(_run(kind, port, 20 if quick else 120))))
    print_table(
        "32 sessions, 15 decisions a second, native console, two cores", rows, list(rows[0])
    )
    targets = []
    for row in rows:
        sends, missed, errors = row["sends"], row["missed_deadlines"], row["errors"]
        targets += [
            target(f"{sends}: missed deadlines of 66 ms", 0, missed, at_most=True),
            target(f"{sends}: failed decisions", 0, errors, at_most=True),
        ]
    return finish("serving_sessions", rows, targets, quick=quick)


if __name__ == "__main__":
    sys.exit(main())
