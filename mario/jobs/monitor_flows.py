"""Export the flow runs of a Prefect server to Prometheus.

A flow run is a process that has ended before Prometheus asks, but the server remembers it. Runs of
`mario pipeline` without a server (PREFECT_API_URL) are not exported.
"""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

from mario.errors import FlowError
from mario.telemetry.loop import LoopMetrics

#: Flow runs that ended earlier are not counted.
_LOOK_BACK = timedelta(days=30)
#: An end is stored shortly after it happens, and clocks differ.
_OVERLAP = timedelta(minutes=10)
_PAGE = 200
_TAG = "mario"
#: State names that are more specific than their type.
_NAMED = ("collapsed", "drifted", "interrupted")


def state_label(state_type: str, state_name: str) -> str:
    """The label of a final state: its name if that is more specific than its type."""
    name = state_name.lower()
    return name if name in _NAMED else state_type.lower()


class FlowMonitor:
    """Counts the flow runs that ended; one object for each process.

    Args:
        api_url: the API of the server, as in PREFECT_API_URL.
        metrics: where it is shown.
    """

    def __init__(self, api_url: str, metrics: LoopMetrics) -> None:
        self._url = api_url.rstrip("/")
        self._metrics = metrics
        self._seen: set[tuple[str, int]] = set()
        self._since = datetime.now(UTC) - _LOOK_BACK
        self._flows: dict[str, str] = {}

    def refresh(self) -> None:
        """Read the flow runs that ended since the last call.

        Raises:
            FlowError: the server is unreachable.
        """
        newest = self._since
        for run in self._ended():
            ended = datetime.fromisoformat(run["end_time"])
            newest = max(newest, ended - _OVERLAP)
            # A run that crashed and was scheduled again ends more than once.
            key = (run["id"], run["run_count"])
            if key in self._seen:
                continue
            self._seen.add(key)
            flow = self._flow(run["flow_id"])
            label = state_label(run["state"]["type"], run["state"]["name"])
            self._metrics.flow_ended(flow, label, ended.timestamp())
            for stage, seconds in self._stages(run["id"]):
                self._metrics.stage(flow, stage, seconds)
        self._since = newest

    def _ended(self) -> Iterator[dict[str, Any]]:
        offset = 0
        while True:
            page = self._ask(
                "/flow_runs/filter",
                {
                    "flow_runs": {
                        "tags": {"all_": [_TAG]},
                        "state": {
                            "type": {"any_": ["COMPLETED", "FAILED", "CRASHED", "CANCELLED"]}
                        },
                        "end_time": {"after_": self._since.isoformat()},
                    },
                    "limit": _PAGE,
                    "offset": offset,
                },
            )
            yield from page
            offset += len(page)
            if len(page) < _PAGE:
                return

    def _stages(self, flow_run_id: str) -> Iterator[tuple[str, float]]:
        tasks = self._ask(
            "/task_runs/filter",
            {
                "flow_runs": {"id": {"any_": [flow_run_id]}},
                "task_runs": {"state": {"type": {"any_": ["COMPLETED"]}}},
            },
        )
        for task in tasks:
            # `flows/stages.py` names a task run "STAGE what it works on".
            yield task["name"].split(" ", 1)[0], float(task["total_run_time"])

    def _flow(self, flow_id: str) -> str:
        if flow_id not in self._flows:
            self._flows[flow_id] = str(self._ask(f"/flows/{flow_id}")["name"])
        return self._flows[flow_id]

    def _ask(self, path: str, body: dict[str, Any] | None = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(  # noqa: S310 - the address is the operator's
            self._url + path, data, {"Content-Type": "application/json"}
        )
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:  # noqa: S310
                return json.load(answer)
        except (urllib.error.URLError, OSError, json.JSONDecodeError) as error:
            raise FlowError(
                f"the Prefect server at {self._url} does not answer {path} ({error}); expected it "
                "to run; start it, or correct PREFECT_API_URL"
            ) from None
