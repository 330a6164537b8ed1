"""The folder that the workers of one service share, and no other service does.

BentoML names one folder for the metrics of all services of a user and empties it whenever one of
them starts, so that a second service on the machine would take the first one's metrics away. Here
each service has a folder of its own, named after the BentoML process whose children the workers
are. It is held by a lock for as long as a worker lives; the next service to start removes what
services that ended left behind.
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
    """Make a folder among the temporary ones that belongs to this user alone.

    Args:
        name: what it is for; the user's number is added.

    Raises:
        ServingError: somebody else made it first.
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
    """Make and hold the folder of the service that this process is a worker of.

    Raises:
        ServingError: see :func:`private_folder`.
    """
    base = private_folder("mario-serving")
    with (base / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        folder = base / _service_name(os.getppid())
        folder.mkdir(mode=0o700, exist_ok=True)
        # Never closed: the lock says that a worker lives, and goes with the process.
        fcntl.flock(os.open(folder, os.O_RDONLY), fcntl.LOCK_SH)
        for other in base.iterdir():
            if other.is_dir() and other != folder:
                _remove_if_ended(other)
    return folder


def own_metrics(folder: Path) -> None:
    """Keep this process's metrics below ``folder``; call it before an instrument is made.

    Does nothing where metrics are kept in the process, which is so outside BentoML.
    """
    if _METRICS in os.environ:
        metrics = folder / "metrics"
        metrics.mkdir(exist_ok=True)
        os.environ[_METRICS] = str(metrics)


def _service_name(pid: int) -> str:
    """Name a process so that another one that gets its number has another name."""
    try:
        # Fields after the name in brackets, which may hold anything: proc(5), starttime.
        started = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return str(pid)  # no Linux
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
