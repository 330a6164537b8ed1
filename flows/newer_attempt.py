"""Whether this process is still the one that works on its flow run.

A flow run that the server took for dead is scheduled again, and its new attempt begins beside a
process that may live: the server was away for longer than the silence limit, or the network was, or
the machine slept. The older one gives way. Training ends with a checkpoint, everything else with
its stage; the process says nothing of the flow run's state, which is the newer attempt's. That
waits for it (`mario.jobs.attempts.wait_for_turn`), and goes on.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from uuid import UUID

from prefect.client.orchestration import get_client
from prefect.exceptions import Abort
from prefect.runtime import deployment, flow_run
from prefect.settings import PREFECT_CLIENT_MAX_RETRIES, temporary_settings

log = logging.getLogger(__name__)

#: How often the server is asked while a policy trains, and how long it has to answer.
_LOOK_SECONDS = 5.0
_ANSWER_SECONDS = 5.0


#: Flow runs that were given to another attempt: once said, it holds.
_lost: set[str] = set()


@cache
def _deployment_of(_flow_run_id: str) -> str | None:
    """Which deployment a flow run comes from: Prefect asks the server each time."""
    id_: str | None = deployment.id
    return id_


def deployed() -> bool:
    """Whether this flow run comes from a deployment: nobody watches its terminal then.

    A flow that a person's command calls is scheduled again by nobody.
    """
    return _deployment_of(str(flow_run.id)) is not None


def newest_attempt(flow_run_id: str) -> int:
    """The last attempt that began, as the server counts them; asked once, for a few seconds."""
    with (
        temporary_settings({PREFECT_CLIENT_MAX_RETRIES: 0}),
        get_client({"timeout": _ANSWER_SECONDS}, sync_client=True) as client,
    ):
        return client.read_flow_run(UUID(flow_run_id)).run_count


def is_lost(flow_run_id: str, attempt: int) -> bool:
    """Whether a newer attempt has begun; False where the server never said so."""
    if flow_run_id in _lost:
        return True
    try:
        if newest_attempt(flow_run_id) > attempt:
            _lost.add(flow_run_id)
        return flow_run_id in _lost
    except Exception as error:  # who cannot be asked gives the flow run to nobody
        log.debug("the Prefect server was not asked: %s: %s", type(error).__name__, error)
        return False


def give_way() -> None:
    """End this process where a newer attempt has begun.

    Raises:
        Abort: it has; Prefect ends the process with status 0 and leaves the flow run as it is.
    """
    id_ = str(flow_run.id)
    if deployed() and is_lost(id_, flow_run.run_count):
        log.warning("flow run %s goes on in a newer attempt; this one ends", id_)
        raise Abort(f"flow run {id_} goes on in a newer attempt")


@contextmanager
def watching(stop: threading.Event) -> Iterator[None]:
    """Set `stop` as soon as a newer attempt has begun, so that long work ends with a checkpoint."""
    if not deployed():
        yield
        return
    id_, attempt, over = str(flow_run.id), flow_run.run_count, threading.Event()

    def watch() -> None:
        while not over.wait(_LOOK_SECONDS):
            if is_lost(id_, attempt):
                stop.set()
                return

    threading.Thread(target=watch, name="tenure", daemon=True).start()
    try:
        yield
    finally:
        over.set()
