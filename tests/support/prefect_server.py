"""Run a real Prefect server on PostgreSQL, with workers, and call its API."""

from __future__ import annotations

import hashlib
import http.server
import json
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Self

from flows.decisions import run_id_for
from mario.jobs.context import JobContext, JobSettings
from tests.support.full_postgres import full_postgres
from tests.support.paths import ROOT
from tests.support.processes import free_port, stop, wait_for_http

#: Default time-out of waits for a flow run; tests assert tighter limits themselves.
TIMEOUT_SECONDS = 900.0
FINAL = {"COMPLETED", "FAILED", "CRASHED", "CANCELLED"}


class PrefectServer:
    """A server that a test can kill and start again on the same port and database."""

    def __init__(self, folder: Path, database_url: str) -> None:
        self.folder = folder
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}/api"
        self.environment = {
            "PREFECT_HOME": str(folder / "home"),
            "PREFECT_API_URL": self.url,
            "PREFECT_UI_API_URL": self.url,
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            "DO_NOT_TRACK": "1",
            "MARIO_HOME": str(ROOT),
            "MARIO_GIT_COMMIT": "test",
            "MARIO_DATABASE_URL": "",
            "MLFLOW_TRACKING_URI": "",
        }
        self._database = {"PREFECT_API_DATABASE_CONNECTION_URL": database_url}
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> Self:
        """Start the server and wait until it answers."""
        with (self.folder / "server.log").open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1",
                 "--port", str(self.port)],
                env={**os.environ, **self.environment, **self._database},
                stdout=log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
                start_new_session=True,
            )  # fmt: skip
        wait_for_http(f"{self.url}/health", 300, self._process)
        return self

    def kill(self) -> None:
        """Kill the server's processes by SIGKILL."""
        assert self._process is not None
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def stop(self) -> None:
        """Stop the server."""
        if self._process is not None and self._process.poll() is None:
            stop(self._process)

    def call(self, method: str, path: str, body: Any = None) -> Any:
        """Call the API, with retries while the server is unreachable."""
        request = urllib.request.Request(
            self.url + path, None if body is None else json.dumps(body).encode(),
            {"Content-Type": "application/json"}, method=method,
        )  # fmt: skip
        deadline = time.monotonic() + 300
        while True:
            try:
                with urllib.request.urlopen(request, timeout=120) as answer:
                    content = answer.read()
                    return json.loads(content) if content else None
            except urllib.error.HTTPError as error:
                raise AssertionError(f"{method} {path}: {error.code} {error.read()!r}") from None
            except OSError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(1)

    def mario(self, *arguments: str, **environment: str) -> str:
        """Run `mario …` with this server and return its output."""
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-m", "mario.cli", *arguments],
            cwd=ROOT, env={**os.environ, **self.environment, **environment},
            capture_output=True, text=True, timeout=600, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    @contextmanager
    def worker(self, runs_dir: Path, **environment: str) -> Iterator[subprocess.Popen[bytes]]:
        """Run a process worker with its own runs folder; stop it and its flow runs at the end.

        Prefect converts SIGTERM to SIGINT. A shell script that starts the tests in the background
        ignores SIGINT for all processes below, and no worker would stop; `env` resets the signal.
        """
        log = self.folder / f"worker-{runs_dir.name}-{time.monotonic_ns()}.log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                ["env", "--default-signal=INT", sys.executable, "-m", "prefect", "worker", "start",
                 "--pool", "process", "--type", "process"],
                cwd=ROOT,
                env={**os.environ, **self.environment, "MARIO_RUNS_DIR": str(runs_dir),
                     **environment},
                stdout=output, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
                start_new_session=True,
            )  # fmt: skip
        try:
            yield process
        finally:
            if process.poll() is None:
                runs = descendants(process.pid)[1:]
                stop(process, 60)
                kill_all(runs)

    def log(self) -> str:
        """The last lines of all logs, for a failed assertion."""
        return "\n".join(
            f"--- {file.name}\n{file.read_text(errors='replace')[-4000:]}"
            for file in sorted(self.folder.glob("*.log"))
        )

    def start_run(self, deployment: str, parameters: Mapping[str, Any]) -> str:
        """Start a run of a deployment (`flow/name`); returns the flow run's id."""
        found = self.call("GET", f"/deployments/name/{deployment}")
        body = {"parameters": {"parameters": dict(parameters)}, "state": {"type": "SCHEDULED"}}
        return str(self.call("POST", f"/deployments/{found['id']}/create_flow_run", body)["id"])

    def run(self, flow_run: str) -> dict[str, Any]:
        """The current record of a flow run."""
        return dict(self.call("GET", f"/flow_runs/{flow_run}"))

    def states(self, flow_run: str) -> list[dict[str, Any]]:
        """All states of a flow run, oldest first."""
        found = self.call("GET", f"/flow_run_states/?flow_run_id={flow_run}")
        return sorted(found, key=lambda state: state["timestamp"])

    def wait(self, flow_run: str, seconds: float = TIMEOUT_SECONDS, *names: str) -> dict[str, Any]:
        """Wait until a flow run is in a final state, or in one of the named states."""
        deadline = time.monotonic() + seconds
        while True:
            state = self.run(flow_run)["state"]
            if state["name"] in names or (not names and state["type"] in FINAL):
                return dict(state)
            assert time.monotonic() < deadline, f"{state}\n{self.log()}"
            time.sleep(0.5)

    def artifacts(self, flow_run: str) -> dict[str, dict[str, Any]]:
        """The artifacts of a flow run by key."""
        found = self.call(
            "POST", "/artifacts/filter", {"artifacts": {"flow_run_id": {"any_": [flow_run]}}}
        )
        return {artifact["key"]: artifact for artifact in found}


