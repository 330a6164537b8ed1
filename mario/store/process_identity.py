"""Identify the process behind a row, and tell whether it is alive."""

from __future__ import annotations

import os
import socket
from datetime import UTC, datetime, timedelta
from pathlib import Path

#: Interval of a training process' heartbeats.
HEARTBEAT_SECONDS = 30.0
#: A process on another machine counts as dead after this long without a heartbeat.
SILENCE_SECONDS = 300.0
#: Training that makes no progress for so long counts as hung and has no heartbeat.
HANG_SECONDS = 3600.0
# How far a process' start time from ``/proc`` may differ from the clock that wrote the row.
_CLOCK_SECONDS = 5.0


def host_name() -> str:
    """Return this machine's name, as stored in rows."""
    return socket.gethostname()


def process_id() -> int:
    """Return this process' number, as stored in rows."""
    return os.getpid()


def is_alive(host: str, pid: int) -> bool:
    """Whether a process of this machine is running; False for another machine.

    A zombie, dead but not yet reaped by its parent, is not running.
    """
    if host != host_name() or pid <= 0:
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return True  # without /proc only the signal tells
    return stat.rpartition(")")[2].split()[:1] not in (["Z"], ["X"])


def is_silent(heartbeat_at: datetime) -> bool:
    """Whether the last heartbeat (UTC) is so old that its process counts as dead.

    This is for processes on other machines; ``is_alive`` checks those on this one.
    """
    return datetime.now(UTC) - heartbeat_at >= timedelta(seconds=SILENCE_SECONDS)


def attempt_is_alive(host: str, pid: int, started_at: datetime, heartbeat_at: datetime) -> bool:
    """Whether the process that started an attempt is alive.

    On this machine the process table decides. A process number may have been reused: a process
    that is younger than the attempt does not count once the attempt is silent. (Before that, a
    corrected clock could make the right process look younger.) On another machine the last
    heartbeat decides.

    Args:
        host: the machine of the attempt.
        pid: its process there.
        started_at: start of the attempt, UTC.
        heartbeat_at: its last heartbeat, UTC.
    """
    silent = is_silent(heartbeat_at)
    if host != host_name():
        return not silent
    if not is_alive(host, pid):
        return False
    began = process_began(pid)
    another = began is not None and began > started_at + timedelta(seconds=_CLOCK_SECONDS)
    return not (silent and another)


def process_began(pid: int) -> datetime | None:
    """Return the start time of a process of this machine, UTC; None without ``/proc``."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
        machine = Path("/proc/stat").read_text(encoding="utf-8")
        # Field 22 of proc_pid_stat(5): ticks since the machine booted. The name in field 2 may
        # contain spaces, so fields are counted from the end of the name.
        ticks = int(stat.rpartition(")")[2].split()[19])
        (boot,) = (int(line.split()[1]) for line in machine.splitlines() if line[:6] == "btime ")
        return datetime.fromtimestamp(boot + ticks / os.sysconf("SC_CLK_TCK"), UTC)
    except (OSError, ValueError, IndexError):
        return None
