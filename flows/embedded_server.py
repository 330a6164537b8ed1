"""A Prefect server for one process on this machine: quick to start, and never left behind.

Prefect starts such a server by itself for a flow that is called without one, and stops it when the
process ends. A process that is killed cannot stop anything, and its server would stay for ever.
This one looks after its parent and ends when that is gone, however it went.

`running` starts `python -m flows.embedded_server`, which is this file's `main`.
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

#: A busy machine takes its time to create the database.
_START_SECONDS = 180.0
_LOG_FILE = "server.log"
#: What a server for one flow needs no time for: its page, blocks, telemetry.
_ENVIRONMENT = {
    "PREFECT__SERVER_EPHEMERAL": "1",
    "PREFECT__SERVER_FINAL": "1",
    "PREFECT_UI_ENABLED": "false",
    "PREFECT_API_BLOCKS_REGISTER_ON_START": "false",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "DO_NOT_TRACK": "1",
}


class EmbeddedServer:
    """A server that is starting or up.

    Attributes:
        api_url: what `PREFECT_API_URL` has to be.
    """

    def __init__(self, home: Path) -> None:
        """Start it; `wait` says when it is up.

        Args:
            home: `PREFECT_HOME` of the server: its database and its log.
        """
        self._log = home / _LOG_FILE
        home.mkdir(parents=True, exist_ok=True)
        # Bound here and handed on, so that nobody else can take the port in between.
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
                # Ctrl-C is for the flow, which still has to tell the server how it ended.
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        """The server's process."""
        return self._process.pid

    def wait(self) -> None:
        """Return once it answers.

        Raises:
            FlowError: it ended, or took too long.
        """
        deadline = time.monotonic() + _START_SECONDS
        while time.monotonic() < deadline and self._process.poll() is None:
            try:
                with urllib.request.urlopen(f"{self.api_url}/health", timeout=5):  # noqa: S310
                    return
            except (urllib.error.URLError, OSError):
                time.sleep(0.02)
        ended = self._process.poll()
        what = "did not answer in time" if ended is None else f"ended with {ended}"
        raise FlowError(
            f"the Prefect server of this process {what}; expected it at {self.api_url}; read "
            f"{self._log}, or start one with `prefect server start` and set PREFECT_API_URL"
        )

    def stop(self) -> None:
        """End it."""
        self._process.terminate()
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


@contextmanager
def running(home: Path) -> Iterator[EmbeddedServer]:
    """Have a server while the block runs, and `PREFECT_API_URL` point at it.

    The block begins at once, while the server still starts: call `EmbeddedServer.wait` before the
    first flow. Import Prefect only inside the block; it reads its settings once.
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
    """Serve on an inherited socket until the parent is gone: `python -m … DESCRIPTOR PARENT`."""
    descriptor, parent = int(sys.argv[1]), int(sys.argv[2])
    threading.Thread(target=watch_parent, args=(parent, lambda: os._exit(0)), daemon=True).start()
    import uvicorn
    from prefect.server.api.server import create_app

    config = uvicorn.Config(create_app, factory=True, lifespan="on", log_level="error")
    listener = socket.socket(fileno=descriptor)
    asyncio.run(uvicorn.Server(config).serve(sockets=[listener]))


if __name__ == "__main__":
    main()
