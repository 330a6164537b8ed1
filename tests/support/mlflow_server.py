"""A real MLflow server for tests: start, kill, start again on the same port and data."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import requests

from tests.support.processes import free_port, signal_family

#: The server imports for seconds on an idle machine, and for minutes on a very busy one.
START_SECONDS = 240


class MlflowServer:
    """One server in a process group of its own, on SQLite in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.port = free_port()
        self.uri = f"http://127.0.0.1:{self.port}"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, *, wait: bool = True) -> None:
        """Start, and wait until it answers unless told otherwise; ends one that runs."""
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
        """Let it take connections and answer none of them."""
        assert self._process is not None
        signal_family(self._process.pid, signal.SIGSTOP)

    def go_on(self) -> None:
        """End a ``hang``; nothing where it does not hang."""
        if self._process is not None:
            signal_family(self._process.pid, signal.SIGCONT)

    def kill(self) -> None:
        """SIGKILL the server and its workers; nothing where it does not run."""
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None
