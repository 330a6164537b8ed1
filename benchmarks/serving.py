r"""This service beside others, on the same network and observations, all in one run on two cores.

    python3 -m venv build/litserve
    build/litserve/bin/pip install -c constraints.txt litserve==0.2.19 onnxruntime numpy \
        uvloop httptools
    python benchmarks/serving.py [--quick] [--litserve build/litserve/bin/python]

Rounds go over all servers in turn, so that what else the machine does falls on all of them alike.
LitServe has an environment of its own, which leaves the project's pinned one as it is; it gets the
same onnxruntime and, with uvloop and httptools, the same event loop and parser as the others.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import psutil

from benchmarks._report import ROOT, finish, print_table, spread, target
from benchmarks._serving_load import Connection, Measured, http_request, measure
from mario.policy.artefact import load_artefact
from mario.policy.onnx import OnnxPolicy
from mario.tracking.mlflow_client import write_model_folder
from serving.launcher import free_port, running
from serving.settings import ServingSettings
from tests.support.onnx_networks import random_observations, write_test_artefact

START_SECONDS = 120
CONCURRENCIES = (1, 16, 64)
LITSERVE = ROOT / "build" / "litserve" / "bin" / "python"
OTHERS = ("mlflow models serve", "LitServe", "FastAPI + torch")
RAW = "this service, raw"


@dataclass
class Server:
    """One server under test: where it is, what it is sent, what came of it."""

    name: str
    port: int
    requests: list[bytes]
    process: int
    start_seconds: float
    rounds: dict[int, list[Measured]] = field(default_factory=dict)


def _json(document: Any) -> bytes:
    return json.dumps(document).encode()


def _wait_for_answer(port: int, request: bytes, process: psutil.Process, log: Path) -> float:
    started = time.perf_counter()

    async def ask() -> int:
        return (await Connection("127.0.0.1", port).ask(request))[0]

    while time.perf_counter() - started < START_SECONDS:
        try:
            if asyncio.run(asyncio.wait_for(ask(), 10)) == 200:
                return time.perf_counter() - started
        except (OSError, asyncio.IncompleteReadError, TimeoutError):
            pass
        if not process.is_running() or process.status() == psutil.STATUS_ZOMBIE:
            break
        time.sleep(0.05)
    tail = "\n".join(log.read_text(errors="replace").splitlines()[-15:])
    raise SystemExit(
        f"{log.stem}: got no answer on port {port}; expected one within {START_SECONDS} s; its "
        f"last output:\n{tail}"
    )


@contextmanager
def _started(command: list[str], log: Path, environment: dict[str, str]) -> Iterator[int]:
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, cwd=ROOT, stdout=output, stderr=output, env=os.environ | environment,
            start_new_session=True,
        )  # fmt: skip
        try:
            yield process.pid
        finally:
            with suppress(psutil.NoSuchProcess):
                for member in psutil.Process(process.pid).children(recursive=True):
                    with suppress(psutil.NoSuchProcess):
                        member.terminate()
            process.terminate()
            process.wait(timeout=30)


def _check_litserve(python: Path) -> None:
    """End at once, with what to type, rather than after a minute of starting the others."""
    command = [str(python), "-c", "import litserve, numpy, onnxruntime"]
    try:
        subprocess.run(command, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise SystemExit(
            f"{python}: got no environment with litserve, numpy and onnxruntime "
            f"({type(error).__name__}); expected one; the first lines of "
            "`python benchmarks/serving.py --help` make it"
        ) from None


def _servers(
    stack: ExitStack, place: Path, folder: Path, observations: np.ndarray, litserve: Path
) -> list[Server]:
    raw = {"Content-Type": "application/octet-stream"}
    js = {"Content-Type": "application/json"}
    bodies = [o.tobytes() for o in observations]
    base64s = [base64.b64encode(body).decode() for body in bodies]
    servers: list[Server] = []

    started = time.perf_counter()
    url = stack.enter_context(running(ServingSettings(policy=folder, port=0), ready_seconds=120))
    seconds, port = time.perf_counter() - started, int(url.rsplit(":", 1)[1])
    process = next(p.pid for p in psutil.Process().children() if str(port) in " ".join(p.cmdline()))
    head = _json({
        "inputs": [{"name": "observation", "shape": [1, 4, 84, 84], "datatype": "UINT8",
                    "parameters": {"binary_data_size": 28224}}],
        "parameters": {"binary_data_output": True},
    })  # fmt: skip
    oip = raw | {"Inference-Header-Content-Length": str(len(head))}
    kinds: dict[str, list[bytes]] = {
        RAW: [http_request("/predict/raw", b, raw) for b in bodies],
        "this service, JSON base64": [
            http_request("/predict", _json({"observation": b}), js) for b in base64s
        ],
        "this service, JSON lists": [
            http_request("/predict", _json({"observation": o.tolist()}), js) for o in observations
        ],
        "this service, OIP binary": [
            http_request("/v2/models/mario/infer", head + b, oip) for b in bodies
        ],
    }
    servers += [Server(name, port, kind, process, seconds) for name, kind in kinds.items()]

    model = write_model_folder(load_artefact(folder), place / "mlflow")
    other = {
        OTHERS[0]: (
            [sys.executable, "-m", "mlflow", "models", "serve", "-m", str(model), "--no-conda",
             "--host", "127.0.0.1"],
            [http_request("/invocations", _json({"inputs": o[None].tolist()}), js)
             for o in observations],
        ),
        OTHERS[1]: (
            [str(litserve), "-m", "benchmarks._serving_litserve", str(folder)],
            [http_request("/predict", _json({"observation": b}), js) for b in base64s],
        ),
        OTHERS[2]: (
            [sys.executable, "-m", "benchmarks._serving_fastapi", str(folder)],
            [http_request("/predict", b, raw) for b in bodies],
        ),
    }  # fmt: skip
    for name, (command, requests) in other.items():
        port = free_port()
        full = [*command, "--port", str(port)] if name == OTHERS[0] else [*command, str(port)]
        environment = {
            "MLFLOW_DISABLE_TELEMETRY": "true",
            "OMP_NUM_THREADS": "1",
            # mlflow starts uvicorn by its name.
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}",
        }
        log = place / f"{name}.log"
        pid = stack.enter_context(_started(full, log, environment))
        seconds = _wait_for_answer(port, requests[0], psutil.Process(pid), log)
        servers.append(Server(name, port, requests, pid, seconds))
    return servers


def _in_process(
    folder: Path, observations: np.ndarray, concurrency: int, seconds: float
) -> Measured:
    """Onnxruntime itself, called from as many threads as there would be clients."""
    session = OnnxPolicy(load_artefact(folder))
    result, end = Measured(), time.perf_counter() + seconds

    def work(number: int) -> None:
        position = number
        while (started := time.perf_counter()) < end:
            session.act(observations[position % len(observations)][None])
            result.latencies_seconds.append(time.perf_counter() - started)
            position += 1

    threads = [threading.Thread(target=work, args=(n,)) for n in range(concurrency)]
    started = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    result.seconds = time.perf_counter() - started
    return result


def _memory_mb(pid: int) -> float:
    """Memory of a process and all below it; shared pages counted once, in shares (PSS)."""
    process = psutil.Process(pid)
    total = 0
    for item in [process, *process.children(recursive=True)]:
        total += item.memory_full_info().pss
    return round(total / 1e6, 1)


def _row(
    name: str,
    concurrency: int,
    rounds: list[Measured],
    memory_mb: float | None,
    start: float | None,
) -> dict[str, Any]:
    def quantile(one: Measured, q: float) -> float:
        return float(np.quantile(one.latencies_seconds or [float("nan")], q)) * 1000

    pooled = np.concatenate([r.latencies_seconds for r in rounds])
    middle = float(np.median(pooled))
    return {
        "server": name,
        "concurrency": concurrency,
        "p50_ms": spread([quantile(r, 0.5) for r in rounds]),
        "p99_ms": spread([quantile(r, 0.99) for r in rounds]),
        "requests_per_second": spread([len(r.latencies_seconds) / r.seconds for r in rounds]),
        "requests": int(sum(len(r.latencies_seconds) for r in rounds)),
        "errors": sum(r.errors for r in rounds),
        "share_above_10_p50": round(float((pooled > 10 * middle).mean()), 6),
        "memory_mb": memory_mb,
        "start_seconds": None if start is None else round(start, 1),
    }


def main() -> int:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="shorter, for a look")
    parser.add_argument("--litserve", type=Path, default=LITSERVE, help="Python with LitServe")
    arguments = parser.parse_args()
    quick, litserve = arguments.quick, arguments.litserve.absolute()
    _check_litserve(litserve)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:2])
    rounds, seconds = (1, 0.7) if quick else (3, 2.0)
    observations = random_observations(64)
    inside: dict[int, list[Measured]] = {c: [] for c in CONCURRENCIES}
    with ExitStack() as stack:
        place = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        folder = write_test_artefact(place / "v1").folder
        servers = _servers(stack, place, folder, observations, litserve)
        for server in servers:  # warm-up, not counted
            asyncio.run(measure("127.0.0.1", server.port, server.requests, concurrency=4,
                                seconds=0.5))  # fmt: skip
        for _ in range(rounds):
            for concurrency in CONCURRENCIES:
                inside[concurrency].append(
                    _in_process(folder, observations, concurrency, seconds / 2)
                )
                for server in servers:
                    measured = asyncio.run(
                        measure("127.0.0.1", server.port, server.requests,
                                concurrency=concurrency, seconds=seconds)
                    )  # fmt: skip
                    server.rounds.setdefault(concurrency, []).append(measured)
        rows = [_row("onnxruntime in process", c, inside[c], None, None) for c in CONCURRENCIES]
        for server in servers:
            memory = _memory_mb(server.process)
            rows += [
                _row(server.name, c, server.rounds[c], memory, server.start_seconds)
                for c in CONCURRENCIES
            ]
    print_table(
        "serving, one observation a request, two cores shared with the clients",
        rows,
        ["server", "concurrency", "p50_ms", "p99_ms", "requests_per_second", "errors",
         "share_above_10_p50", "memory_mb", "start_seconds"],
    )  # fmt: skip
    return finish("serving", rows, _targets(rows, inside, servers), quick=quick)


def _targets(
    rows: list[dict[str, Any]], inside: dict[int, list[Measured]], servers: list[Server]
) -> list[dict[str, Any]]:
    by = {(row["server"], row["concurrency"]): row for row in rows}
    raw = next(server for server in servers if server.name == RAW)
    # Ratios and differences within a round: what else the machine did then falls on both.
    above = [
        (statistics.median(mine.latencies_seconds) - statistics.median(own.latencies_seconds))
        * 1000
        for mine, own in zip(raw.rounds[1], inside[1], strict=True)
    ]
    best = max(OTHERS, key=lambda name: by[name, 16]["requests_per_second"]["median"])
    other = next(server for server in servers if server.name == best)
    faster = [
        (len(mine.latencies_seconds) / mine.seconds) / (len(o.latencies_seconds) / o.seconds)
        for mine, o in zip(raw.rounds[16], other.rounds[16], strict=True)
    ]
    p99 = by[RAW, 64]["p99_ms"]["median"] / by[RAW, 64]["p50_ms"]["median"]
    errors = sum(row["errors"] for row in rows if row["server"].startswith("this service"))
    return [
        target("raw p50 above in process at concurrency 1, ms", 1.0, statistics.median(above),
               at_most=True),
        target(f"raw throughput over the best other ({best}) at concurrency 16", 1.3,
               statistics.median(faster)),
        target("errors of this service", 0, errors, at_most=True),
        target("raw p99 over p50 at concurrency 64", 10, p99, at_most=True),
        target("raw requests at concurrency 64 above 10 x p50", 0,
               by[RAW, 64]["share_above_10_p50"], at_most=True),
    ]  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
