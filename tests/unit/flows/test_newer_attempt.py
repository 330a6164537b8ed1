"""Test that an attempt of a flow run stops for a newer one only."""

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
    """The server's newest attempt, which a test may change; this process is the second attempt."""
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


def test_an_older_attempt_aborts(server: dict[str, object]) -> None:
    newer_attempt.stop_if_superseded()
    server["newest"] = 3
    with pytest.raises(Abort, match="continues in a newer attempt"):
        newer_attempt.stop_if_superseded()


@pytest.mark.parametrize("error", [ConnectionRefusedError(), TimeoutError(), ValueError("no JSON")])
def test_an_attempt_continues_if_the_server_does_not_answer(
    server: dict[str, object], error: Exception
) -> None:
    server["newest"] = error
    newer_attempt.stop_if_superseded()


def test_training_is_stopped_when_a_newer_attempt_begins(
    server: dict[str, object],
) -> None:
    stop = threading.Event()
    with newer_attempt.stopping_if_superseded(stop):
        server["newest"] = OSError("away for a moment")
        time.sleep(0.3)
        assert not stop.is_set()
        server["newest"] = 3
        assert stop.wait(60)


def test_an_attempt_stays_superseded_if_the_server_stops_answering(
    server: dict[str, object],
) -> None:
    """Otherwise the older process would report the newer attempt's flow run as crashed."""
    server["newest"] = 3
    stop = threading.Event()
    with newer_attempt.stopping_if_superseded(stop):
        assert stop.wait(60)
    server["newest"] = TimeoutError()
    with pytest.raises(Abort):
        newer_attempt.stop_if_superseded()


def test_the_watch_ends_with_the_block(server: dict[str, object]) -> None:
    stop = threading.Event()
    with newer_attempt.stopping_if_superseded(stop):
        pass
    time.sleep(0.1)
    server["newest"] = 3
    assert not stop.wait(0.5)


@pytest.mark.parametrize(
    ("error", "calls"), [(StoreUnavailableError("away"), 3), (ConfigError("unknown key"), 1)]
)
def test_run_retried_retries_unavailable_servers_only(
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


def test_a_flow_called_by_a_command_is_never_superseded(
    server: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(newer_attempt, "deployment", SimpleNamespace(id=None))
    server["newest"] = 3
    newer_attempt.stop_if_superseded()
    stop = threading.Event()
    with newer_attempt.stopping_if_superseded(stop):
        assert not stop.wait(0.3)
