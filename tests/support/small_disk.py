"""A real disk that is small enough to be filled: a tmpfs mount of some megabytes."""

from __future__ import annotations

import ctypes
import errno
import os
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_FILLER = "filler"
_MNT_DETACH = 2


class SmallDisk:
    """A mounted disk; `fill` takes what room is left, `free` gives it back."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def fill(self) -> None:
        """Write until the kernel says that no space is left (ENOSPC)."""
        with (self.path / _FILLER).open("ab", buffering=0) as file:
            for size in (1 << 20, 1 << 12):
                try:
                    while True:
                        file.write(b"\0" * size)
                except OSError as error:
                    if error.errno != errno.ENOSPC:
                        raise

    def free(self) -> None:
        """Give the room back."""
        (self.path / _FILLER).unlink(missing_ok=True)


def can_mount() -> bool:
    """Whether this process may mount a disk (root with CAP_SYS_ADMIN)."""
    if os.geteuid() != 0:
        return False
    with tempfile.TemporaryDirectory() as folder:
        try:
            with small_disk(Path(folder) / "disk", megabytes=1):
                return True
        except (OSError, subprocess.CalledProcessError):
            return False


@contextmanager
def small_disk(path: Path, *, megabytes: int) -> Iterator[SmallDisk]:
    """Mount a disk while the block runs."""
    path.mkdir(parents=True)
    subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(path)],
        check=True,
        capture_output=True,
    )
    try:
        yield SmallDisk(path)
    finally:
        # Detached: a file that something still holds open must not keep the mount.
        ctypes.CDLL(None).umount2(os.fsencode(path), _MNT_DETACH)
