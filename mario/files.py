"""Files and folders that are complete or absent: written aside, synced, renamed into place."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

#: What the names of unfinished files and folders begin with; see :func:`clear_unfinished`.
_ASIDE = ".writing-"


@contextmanager
def whole_folder(target: Path) -> Iterator[Path]:
    """Write the folder `target` so that it is complete or absent.

    The block fills the folder that it is given. When it ends without an exception, that folder is
    synced and takes the place of `target`; with one, it is removed and `target` is as it was. A
    kill leaves at most a folder aside, which :func:`clear_unfinished` removes.

    Args:
        target: where the folder will stand; an existing one is replaced.

    Raises:
        OSError: the disk is full, or the place cannot be written.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix=_ASIDE, dir=target.parent))
    try:
        yield aside
        # mkdtemp makes the folder private to the user; others may read what is finished.
        aside.chmod(0o755)
        sync_folder(aside)
        _replace_folder(aside, target)
        sync_folder(target.parent)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _replace_folder(aside: Path, target: Path) -> None:
    """Put `aside` in the place of `target`; rename replaces no folder that holds files."""
    if not target.exists():
        aside.replace(target)
        return
    old = Path(tempfile.mkdtemp(prefix=_ASIDE, dir=target.parent))
    target.replace(old)
    try:
        aside.replace(target)
    except OSError:
        old.replace(target)
        raise
    shutil.rmtree(old, ignore_errors=True)


def remove_folder(target: Path) -> None:
    """Delete a folder so that it is complete or absent all the while."""
    # Under another name first: a kill in between leaves rubbish, not a half.
    doomed = Path(tempfile.mkdtemp(prefix=_ASIDE, dir=target.parent))
    target.replace(doomed)
    shutil.rmtree(doomed, ignore_errors=True)


def clear_unfinished(folder: Path) -> None:
    """Delete what killed writers left aside in a folder that nobody writes to now."""
    for path in folder.glob(f"{_ASIDE}*"):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            with suppress(OSError):
                path.unlink()


def write_synced(path: Path, data: bytes) -> None:
    """Write a file and bring it to the disk itself."""
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def write_whole(path: Path, data: bytes) -> None:
    """Write a file so that it has its old content or the new one; the same content costs nothing.

    A kill leaves at most a file aside, which :func:`clear_unfinished` removes.

    Raises:
        OSError: the disk is full, or the place cannot be written; the old content stays.
    """
    if path.is_file() and path.read_bytes() == data:
        return
    aside = path.with_name(f"{_ASIDE}{path.name}.{os.getpid()}")
    try:
        write_synced(aside, data)
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)
    sync_folder(path.parent)


def sync_folder(path: Path) -> None:
    """Bring a folder's names to the disk itself."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
