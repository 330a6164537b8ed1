"""Whether this process is still the one that works on its flow run.

A flow run that the server took for dead is scheduled again, and its new attempt begins beside a
process that may live: the server was away for longer than the silence limit, or the network was, or
the machine slept. The older one gives way. It ends with a checkpoint and without a word to the
server, which would take it for the end of the newer attempt; that waits for it, and goes on.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from uuid import UUID

import httpx
from prefect.client.orchestration import get_client
from prefect.exceptions import Abort, PrefectException
from prefect.logging import get_logger
from prefect.runtime import deployment, flow_run

from flows.decisions import superseded

#: How often the server is asked.
_LOOK_SECONDS = 5.0


@cache
def _deployment_of(_flow_run_id: str) -> str | None:
    """Which deployment a flow run comes from: Prefect asks the server each time."""
    id_: str | None = deployment.id
    return id_


@cache
def _attempt_of(flow_run_id: str) -> int:
    """Which attempt this process is: asked once, when it begins."""
    return _newest_attempt(flow_run_id)


def _newest_attempt(flow_run_id: str) -> int:
    with get_client(sync_client=True) as client:
        return client.read_flow_run(UUID(flow_run_id)).run_count


def deployed() -> bool:
    """Whether this flow run comes from a deployment: nobody watches its terminal then.

    A flow that a person's command calls is scheduled again by nobody.
    """
    return _deployment_of(str(flow_run.id)) is not None


def begin() -> None:
    """Remember which attempt at the flow run this process is; call it first."""
    if deployed():
        _attempt_of(str(flow_run.id))


def give_way() -> None:
    """End this process where a newer attempt has begun.

    Raises:
        Abort: it has; Prefect ends the process with status 0 and leaves the flow run as it is.
    """
    id_ = str(flow_run.id)
    if deployed() and _is_lost(id_):
        get_logger().warning("flow run %s goes on in a newer attempt; this one ends", id_)
        raise Abort(f"flow run {id_} goes on in a newer attempt")


def _is_lost(flow_run_id: str) -> bool:
    try:
        newest = _newest_attempt(flow_run_id)
    except (httpx.HTTPError, PrefectException, OSError):
        return False  # a server that is away gives nothing to anybody
    return superseded(_attempt_of(flow_run_id), newest)


@contextmanager
def watching(stop: threading.Event) -> Iterator[None]:
    """Set `stop` as soon as a newer attempt has begun, so that long work ends with a checkpoint."""
    if not deployed():
        yield
        return
    id_, over = str(flow_run.id), threading.Event()

    def watch() -> None:
        while not over.wait(_LOOK_SECONDS):
            if _is_lost(id_):
                stop.set()
                return

    threading.Thread(target=watch, name="tenure", daemon=True).start()
    try:
        yield
    finally:
        over.set()
