"""A listener for Prometheus that serves only ``/metrics``, on its own port and without a token."""

from __future__ import annotations

import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from mario.errors import ServingError
from serving.settings import family_of


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    # Every worker listens on this port and serves the metrics of all. The system would also let
    # another service of the same user share it; the launcher checks for that.
    allow_reuse_port = True

    def __init__(self, address: tuple[str, int], handler: type[BaseHTTPRequestHandler]) -> None:
        self.address_family = family_of(address[0])
        super().__init__(address, handler)


class MetricsListener:
    """Serves the metrics page in a thread."""

    def __init__(self, host: str, port: int, page: Callable[[], tuple[bytes, str]]) -> None:
        """Serve ``page``, which returns body and content type, on ``host`` and ``port``."""
        self._address = (host, port)
        self._page = page
        self._server: _Server | None = None

    def start(self) -> None:
        """Listen.

        Raises:
            ServingError: the port is taken.
        """
        page = self._page

        class MetricsHandler(BaseHTTPRequestHandler):
            timeout = 10

            def do_GET(self) -> None:
                if self.path.split("?", 1)[0] != "/metrics":
                    self._answer(404, b"there is nothing here but /metrics\n")
                    return
                body, content_type = page()
                self._answer(200, body, content_type)

            def do_POST(self) -> None:
                # The body was not read, so the connection cannot be reused.
                self._answer(405, b"this port takes GET only\n")

            do_HEAD = do_PUT = do_PATCH = do_DELETE = do_OPTIONS = do_POST  # noqa: N815

            def _answer(self, status: int, body: bytes, content_type: str = "text/plain") -> None:
                self.send_response(status)
                self.send_header("content-type", content_type)
                self.send_header("content-length", str(len(body)))
                if status == 405:
                    self.send_header("allow", "GET")
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(body)

            def version_string(self) -> str:
                """Hide the Python version."""
                return "mario"

            def log_message(self, format: str, *arguments: object) -> None:
                """Log nothing: Prometheus asks every few seconds."""

        try:
            self._server = _Server(self._address, MetricsHandler)
        except OSError as error:
            raise ServingError(
                f"metrics port: got {self._address[0]}:{self._address[1]}, which cannot be "
                f"listened on ({error.strerror}); choose another port"
            ) from error
        threading.Thread(target=self._server.serve_forever, name="metrics", daemon=True).start()

    def stop(self) -> None:
        """Stop listening."""
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
