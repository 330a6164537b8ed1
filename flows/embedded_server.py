"""Run a Prefect server for one process, which exits when that process dies.

Prefect starts such a server by itself for a flow that is called without one, and stops it when the
process exits normally. After a kill it would run on for ever; this one watches its parent.

`running` starts `python -m flows.embedded_server`, which calls `main` below.
"""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from flows.child_process import watch_parent
from mario.errors import FlowError

#: Creating the database takes long on a busy machine.
_START_SECONDS = 180.0
_LOG_FILE = "server.log"
#: Switches off what a server for one flow does not need: the web page, blocks, telemetry.
_ENVIRONMENT = {
    "PREFECT__SERVER_EPHEMERAL": "1",
    "PREFECT__SERVER_FINAL": "1",
    "PREFECT_UI_ENABLED": "false",
    "PREFECT_API_BLOCKS_REGISTER_ON_START": "false",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "DO_NOT_TRACK": "1",
}


class EmbeddedServer:
    """A server that is starting or running.

    Attributes:
        api_url: the value for `PREFECT_API_URL`.
    """

    def __init__(self, home: Path) -> None:
        """Start the server without waiting for it; see `wait`.

        Args:
            home: the server's `PREFECT_HOME`, for its database and its log.
        """
        self._log = home / _LOG_FILE
        home.mkdir(parents=True, exist_ok=True)
        # The child inherits the bound socket, so that no other process can take the port.
        with socket.socket() as listener, self._log.open("wb") as log:
            listener.bind(("127.0.0.1", 0))
            self.api_url = f"http://127.0.0.1:{listener.getsockname()[1]}/api"
            self._process = subprocess.Popen(
                [sys.executable, "-m", __name__, str(listener.fileno()), str(os.getpid())],
                env={**os.environ, **_ENVIRONMENT, "PREFECT_HOME": str(home)},
                pass_fds=[listener.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                # Ctrl-C must reach the flow only, which then reports its state to the server.
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        """The process id of the server."""
        return self._process.pid

    def wait(self) -> None:
        """Return once the server answers.

        Raises:
            FlowError: it exited, or did not answer within 180 s.
        """
        deadline = time.monotonic() + _START_SECONDS
        while time.monotonic() < deadline and self._process.poll() is None:
            try:
                with urllib.request.urlopen(f"{self.api_url}/health", timeout=5):  # noqa: S310
                    return
            except (urllib.error.URLError, OSError):
                time.sleep(0.02)
        ended = self._process.poll()
        what = "did not answer in time" if ended is None else f"exited with {ended}"
        raise FlowError(
            f"the Prefect server of this process {what}; expected it at {self.api_url}; read "
            f"{self._log}, or start one with `prefect server start` and set PREFECT_API_URL"
        )

    def stop(self) -> None:
        """Stop the server."""
        self._process.terminate()
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


@contextmanager
def running(home: Path) -> Iterator[EmbeddedServer]:
    """Run a server for the duration of the block, with `PREFECT_API_URL` set to it.

    The block begins while the server still starts: call `EmbeddedServer.wait` before the first
    flow. Import Prefect only inside the block, as it reads its settings once.
    """
    server = EmbeddedServer(home)
    before = os.environ.get("PREFECT_API_URL")
    os.environ["PREFECT_API_URL"] = server.api_url
    try:
        yield server
    finally:
        if before is None:
            del os.environ["PREFECT_API_URL"]
        else:
            os.environ["PREFECT_API_URL"] = before
        server.stop()


def main() -> None:
    """Serve on an inherited socket until the parent dies: `python -m … DESCRIPTOR PARENT`."""
    descriptor, parent = int(sys.argv[1]), int(sys.argv[2])
    threading.Thread(target=watch_parent, args=(parent, lambda: os._exit(0)), daemon=True).start()
    import uvicorn
    from prefect.server.api.server import create_app

    config = uvicorn.Config(create_app, factory=True, lifespan="on", log_level="error")
    listener = socket.socket(fileno=descriptor)
    asyncio.run(uvicorn.Server(config).serve(sockets=[listener]))


if __name__ == "__main__":
    main()
