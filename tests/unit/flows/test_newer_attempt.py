"""An attempt gives way to a newer one, and to nothing else."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
from prefect.exceptions import Abort

from flows import newer_attempt, stages
from mario.errors import ConfigError
from mario.store.engine import StoreUnavailableError


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, object]]:
    """What the server says of the newest attempt; this process is the second of a deployment."""
    said: dict[str, object] = {"newest": 2}

    def newest(_: str) -> int:
        found = said["newest"]
        if isinstance(found, Exception):
            raise found
        assert isinstance(found, int)
        return found

    monkeypatch.setattr(newer_attempt, "newest_attempt", newest)
    monkeypatch.setattr(newer_attempt, "_POLL_SECONDS", 0.05)
    monkeypatch.setattr(newer_attempt, "flow_run", SimpleNamespace(id="one", run_count=2))
    monkeypatch.setattr(newer_attempt, "deployment", SimpleNamespace(id="deployed"))
    monkeypatch.setattr(newer_attempt, "_superseded", set())
    newer_attempt._deployment_of.cache_clear()
    yield said
    newer_attempt._deployment_of.cache_clear()


def test_a_newer_attempt_ends_this_process(server: dict[str, object]) -> None:
    newer_attempt.stop_if_superseded()
    server["newest"] = 3
    with pytest.raises(Abort, match="continues in a newer attempt"):
        newer_attempt.stop_if_superseded()


@pytest.mark.parametrize("error", [ConnectionRefusedError(), TimeoutError(), ValueError("no JSON")])
def test_a_server_that_says_nothing_gives_the_run_to_nobody(
    server: dict[str, object], error: Exception
) -> None:
    server["newest"] = error
    newer_attempt.stop_if_superseded()


def test_long_work_is_stopped_as_soon_as_a_newer_attempt_has_begun(
    server: dict[str, object],
) -> None:
    stop = threading.Event()
    with newer_attempt.stopping_if_superseded(stop):
        server["newest"] = OSError("away for a moment")
        time.sleep(0.3)
        assert not stop.is_set()
        server["newest"] = 3
        assert stop.wait(60)


def test_what_the_server_said_once_holds(server: dict[str, object]) -> None:
    """Else the older process would tell the server that the newer attempt's flow run crashed."""
    server["newest"] = 3
    stop = threading.Event()
    with newer_attempt.stopping_if_superseded(stop):
        assert stop.wait(60)
    server["newest"] = TimeoutError()
    with pytest.raises(Abort):
        newer_attempt.stop_if_superseded()


def test_nobody_watches_after_the_work(server: dict[str, object]) -> None:
    stop = threading.Event()
    with newer_attempt.stopping_if_superseded(stop):
        pass
    time.sleep(0.1)
    server["newest"] = 3
    assert not stop.wait(0.5)


@pytest.mark.parametrize(
    ("error", "calls"), [(StoreUnavailableError("away"), 3), (ConfigError("unknown key"), 1)]
)
def test_what_can_be_no_task_is_tried_again_where_something_was_away(
    server: dict[str, object], monkeypatch: pytest.MonkeyPatch, error: Exception, calls: int
) -> None:
    monkeypatch.setattr(stages, "RETRY_DELAYS_SECONDS", (0.0, 0.0))
    monkeypatch.setattr(stages, "say", lambda text: None)
    called: list[int] = []

    def work() -> str:
        called.append(1)
        raise error

    with pytest.raises(type(error)):
        stages.run_retried(work)
    assert len(called) == calls
    assert stages.run_retried(lambda: "done") == "done"


def test_a_flow_that_a_command_calls_has_no_other_attempts(
    server: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(newer_attempt, "deployment", SimpleNamespace(id=None))
    server["newest"] = 3
    newer_attempt.stop_if_superseded()
    stop = threading.Event()
    with newer_attempt.stopping_if_superseded(stop):
        assert not stop.wait(0.3)
