"""Load for the serving tests: clients that record every failed or mixed answer."""

from __future__ import annotations

import http.client
import json
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np

from serving.sessions.session_table import _SLOT

#: Seconds after which uvicorn closes an idle connection.
_KEPT_SECONDS = 5.0


@dataclass
class Load:
    """The answers that the clients got.

    Attributes:
        answers: answers by version.
        failures: descriptions of failed requests.
        mixed: descriptions of answers that mix versions.
    """

    answers: dict[str, int] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)
    mixed: list[str] = field(default_factory=list)


def run_load(
    url: str,
    observations: np.ndarray,
    action_of_version: dict[str, int],
    *,
    clients: int,
    stop: threading.Event,
) -> tuple[Load, list[threading.Thread]]:
    """Start clients that send requests until ``stop``.

    Each version always chooses the same action, so an answer with any other action than that of
    the version it names mixes versions.
    """
    load, lock = Load(), threading.Lock()
    parts = urlsplit(url)

    def work(number: int) -> None:
        connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=30)
        count = 1 + number % 4
        body = observations[:count].tobytes()
        answered = time.monotonic()
        while not stop.is_set():
            try:
                connection.request(
                    "POST", "/predict/raw", body, {"content-type": "application/octet-stream"}
                )
                response = connection.getresponse()
                text = response.read()
            except Exception as error:
                # If this machine stalled, the service closed the idle connection: no failure.
                silent = time.monotonic() - answered > _KEPT_SECONDS
                if not (silent and isinstance(error, ConnectionError)):
                    with lock:
                        load.failures.append(repr(error))
                connection.close()
                answered = time.monotonic()
                continue
            answered = time.monotonic()
            if response.status != 200:
                with lock:
                    load.failures.append(f"{response.status} {text[:200]!r}")
                continue
            document = json.loads(text)
            version = document["version"]
            actions = {p["action"] for p in document["predictions"]}
            with lock:
                load.answers[version] = load.answers.get(version, 0) + 1
                if actions != {action_of_version[version]} or len(document["predictions"]) != count:
                    load.mixed.append(f"{version}: {actions}")
        connection.close()

    threads = [threading.Thread(target=work, args=(n,), daemon=True) for n in range(clients)]
    for thread in threads:
        thread.start()
    return load, threads


def let_sessions_age(table: Path, seconds: float) -> None:
    """Make all sessions in the shared file ``seconds`` older."""
    slots = np.memmap(table, dtype=_SLOT, mode="r+")
    slots["used_at"] -= seconds


def wait_until(condition: object, seconds: float = 120) -> bool:
    """Check a condition every 50 ms; return False if it does not hold in time."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if condition():  # type: ignore[operator]
            return True
        time.sleep(0.05)
    return False
