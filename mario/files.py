"""Write files and folders that are complete or absent: write aside, sync, rename into place."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

#: Prefix of unfinished files and folders; see :func:`clear_unfinished`.
_ASIDE = ".writing-"


@contextmanager
def whole_folder(target: Path) -> Iterator[Path]:
    """Write the folder `target` so that it is complete or absent.

    The block fills a temporary folder. When it ends, that folder is synced and replaces `target`;
    when it raises, the folder is removed and `target` stays as it was. A killed process leaves at
    most a temporary folder, which :func:`clear_unfinished` removes.

    Args:
        target: path of the folder; an existing one is replaced.

    Raises:
        OSError: the disk is full, or the path cannot be written.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix=_ASIDE, dir=target.parent))
    try:
        yield aside
        # mkdtemp makes the folder private to the user; others may read the finished one.
        aside.chmod(0o755)
        sync_folder(aside)
        _replace_folder(aside, target)
        sync_folder(target.parent)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _replace_folder(aside: Path, target: Path) -> None:
    """Replace `target` by `aside`; a rename cannot replace a folder that is not empty."""
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
    """Delete a folder; at every moment it is complete or absent."""
    # Rename first: a process that is killed in between leaves no partial folder.
    doomed = Path(tempfile.mkdtemp(prefix=_ASIDE, dir=target.parent))
    target.replace(doomed)
    shutil.rmtree(doomed, ignore_errors=True)


def clear_unfinished(folder: Path) -> None:
    """Delete what killed processes left unfinished in a folder that nobody writes to now."""
    for path in folder.glob(f"{_ASIDE}*"):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            with suppress(OSError):
                path.unlink()


def write_synced(path: Path, data: bytes) -> None:
    """Write a file and sync it to the disk."""
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def write_whole(path: Path, data: bytes) -> None:
    """Write a file that has its old content or the new one; equal content is not written.

    A killed process leaves at most a temporary file, which :func:`clear_unfinished` removes.

    Raises:
        OSError: the disk is full, or the path cannot be written; the old content stays.
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
    """Sync a folder's entries to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
