"""A game client on 32 sessions at 15 decisions a second: is every answer there within 66 ms?

Each session plays its own game on the native console, sends the newest frame and holds the buttons
that come back. Sessions are spread evenly over the 66.7 ms between two decisions.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np

from benchmarks._report import finish, print_table, target
from benchmarks._serving_load import Connection, http_request
from mario.game.batch import BatchSettings, EpisodeSpec, open_batch
from serving.launcher import running
from serving.settings import ServingSettings
from tests.support.onnx_networks import write_test_artefact

SESSIONS, PER_SECOND, DEADLINE_MS = 32, 15, 66.0
_BYTES = {"Content-Type": "application/octet-stream"}


async def _play(
    number: int,
    port: int,
    begin: float,
    end: float,
    latencies: list[float],
    late_sends: list[float],
) -> int:
    """Play one session; return its failed requests."""
    batch = open_batch(1, BatchSettings(buttons=tuple(range(256)), threads=1))
    observation = np.zeros((1, 4, 84, 84), np.uint8)
    batch.begin(0, EpisodeSpec("1-1", number), observation)
    connection = Connection("127.0.0.1", port)
    _, body = await connection.ask(
        http_request("/sessions", b"{}", {"Content-Type": "application/json"})
    )
    path, errors, episode = f"/sessions/{json.loads(body)['session']}/act", 0, number
    due = begin + number / SESSIONS / PER_SECOND
    while due < end:
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
        late_sends.append(time.perf_counter() - due)
        # The deadline runs from when the decision was due, so a late send counts against it.
        status, body = await connection.ask(
            http_request(path, observation[0, -1].tobytes(), _BYTES)
        )
        latencies.append(time.perf_counter() - due)
        if status != 200:
            errors += 1
            continue
        buttons = np.array([json.loads(body)["buttons"]])
        if batch.step(buttons, observation).end[0]:
            episode += SESSIONS
            batch.begin(0, EpisodeSpec("1-1", episode), observation)
        due += 1 / PER_SECOND
    connection.close()
    batch.close()
    return errors


async def _run(port: int, seconds: float) -> tuple[list[float], list[float], int]:
    latencies: list[float] = []
    late_sends: list[float] = []
    begin = time.perf_counter() + 1
    errors = await asyncio.gather(
        *(_play(n, port, begin, begin + seconds, latencies, late_sends) for n in range(SESSIONS))
    )
    return latencies, late_sends, sum(errors)


def main() -> int:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="20 seconds instead of 120")
    quick = parser.parse_args().quick
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:2])
    with tempfile.TemporaryDirectory() as place:
        folder = write_test_artefact(Path(place) / "v1").folder
        settings = ServingSettings(policy=folder, port=0)
        with running(settings, ready_seconds=180) as url:
            port = int(url.rsplit(":", 1)[1])
            latencies, late_sends, errors = asyncio.run(_run(port, 20 if quick else 120))
    values = np.array(latencies) * 1000
    missed = int((values > DEADLINE_MS).sum())
    row = {
        "sessions": SESSIONS, "decisions": len(values),
        "p50_ms": round(float(np.median(values)), 2),
        "p99_ms": round(float(np.quantile(values, 0.99)), 2),
        "max_ms": round(float(values.max()), 2),
        "max_late_send_ms": round(max(late_sends) * 1000, 2),
        "missed_deadlines": missed, "errors": errors,
        "load_average": round(os.getloadavg()[0], 1),
    }  # fmt: skip
    print_table("32 sessions, 15 decisions a second, native console, two cores", [row], list(row))
    targets = [
        target("missed deadlines of 66 ms", 0, missed, at_most=True),
        target("failed decisions", 0, errors, at_most=True),
    ]
    return finish("serving_sessions", [row], targets, quick=quick)


if __name__ == "__main__":
    sys.exit(main())
