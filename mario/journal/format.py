"""A journal on disk: records appended by one process, read back in order, forgotten when delivered.

Numbered segment files in a folder. A line is ``CRC32 of the rest, 8 hexadecimal digits | space |
JSON``; a line that was torn by a kill or a full disk fails its check and is skipped and counted.
`mario.journal.writer` has the thread that empties a journal.
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
#: How long a run waits for its own journals: the process before it may just be ending, and somebody
#: who delivers what dead runs left may have them.
LOCK_SECONDS = 30.0
#: How long a journal that a dead run left is held to deliver it: less than a run waits for it.
REPLAY_SECONDS = 25.0
_LOOK_SECONDS = 0.05


def encode_line(record: Record) -> bytes:
    """One journal line of a record; NumPy's numbers are written as Python's."""
    payload = json.dumps(record, separators=(",", ":"), ensure_ascii=False, default=_plain).encode(
        "utf-8", "backslashreplace"
    )
    return b"%08x %s\n" % (zlib.crc32(payload), payload)


def _plain(value: Any) -> Any:
    return value.item() if hasattr(value, "item") else str(value)


def decode_line(line: bytes) -> Record | None:
    """The record of a line without its end, or None if the line is torn."""
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
    """How long another process may take to let go of a journal.

    Attributes:
        seconds: 0 refuses at once.
        stop: set to wait no more.
    """

    seconds: float = 0.0
    stop: threading.Event | None = None


NO_PATIENCE = Patience()


class Journal:
    """Numbered segment files in a folder, appended by one process and read back in order.

    Args:
        folder: created if need be; segments of an earlier process are read first.
        segment_bytes: size at which a new segment begins.
        patience: how long another process may take to let go of it.

    Raises:
        StoreError: if another living process has this journal, or the folder cannot be made.
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
        # What `sync` has yet to do: segments that are full, and names in the folder.
        self._unsynced: list[int] = []
        self._new_names = False
        # What the last `read` skipped on its way to a position; it counts once that is forgotten.
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
                f"the journal {self.folder} is being written by another process; expected to be "
                "alone; wait for that process to end, or stop it"
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
                stop.wait(_LOOK_SECONDS)
            else:
                return

    def _segments(self) -> list[int]:
        return sorted(int(path.stem) for path in self.folder.glob("[0-9]*.jsonl"))

    def _path(self, segment: int) -> Path:
        return self.folder / f"{segment:08d}.jsonl"

    def append(self, lines: bytes) -> None:
        """Append whole lines; they survive the process as soon as this returns.

        Raises:
            OSError: if the disk did not take them; a torn line may be left, which reading skips.
        """
        with self._mutex:
            if self._file is not None and self._written >= self._segment_bytes:
                self._unsynced.append(self._write_segment)
                self._start_next_segment()
            if self._file is None:
                # Unbuffered: what was written is the kernel's, whatever happens to this process.
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
        """Bring everything appended to the disk itself, so that it survives the machine.

        Raises:
            OSError: if the disk did not take it; what is not there yet is tried again next time.
        """
        with self._mutex:
            while self._unsynced:
                with suppress(FileNotFoundError), self._path(self._unsynced[0]).open("rb") as file:
                    os.fsync(file.fileno())
                del self._unsynced[0]  # on the disk, or delivered and forgotten
            if self._file is not None:
                os.fsync(self._file.fileno())
            if self._new_names:
                sync_folder(self.folder)
                sync_folder(self.folder.parent)
                self._new_names = False

    def read(self, max_bytes: int = READ_BYTES) -> tuple[list[Record], tuple[int, int]]:
        """Read the next records, without forgetting them.

        Returns:
            The records (empty when there are none now) and the position after them, for
            ``forget``.
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
            # Another process's last line may lack its end; only whole lines of ours are complete.
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
        """Drop everything before a position that ``read`` returned: it was delivered.

        A journal that was closed is another's to read: then nothing is dropped.

        Returns:
            How many lines before it could not be read; ``torn_lines`` has their sum.
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
        """Release the journal; ``empty`` says that everything was delivered, so files may go."""
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
    """Journal folders under ``root`` that hold undelivered segments, in order of their names."""
    folders = {path.parent for path in Path(root).glob("**/journal*/**/[0-9]*.jsonl")}
    yield from sorted(folders)


def first_record(folder: Path | str) -> Record | None:
    """The oldest record of a journal that can be read, whoever has it; None where there is none."""
    for path in sorted(Path(folder).glob("[0-9]*.jsonl")):
        with suppress(OSError), path.open("rb") as file:  # delivered and forgotten meanwhile
            for line in file:
                record = decode_line(line.rstrip(b"\n"))
                if record is not None:
                    return record
    return None
