"""The HTTP page with the metrics of one process, announced to Prometheus while it is open.

The announcement is file-based service discovery: one JSON file in a folder that Prometheus watches
(https://prometheus.io/docs/guides/file-sd/).
"""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path
from typing import Self

from prometheus_client import CollectorRegistry, start_http_server

from mario.errors import ConfigError


class MetricsPage:
    """An HTTP server for `/metrics` in its own thread.

    Args:
        registry: the metrics to show.
        host: address to bind.
        port: 0 chooses a free port.
        targets: folder that Prometheus watches (`file_sd_configs`); None: no announcement.
        name: name of the announcement's file, and value of the label `instance`.
        advertise: host name under which Prometheus reaches this process; None: `host`, or this
            machine's name if `host` means every address.

    Raises:
        ConfigError: if the address cannot be bound. A training run must not stop for it: catch it,
            log it and continue without the page.
    """

    def __init__(
        self,
        registry: CollectorRegistry,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        targets: Path | None = None,
        name: str = "training",
        advertise: str | None = None,
    ) -> None:
        try:
            self._server, self._thread = start_http_server(port, host, registry)
        except OSError as error:
            raise ConfigError(
                f"metrics page: got {host}:{port}, which cannot be bound ({error.strerror}); "
                "expected a free port; use port 0 to take any"
            ) from None
        self.port = int(self._server.server_port)
        everywhere = host in {"0.0.0.0", "::", ""}  # noqa: S104 - compared, not bound
        self.address = f"{advertise or (socket.gethostname() if everywhere else host)}:{self.port}"
        self._target = targets / f"{name}.json" if targets else None
        if self._target:
            self._announce(self._target, name)

    @property
    def url(self) -> str:
        """The page's address."""
        return f"http://{self.address}/metrics"

    def _announce(self, target: Path, name: str) -> None:
        target.parent.mkdir(parents=True, exist_ok=True)
        group = [{"targets": [self.address], "labels": {"job": "training", "instance": name}}]
        aside = target.with_suffix(f".{os.getpid()}.tmp")
        aside.write_text(json.dumps(group), encoding="utf-8")
        aside.replace(target)

    def close(self) -> None:
        """Stop the server and remove the announcement; a second call does nothing more."""
        if self._target:
            self._target.unlink(missing_ok=True)
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(timeout=5)

    def __enter__(self) -> Self:
        """Use as a context."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close."""
        self.close()
