"""The journal's files: append-only segments of records, read in order, deleted once delivered.

A journal is a folder of numbered segment files. A line is ``CRC32 of the rest, 8 hexadecimal
digits | space | JSON``. A line that a kill or a full disk cut fails its checksum; it is skipped and
counted. The thread that delivers a journal is in `mario.journal.writer`.
"""

from __future__ import annotations

import fcntl
import json
import os
import threading
import time
import zlib
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from mario.errors import StoreError
from mario.files import sync_folder

Record = dict[str, Any]

SEGMENT_BYTES = 4 << 20
READ_BYTES = 1 << 20
#: How long a run waits for the lock of its own journals: an earlier attempt may be ending, or a
#: replay may hold them.
LOCK_SECONDS = 30.0
#: How long a replay of an abandoned journal may hold its lock: less than ``LOCK_SECONDS``.
REPLAY_SECONDS = 25.0
_LOCK_POLL_SECONDS = 0.05


def encode_line(record: Record) -> bytes:
    """Encode a record as one journal line; NumPy scalars become Python numbers."""
    payload = json.dumps(record, separators=(",", ":"), ensure_ascii=False, default=_plain).encode(
        "utf-8", "backslashreplace"
    )
    return b"%08x %s\n" % (zlib.crc32(payload), payload)


def _plain(value: Any) -> Any:
    return value.item() if hasattr(value, "item") else str(value)


def decode_line(line: bytes) -> Record | None:
    """Decode a line without its line break; None if its checksum is wrong."""
    checksum, separator, payload = line.partition(b" ")
    if not separator or len(checksum) != 8:
        return None
    try:
        if int(checksum, 16) != zlib.crc32(payload):
            return None
        record = json.loads(payload)
    except ValueError:
        return None
    return record if isinstance(record, dict) else None


@dataclass(frozen=True)
class Patience:
    """How long to wait for the lock of a journal that another process holds.

    Attributes:
        seconds: the longest wait; 0 fails at once.
        stop: ends the wait early when set.
    """

    seconds: float = 0.0
    stop: threading.Event | None = None


NO_PATIENCE = Patience()


