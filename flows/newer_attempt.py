"""Detect that Prefect has started a newer attempt of this flow run.

Prefect marks a flow run as crashed when its heartbeats stop, and an automation schedules it again.
The older attempt's process may still live: the server was unreachable for longer than the silence
limit, the network was down, or the machine slept. The older process then stops: training writes a
checkpoint, every other stage is finished first. It leaves the flow run's state alone, which belongs
to the newer attempt. The newer attempt waits for it (`mario.jobs.attempts.wait_for_turn`), then
resumes.
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

#: Interval at which the server is asked during training, and the time-out of its answer.
_POLL_SECONDS = 5.0
_ANSWER_SECONDS = 5.0

#: Flow runs for which the server has reported a newer attempt. It need not be asked again.
_superseded: set[str] = set()


@cache
def _deployment_of(_flow_run_id: str) -> str | None:
    """The deployment of the current flow run; cached, as Prefect asks the server each time."""
    id_: str | None = deployment.id
    return id_


def is_deployed() -> bool:
    """Whether this flow run comes from a deployment.

    If not, a command called the flow: a person watches the terminal, and nothing is retried.
    """
    return _deployment_of(str(flow_run.id)) is not None


def newest_attempt(flow_run_id: str) -> int:
    """Ask the server once for the number of the newest attempt that began."""
    with (
        temporary_settings({PREFECT_CLIENT_MAX_RETRIES: 0}),
        get_client({"timeout": _ANSWER_SECONDS}, sync_client=True) as client,
    ):
        return client.read_flow_run(UUID(flow_run_id)).run_count


def is_superseded(flow_run_id: str, attempt: int) -> bool:
    """Whether a newer attempt has begun; False if the server cannot be asked."""
    if flow_run_id in _superseded:
        return True
    try:
        if newest_attempt(flow_run_id) > attempt:
            _superseded.add(flow_run_id)
        return flow_run_id in _superseded
    except Exception as error:  # without an answer, this attempt continues
        log.debug("the Prefect server was not asked: %s: %s", type(error).__name__, error)
        return False


def stop_if_superseded() -> None:
    """End this process if a newer attempt has begun.

    Raises:
        Abort: it has; Prefect exits with status 0 and leaves the flow run's state alone.
    """
    id_ = str(flow_run.id)
    if is_deployed() and is_superseded(id_, flow_run.run_count):
        log.warning("flow run %s continues in a newer attempt; this one stops", id_)
        raise Abort(f"flow run {id_} continues in a newer attempt")


@contextmanager
def stopping_if_superseded(stop: threading.Event) -> Iterator[None]:
    """Set `stop` as soon as a newer attempt has begun, so that training writes a checkpoint."""
    if not is_deployed():
        yield
        return
    id_, attempt, over = str(flow_run.id), flow_run.run_count, threading.Event()

    def watch() -> None:
        while not over.wait(_POLL_SECONDS):
            if is_superseded(id_, attempt):
                stop.set()
                return

    threading.Thread(target=watch, name="newer-attempt", daemon=True).start()
    try:
        yield
    finally:
        over.set()
