"""The folder that the workers of one service share.

BentoML uses one metrics folder for all services of a user and empties it whenever one of them
starts, so a second service would delete the metrics of the first. Here each service has its own
folder, named after the BentoML process that is the parent of the workers. A lock holds the folder
while a worker lives; the next service that starts removes the folders of services that ended.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import stat
import tempfile
from pathlib import Path

from mario.errors import ServingError

_METRICS = "PROMETHEUS_MULTIPROC_DIR"


def private_folder(name: str) -> Path:
    """Make a temporary folder that only this user can open.

    Args:
        name: first part of its name; the user's number follows.

    Raises:
        ServingError: the path is taken by a file, a link or another user.
    """
    folder = Path(tempfile.gettempdir()) / f"{name}-{os.getuid()}"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    status = folder.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid():
        raise ServingError(
            f"{folder}: got a file, a link, or a folder of another user; expected a folder of "
            f"user {os.getuid()}; remove it, or set TMPDIR to another place"
        )
    folder.chmod(0o700)
    return folder


def service_folder() -> Path:
    """Make and lock the folder of the service that this process is a worker of.

    Raises:
        ServingError: see :func:`private_folder`.
    """
    base = private_folder("mario-serving")
    with (base / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        folder = base / _service_name(os.getppid())
        folder.mkdir(mode=0o700, exist_ok=True)
        # Never closed: the lock ends with the process.
        fcntl.flock(os.open(folder, os.O_RDONLY), fcntl.LOCK_SH)
        for other in base.iterdir():
            if other.is_dir() and other != folder:
                _remove_if_ended(other)
    return folder


def use_private_metrics(folder: Path) -> None:
    """Store this process's metrics in ``folder``; call it before metrics are registered.

    Does nothing outside BentoML, where metrics stay in the process.
    """
    if _METRICS in os.environ:
        metrics = folder / "metrics"
        metrics.mkdir(exist_ok=True)
        os.environ[_METRICS] = str(metrics)


def _service_name(pid: int) -> str:
    """Name a process by number and start time, as the system reuses numbers."""
    try:
        # Field 22, starttime (proc(5)), counted after the name, which may hold spaces.
        started = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return str(pid)  # not Linux
    return f"{pid}-{started}"


def _remove_if_ended(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return
    else:
        shutil.rmtree(folder, ignore_errors=True)
    finally:
        os.close(descriptor)