@contextmanager
def prefect_server(folder: Path, **environment: str) -> Iterator[PrefectServer]:
    """Run a server on its own PostgreSQL; `environment` is added for its workers and commands."""
    with full_postgres() as database_url:
        made = PrefectServer(folder, database_url)
        made.environment |= environment
        made.start()
        try:
            yield made
        finally:
            made.stop()


@contextmanager
def reporting_to(server: PrefectServer) -> Iterator[None]:
    """Let the flows that this process calls report to a server."""
    from prefect import context
    from prefect.events.worker import EventsWorker
    from prefect.logging.handlers import APILogWorker
    from prefect.settings import PREFECT_API_URL, temporary_settings

    with (
        temporary_settings({PREFECT_API_URL: server.url}),
        # New threads inherit these; without them, Prefect would start an embedded server.
        context._temporary_global_settings_context(context.get_settings_context()),
    ):
        yield
        # Send what is queued while the server still runs.
        with suppress(RuntimeError):  # nothing was logged
            APILogWorker.instance().drain()
        EventsWorker.drain_all()


def descendants(pid: int) -> list[int]:
    """All descendants of a process, itself first."""
    parents: dict[int, int] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            stat = (folder / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        parents[int(folder.name)] = int(stat[1])
    found = [pid]
    for one in found:
        found += [child for child, parent in parents.items() if parent == one]
    return found


def kill_all(pids: list[int]) -> None:
    """Kill processes by SIGKILL, as a power cut would."""
    for pid in pids:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue


class Receiver:
    """A web server that records notifications."""

    def __init__(self) -> None:
        self.messages: list[dict[str, Any]] = []
        receiver = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                receiver.messages.append(json.loads(body))
                self.send_response(204)
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                """Log nothing."""

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/hook"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def wait_for(self, text: str, seconds: float = 120) -> str:
        """Wait for a message that contains a text, and return it."""
        deadline = time.monotonic() + seconds
        while True:
            found = [m["text"] for m in self.messages if text in m["text"]]
            if found:
                return str(found[0])
            assert time.monotonic() < deadline, f"no message with {text!r}: {self.messages}"
            time.sleep(0.2)

    def stop(self) -> None:
        """Stop the web server."""
        self._server.shutdown()
        self._server.server_close()


def screenshot(server: PrefectServer, flow_run: str, folder: Path) -> None:
    """Take screenshots of a flow run's pages, for a person to look at (MARIO_SCREENSHOTS)."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path="/usr/bin/chromium", args=["--no-sandbox", "--disable-gpu"]
        )
        page = browser.new_page(viewport={"width": 1400, "height": 1100})
        base = server.url.removesuffix("/api")
        page.goto(f"{base}/runs/flow-run/{flow_run}", wait_until="networkidle", timeout=120_000)
        page.wait_for_timeout(5_000)
        page.screenshot(path=str(folder / "run.png"))
        # Click the tab, as the page ignores a tab in its address while it loads.
        page.get_by_text("Artifacts", exact=True).click()
        for key in server.artifacts(flow_run):
            page.get_by_text(key, exact=True).first.wait_for(timeout=60_000)
        page.screenshot(path=str(folder / "artifacts.png"), full_page=True)
        for key, artifact in server.artifacts(flow_run).items():
            page.goto(f"{base}/artifacts/artifact/{artifact['id']}", timeout=120_000)
            page.wait_for_timeout(4_000)
            page.screenshot(path=str(folder / f"{key}.png"))
        browser.close()


def weights(runs: Path, flow_run: str) -> str:
    """The digest of the network that a flow run's training exported."""
    return hashlib.sha256(
        (runs / run_id_for(flow_run) / "policy/policy.onnx").read_bytes()
    ).hexdigest()


def wait_for_checkpoints(server: PrefectServer, runs: Path, flow_run: str, count: int) -> None:
    """Wait until a flow run's training, which continues, has written so many checkpoints."""
    checkpoints = runs / run_id_for(flow_run) / "checkpoints"
    deadline = time.monotonic() + 600
    while len(list(checkpoints.glob("steps-*"))) < count:
        assert time.monotonic() < deadline, server.log()
        time.sleep(0.05)


def versions(runs: Path) -> list[Any]:
    with JobContext(JobSettings.embedded(runs)) as context:
        registry = context.registry
        return [v for v in registry.versions("mario-1-1") if v.state == "complete"]
