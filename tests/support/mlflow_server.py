"""An MLflow server for tests, which can be killed and started again."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import requests

from tests.support.processes import free_port, signal_family

#: The start takes seconds on an idle machine, and minutes on a very busy one.
START_SECONDS = 240


class MlflowServer:
    """One server in its own process group, with SQLite in its own folder."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.port = free_port()
        self.uri = f"http://127.0.0.1:{self.port}"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, *, wait: bool = True) -> None:
        """Start the server, after ending a running one, and wait until it answers."""
        self.kill()
        environment = {
            **os.environ,
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
            "MLFLOW_DISABLE_TELEMETRY": "true",
        }
        command = [
            sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1",
            "--port", str(self.port), "--workers", "1",
            "--backend-store-uri", f"sqlite:///{self.folder}/mlflow.db",
            "--artifacts-destination", str(self.folder / "store"),
        ]  # fmt: skip
        with (self.folder / "server.log").open("ab") as log:
            self._process = subprocess.Popen(
                command, env=environment, stdout=log, stderr=log, start_new_session=True,
                cwd=self.folder,
            )  # fmt: skip
        if wait:
            self.wait()

    def wait(self) -> None:
        """Wait until it answers."""
        assert self._process is not None
        deadline = time.monotonic() + START_SECONDS
        while True:
            try:
                if requests.get(f"{self.uri}/health", timeout=5).ok:
                    return
            except requests.RequestException:
                pass
            if time.monotonic() > deadline or self._process.poll() is not None:
                raise AssertionError((self.folder / "server.log").read_text()[-2000:])
            time.sleep(0.2)

    def hang(self) -> None:
        """Stop its processes: it accepts connections and never answers."""
        assert self._process is not None
        signal_family(self._process.pid, signal.SIGSTOP)

    def go_on(self) -> None:
        """End ``hang``; without one, do nothing."""
        if self._process is not None:
            signal_family(self._process.pid, signal.SIGCONT)

    def kill(self) -> None:
        """End the server and its workers with SIGKILL, if it runs."""
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None
