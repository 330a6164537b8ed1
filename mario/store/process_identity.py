"""Which process wrote a row, and whether it still lives."""

from __future__ import annotations

import os
import socket
from datetime import UTC, datetime, timedelta
from pathlib import Path

#: How often a process that trains gives a sign of life, however long an update takes.
HEARTBEAT_SECONDS = 30.0
#: A process on another machine cannot be asked; without a sign of life for so long it is dead.
SILENCE_SECONDS = 300.0
#: Training that makes no progress for so long counts as hung and has no heartbeat.
HANG_SECONDS = 3600.0
# What a process's start, counted from the machine's, may be off the clock that wrote the row.
_CLOCK_SECONDS = 5.0


def host_name() -> str:
    """This machine's name, as rows carry it."""
    return socket.gethostname()


def process_id() -> int:
    """This process, as rows carry it."""
    return os.getpid()


def is_alive(host: str, pid: int) -> bool:
    """Whether a process of this machine is there; on another machine nobody can tell: False.

    A zombie, dead but not yet reaped by its parent, counts as gone.
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
        return True  # no such file system here: the signal's answer has to do
    return stat.rpartition(")")[2].split()[:1] not in (["Z"], ["X"])


def is_silent(heartbeat_at: datetime) -> bool:
    """Whether the last sign of life, UTC, is so long ago that who gave it is dead.

    Elsewhere, that is: a process of this machine can be asked for.
    """
    return datetime.now(UTC) - heartbeat_at >= timedelta(seconds=SILENCE_SECONDS)


def attempt_is_alive(host: str, pid: int, started_at: datetime, heartbeat_at: datetime) -> bool:
    """Whether the process that began an attempt is still there.

    On this machine the process is asked for; its number may be another's by now, so a process
    that is younger than the attempt is none of it, once the attempt has been silent for long (until
    then a clock that was put right could make it look younger than it is). On another machine its
    last sign of life has to do.

    Args:
        host: the machine that the attempt ran on.
        pid: its process there.
        started_at: when the attempt began, UTC.
        heartbeat_at: when it last gave a sign of life, UTC.
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
    """When a process of this machine began, UTC; None where nobody can say (no ``/proc``)."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
        machine = Path("/proc/stat").read_text(encoding="utf-8")
        # Field 22 of proc_pid_stat(5), in ticks since the machine began; the name in field 2 may
        # hold spaces, so it is counted from behind it.
        ticks = int(stat.rpartition(")")[2].split()[19])
        (boot,) = (int(line.split()[1]) for line in machine.splitlines() if line[:6] == "btime ")
        return datetime.fromtimestamp(boot + ticks / os.sysconf("SC_CLK_TCK"), UTC)
    except (OSError, ValueError, IndexError):
        return None
