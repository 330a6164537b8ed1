"""Starts real servers for tests on free ports of 127.0.0.1, waits for them, and stops them."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path


def free_port() -> int:
    """Return a port of 127.0.0.1 that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for_http(url: str, seconds: float, process: subprocess.Popen[bytes] | None = None) -> None:
    """Wait until a URL answers with 2xx.

    Raises:
        AssertionError: it did not in time, or the process that should answer has ended.
    """
    deadline = time.monotonic() + seconds
    last: object = "nothing was asked"
    while time.monotonic() < deadline:
        if process is not None and process.poll() is not None:
            raise AssertionError(f"{url}: the server ended with {process.returncode}")
        try:
            with urllib.request.urlopen(url, timeout=5) as answer:
                if answer.status < 300:
                    return
        except (urllib.error.URLError, OSError) as error:
            last = error
        time.sleep(0.1)
    raise AssertionError(f"{url}: not ready after {seconds} s ({last})")


def family(pid: int) -> list[int]:
    """A process and all that descend from it, parents first."""
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rsplit(")", 1)[1].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        children.setdefault(int(fields[1]), []).append(int(stat.parent.name))
    found = [pid]
    for parent in found:
        found += children.get(parent, [])
    return found


def signal_family(pid: int, number: signal.Signals) -> None:
    """Send a signal to a process and all that descend from it; SIGSTOP makes them hang."""
    for each in family(pid):
        with suppress(ProcessLookupError):
            os.kill(each, number)


@contextmanager
def server(
    command: Sequence[str],
    *,
    log: Path,
    ready: str | None = None,
    seconds: float = 60,
    environment: Mapping[str, str] | None = None,
    cwd: Path | None = None,
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a server while the block runs, in a process group of its own.

    Args:
        command: program and arguments.
        log: file for its output; its end is shown when the server does not get ready.
        ready: URL that answers with 2xx once it is up.
        seconds: longest time until then.
        environment: added to this process's own.
        cwd: folder it runs in.
    """
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            stdout=output,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            env={**os.environ, **(environment or {})},
            cwd=cwd,
            start_new_session=True,
        )
        try:
            if ready:
                try:
                    wait_for_http(ready, seconds, process)
                except AssertionError as error:
                    tail = log.read_text(errors="replace")[-3000:]
                    raise AssertionError(f"{error}\n{tail}") from None
            yield process
        finally:
            stop(process)


def stop(process: subprocess.Popen[bytes], seconds: float = 20) -> None:
    """End a process group: SIGTERM, and SIGKILL for what is left after a while."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
        except ProcessLookupError:
            break
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            continue
        break
    process.wait(seconds)