class Journal:
    """Numbered segment files in a folder, written by one process and read in order.

    Args:
        folder: created if it is missing; segments of earlier processes are read first.
        segment_bytes: size at which a new segment starts.
        patience: how long to wait for another process' lock.

    Raises:
        StoreError: if another process holds the journal, or the folder cannot be created.
    """

    def __init__(
        self,
        folder: Path | str,
        *,
        segment_bytes: int = SEGMENT_BYTES,
        patience: Patience = NO_PATIENCE,
    ) -> None:
        self.folder = Path(folder)
        self._segment_bytes = segment_bytes
        self._mutex = threading.Lock()
        self._file: IO[bytes] | None = None
        self._written = 0
        self._torn_end = False
        # What `sync` must still bring to the disk: full segments, and new names in the folder.
        self._unsynced: list[int] = []
        self._new_names = False
        # Lines that the last `read` skipped before its position; `forget` counts them.
        self._skipped: tuple[tuple[int, int], int] = ((0, 0), 0)
        self.torn_lines = 0
        self.closed = False
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock = (self.folder / ".lock").open("w")
        except OSError as error:
            raise StoreError(
                f"cannot use the journal folder {self.folder} ({error.strerror}); expected one "
                "that can be written; name another runs folder with MARIO_RUNS_DIR"
            ) from error
        try:
            self._take_lock(patience)
        except OSError as error:
            self._lock.close()
            raise StoreError(
                f"the journal {self.folder} is being written by another process; expected no "
                "other writer; wait for that process to end, or stop it"
            ) from error
        existing = self._segments()
        self._read_segment = existing[0] if existing else 1
        self._read_offset = 0
        self._write_segment = existing[-1] + 1 if existing else 1
        self.first_own_segment = self._write_segment

    def _take_lock(self, patience: Patience) -> None:
        deadline = time.monotonic() + patience.seconds
        stop = patience.stop or threading.Event()
        while True:
            try:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if stop.is_set() or time.monotonic() >= deadline:
                    raise
                stop.wait(_LOCK_POLL_SECONDS)
            else:
                return

    def _segments(self) -> list[int]:
        return sorted(int(path.stem) for path in self.folder.glob("[0-9]*.jsonl"))

    def _path(self, segment: int) -> Path:
        return self.folder / f"{segment:08d}.jsonl"

    def append(self, lines: bytes) -> None:
        """Append complete lines; when this returns they survive the process.

        Raises:
            OSError: if the disk refuses them; a cut line may remain, which reading skips.
        """
        with self._mutex:
            if self._file is not None and self._written >= self._segment_bytes:
                self._unsynced.append(self._write_segment)
                self._start_next_segment()
            if self._file is None:
                # Unbuffered: written bytes are in the kernel and survive this process.
                self._file = self._path(self._write_segment).open("ab", buffering=0)
                self._written = 0
                self._new_names = True
            data = b"\n" + lines if self._torn_end else lines
            self._torn_end = True
            while data:
                count = self._file.write(data)
                self._written += count
                data = data[count:]
            self._torn_end = False

    def _start_next_segment(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None
        self._write_segment += 1
        self._torn_end = False

    def sync(self) -> None:
        """Flush everything appended to the disk, so that it survives a power cut.

        Raises:
            OSError: if the disk fails; the next call tries again what is missing.
        """
        with self._mutex:
            while self._unsynced:
                with suppress(FileNotFoundError), self._path(self._unsynced[0]).open("rb") as file:
                    os.fsync(file.fileno())
                del self._unsynced[0]  # on the disk, or already delivered and deleted
            if self._file is not None:
                os.fsync(self._file.fileno())
            if self._new_names:
                sync_folder(self.folder)
                sync_folder(self.folder.parent)
                self._new_names = False

    def read(self, max_bytes: int = READ_BYTES) -> tuple[list[Record], tuple[int, int]]:
        """Read the next records without deleting them.

        Returns:
            The records (empty if there are none now), and the position after them for ``forget``.
        """
        records, position, torn = self._read(max_bytes)
        self._skipped = (position, torn)
        return records, position

    def _read(self, max_bytes: int) -> tuple[list[Record], tuple[int, int], int]:
        segment, offset = self._read_segment, self._read_offset
        torn = 0
        while True:
            path = self._path(segment)
            try:
                with path.open("rb") as file:
                    file.seek(offset)
                    data = file.read(max_bytes)
            except FileNotFoundError:
                data = b""
            # An earlier process' last line may lack its line break; ours counts only with one.
            last_of_segment = segment < self._write_segment
            end = data.rfind(b"\n") + 1
            if end == 0 and len(data) == max_bytes:
                max_bytes *= 2  # a single record longer than the buffer
                continue
            if end == 0 and last_of_segment:
                end = len(data)
            if end:
                records = [decode_line(line) for line in data[:end].split(b"\n") if line]
                torn += sum(record is None for record in records)
                whole = [record for record in records if record is not None]
                if whole:
                    return whole, (segment, offset + end), torn
                offset += end
                continue
            if not last_of_segment:
                return [], (segment, offset), torn
            segment, offset = segment + 1, 0

    def forget(self, position: tuple[int, int]) -> int:
        """Delete everything before a position from ``read``, because it was delivered.

        A closed journal may already belong to another process; then nothing is deleted.

        Returns:
            The number of unreadable lines before the position; ``torn_lines`` is their sum.
        """
        with self._mutex:
            if self.closed:
                return 0
            torn = self._skipped[1] if self._skipped[0] == position else 0
            self._skipped = (position, 0)
            self.torn_lines += torn
            self._read_segment, self._read_offset = position
            done_with_current = (
                self._file is not None
                and position == (self._write_segment, self._written)
                and self._written > READ_BYTES // 4
            )
            if done_with_current:
                self._start_next_segment()
                self._read_segment, self._read_offset = self._write_segment, 0
            for segment in self._segments():
                if segment < self._read_segment:
                    self._path(segment).unlink(missing_ok=True)
            return torn

    def close(self, *, empty: bool) -> None:
        """Release the journal; ``empty`` deletes its files, because everything was delivered."""
        with self._mutex:
            self.closed = True
            if self._file is not None:
                self._file.close()
                self._file = None
            if empty:
                for segment in self._segments():
                    self._path(segment).unlink(missing_ok=True)
            self._lock.close()


def pending_journals(root: Path | str) -> Iterator[Path]:
    """Find the journal folders under ``root`` with undelivered segments, in order of name."""
    folders = {path.parent for path in Path(root).glob("**/journal*/**/[0-9]*.jsonl")}
    yield from sorted(folders)


def first_record(folder: Path | str) -> Record | None:
    """Read the oldest readable record of a journal without its lock; None if there is none."""
    for path in sorted(Path(folder).glob("[0-9]*.jsonl")):
        with suppress(OSError), path.open("rb") as file:  # it may be deleted meanwhile
            for line in file:
                record = decode_line(line.rstrip(b"\n"))
                if record is not None:
                    return record
    return None
