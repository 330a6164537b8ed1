"""Which process wrote a row, and whether it still lives."""

from __future__ import annotations

import os
import socket
from pathlib import Path


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
