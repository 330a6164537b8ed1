"""A listener for Prometheus alone: ``/metrics`` on a port of its own, without a token."""

from __future__ import annotations

import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from mario.errors import ServingError


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    # Every worker listens on the port, and each can show the metrics of all.
    allow_reuse_port = True


class MetricsPort:
    """Serves one page from a thread of its own."""

    def __init__(self, host: str, port: int, page: Callable[[], tuple[bytes, str]]) -> None:
        """Serve ``page``, which gives body and content type, on ``host`` and ``port``."""
        self._address = (host, port)
        self._page = page
        self._server: _Server | None = None

    def start(self) -> None:
        """Listen.

        Raises:
            ServingError: the port is taken.
        """
        page = self._page

        class Handler(BaseHTTPRequestHandler):
            timeout = 10

            def do_GET(self) -> None:
                if self.path.split("?", 1)[0] != "/metrics":
                    self.send_error(404)
                    return
                body, content_type = page()
                self.send_response(200)
                self.send_header("content-type", content_type)
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *arguments: object) -> None:
                """Say nothing: a scrape every few seconds is no news."""

        try:
            self._server = _Server(self._address, Handler)
        except OSError as error:
            raise ServingError(
                f"metrics port: got {self._address[0]}:{self._address[1]}, which cannot be "
                f"listened on ({error.strerror}); choose another one"
            ) from error
        threading.Thread(target=self._server.serve_forever, name="metrics", daemon=True).start()

    def stop(self) -> None:
        """Stop listening."""
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
