"""A journal on disk and the thread that empties it: records outlive their process and its servers.

Whoever produces records appends them to a file and goes on; one thread reads them back from that
file and delivers them in batches. There is no second path: with the receiver up the file is short,
with the receiver away it grows, after a kill it is still there and is delivered at the next start.
Delivery may repeat (a kill between delivering and forgetting), so receivers are idempotent by key.

A line is ``CRC32 of the rest, 8 hexadecimal digits | space | JSON``; a line that was torn by a
kill or a full disk fails its check and is skipped and counted.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import threading
import time
import zlib
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Protocol, Self

from mario.errors import StoreError

_log = logging.getLogger(__name__)

Record = dict[str, Any]

SEGMENT_BYTES = 4 << 20
READ_BYTES = 1 << 20
OVERFLOW_LINES = 200_000
FIRST_RETRY_SECONDS = 0.2
LAST_RETRY_SECONDS = 5.0
# A writer that has not caught up for so long is behind, whatever its thread is doing.
BEHIND_SECONDS = 30.0


class DeliveryUnavailableError(Exception):
    """The receiver does not answer now: keep the records and try again later."""


class DeliveryRefusedError(Exception):
    """The receiver answers, and refuses at least one of the records for good."""


Deliver = Callable[[Sequence[Record]], None]


class WriterObserver(Protocol):
    """Hears how a writer fares (metrics); called from its thread or the producer's, must not block.

    ``mario.telemetry_export.StoreMetrics`` is one.
    """

    def waiting(self, queue_rows: int, journal_rows: int) -> None:
        """What waits in memory, and in the journal beyond the batch that is being made."""
        ...

    def replayed(self, rows: int) -> None:
        """Records of an earlier process, or of an absence of the receiver, were delivered."""
        ...


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


class Journal:
    """Numbered segment files in a folder, appended by one process and read back in order.

    Args:
        folder: created if need be; segments of an earlier process are read first.
        segment_bytes: size at which a new segment begins.

    Raises:
        StoreError: if another living process writes this journal, or the folder cannot be made.
    """

    def __init__(self, folder: Path | str, *, segment_bytes: int = SEGMENT_BYTES) -> None:
        self.folder = Path(folder)
        self._segment_bytes = segment_bytes
        self._mutex = threading.Lock()
        self._file: IO[bytes] | None = None
        self._written = 0
        self._torn_end = False
        self.torn_lines = 0
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock = (self.folder / ".lock").open("w")
        except OSError as error:
            raise StoreError(
                f"cannot use the journal folder {self.folder} ({error.strerror}); expected one "
                "that can be written; name another runs folder with MARIO_RUNS_DIR"
            ) from error
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
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
                self._start_next_segment()
            if self._file is None:
                # Unbuffered: what was written is the kernel's, whatever happens to this process.
                self._file = self._path(self._write_segment).open("ab", buffering=0)
                self._written = 0
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
        """Bring everything appended to the disk itself, so that it survives the machine."""
        with self._mutex:
            if self._file is not None:
                os.fsync(self._file.fileno())

    def read(self, max_bytes: int = READ_BYTES) -> tuple[list[Record], tuple[int, int]]:
        """Read the next records, without forgetting them.

        Returns:
            The records (empty when there are none now) and the position after them, for
            ``forget``.
        """
        segment, offset = self._read_segment, self._read_offset
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
                self.torn_lines += sum(record is None for record in records)
                whole = [record for record in records if record is not None]
                if whole:
                    return whole, (segment, offset + end)
                offset += end
                continue
            if not last_of_segment:
                return [], (segment, offset)
            segment, offset = segment + 1, 0

    def forget(self, position: tuple[int, int]) -> None:
        """Drop everything before a position that ``read`` returned: it was delivered."""
        with self._mutex:
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

    def close(self, *, empty: bool) -> None:
        """Release the journal; ``empty`` says that everything was delivered, so files may go."""
        with self._mutex:
            if self._file is not None:
                self._file.close()
                self._file = None
            if empty:
                for segment in self._segments():
                    self._path(segment).unlink(missing_ok=True)
            self._lock.close()


@dataclass(frozen=True)
class WriterReport:
    """What became of a writer's records.

    Attributes:
        accepted: records put in by this process.
        delivered: records delivered, those of earlier processes included.
        refused: records that the receiver refused for good; they are in ``refused.jsonl``.
        torn: lines that could not be read back.
        lost: records for which neither disk nor memory had room.
        pending: whether records wait in the journal for the next start.
        last_error: the receiver's last complaint, if any.
    """

    accepted: int
    delivered: int
    refused: int
    torn: int
    lost: int
    pending: bool
    last_error: str | None


@dataclass
class _Counters:
    accepted: int = 0
    foreign: int = 0
    delivered: int = 0
    refused: int = 0
    lost: int = 0
    last_error: str | None = None
    away_since: float | None = field(default=None)


class JournaledWriter:
    """Takes records without waiting, delivers them in batches from its own thread.

    ``put`` never raises and never waits for the receiver: it costs one write to a file.

    Args:
        folder: the journal's folder; what an earlier process left there is delivered first.
        deliver: delivers a batch or raises ``DeliveryUnavailableError`` (tried again) or
            ``DeliveryRefusedError`` (the batch is halved until the refused record stands alone).
        name: for the thread and for messages.
        batch_bytes: journal bytes in one batch.
        flush_seconds: how long records may wait to become a batch.
        observer: hears how it fares.

    Raises:
        StoreError: if the journal cannot be opened.
    """

    def __init__(
        self,
        folder: Path | str,
        deliver: Deliver,
        *,
        name: str,
        batch_bytes: int = READ_BYTES,
        flush_seconds: float = 0.5,
        observer: WriterObserver | None = None,
    ) -> None:
        self._observer = observer
        self._clean_at = time.monotonic()
        self._journal = Journal(folder)
        self._deliver = deliver
        self._name = name
        self._batch_bytes = batch_bytes
        self._flush_seconds = flush_seconds
        self._overflow: deque[bytes] = deque()
        self._counters = _Counters()
        self._wake = threading.Event()
        self._urgent = threading.Event()
        self._idle = threading.Condition()
        self._put_count = 0
        self._clean_count = -1
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"write-{name}", daemon=True)
        self._thread.start()
        self._wake.set()  # an earlier process may have left something

    # -- the producer's side: never waits, never raises -------------------------------------

    def put(self, records: Sequence[Record]) -> None:
        """Take records of JSON types; they are safe from this process's death on return."""
        if not records:
            return
        lines = [encode_line(record) for record in records]
        try:
            self._journal.append(b"".join(lines))
        except (OSError, ValueError) as error:
            self._keep_in_memory(lines, error)
        self._counters.accepted += len(records)
        self._put_count += 1
        self._wake.set()
        if time.monotonic() - self._clean_at > BEHIND_SECONDS:
            self._tell_waiting()

    def _tell_waiting(self, *, caught_up: bool = False) -> None:
        if self._observer is not None:
            counters = self._counters
            taken = counters.accepted + counters.foreign
            behind = taken - counters.delivered - counters.refused - counters.lost
            self._observer.waiting(len(self._overflow), 0 if caught_up else max(behind, 0))

    def _keep_in_memory(self, lines: Sequence[bytes], error: Exception) -> None:
        room = OVERFLOW_LINES - len(self._overflow)
        self._overflow.extend(lines[:room])
        self._counters.lost += max(0, len(lines) - room)
        message = f"journal {self._journal.folder}: {error}"
        if message != self._counters.last_error:
            self._counters.last_error = message
            _log.warning("%s; keeping up to %d records in memory", message, OVERFLOW_LINES)

    def sync(self) -> None:
        """Make what was put durable on the disk; call it before a checkpoint that builds on it."""
        try:
            self._journal.sync()
        except OSError as error:
            _log.warning("journal %s cannot be synced: %s", self._journal.folder, error)

    # -- waiting, for ends of runs and for tests --------------------------------------------

    def flush(self, timeout_seconds: float) -> bool:
        """Wait until everything put so far is delivered; False if that takes too long."""
        target = self._put_count
        self._urgent.set()
        self._wake.set()
        with self._idle:
            return self._idle.wait_for(lambda: self._clean_count >= target, timeout_seconds)

    def close(self, timeout_seconds: float = 10.0) -> WriterReport:
        """Deliver what can be delivered in time and stop; the rest stays in the journal."""
        clean = self.flush(timeout_seconds) if not self._closing.is_set() else False
        self._closing.set()
        self._wake.set()
        self._thread.join(timeout=1.0)
        pending = not clean
        if self._overflow:
            try:
                self._journal.append(b"".join(self._overflow))
                self._overflow.clear()
                pending = True
            except (OSError, ValueError):
                self._counters.lost += len(self._overflow)
        # A thread that hangs in the receiver may still deliver; its files must stay for replay.
        self._journal.close(empty=clean and not self._thread.is_alive() and not pending)
        return self.report(pending=pending)

    def report(self, *, pending: bool | None = None) -> WriterReport:
        """Counts so far."""
        counters = self._counters
        return WriterReport(
            accepted=counters.accepted,
            delivered=counters.delivered,
            refused=counters.refused,
            torn=self._journal.torn_lines,
            lost=counters.lost,
            pending=self._clean_count < self._put_count if pending is None else pending,
            last_error=counters.last_error,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- the thread -------------------------------------------------------------------------

    def _run(self) -> None:
        retry_seconds = FIRST_RETRY_SECONDS
        while not self._closing.is_set():
            self._wake.wait()
            if self._closing.is_set():
                return
            if not self._urgent.is_set():
                self._urgent.wait(self._flush_seconds)
            self._wake.clear()
            before = self._put_count
            try:
                self._drain()
            except DeliveryUnavailableError as error:
                self._note_away(error)
                self._tell_waiting()
                # Waiting for `wake` would spin while records keep coming.
                self._closing.wait(retry_seconds)
                retry_seconds = min(2 * retry_seconds, LAST_RETRY_SECONDS)
                self._wake.set()
                continue
            except Exception:  # a bug here must not end the run, and must be seen
                _log.exception("writer %s failed; trying again", self._name)
                self._closing.wait(LAST_RETRY_SECONDS)
                self._wake.set()
                continue
            retry_seconds = FIRST_RETRY_SECONDS
            self._note_back()
            self._clean_at = time.monotonic()
            self._tell_waiting(caught_up=True)
            self._urgent.clear()
            with self._idle:
                self._clean_count = max(self._clean_count, before)
                self._idle.notify_all()

    def _drain(self) -> None:
        while not self._closing.is_set():
            records, position = self._journal.read(self._batch_bytes)
            if not records:
                self._journal.forget(position)
                break
            self._deliver_all(records)
            own = position[0] >= self._journal.first_own_segment
            if not own:
                # An earlier process's records: not accepted by this one, but delivered by it.
                self._counters.foreign += len(records)
            if self._observer is not None and (not own or self._counters.away_since is not None):
                self._observer.replayed(len(records))
            self._journal.forget(position)
        while self._overflow and not self._closing.is_set():
            lines = [self._overflow[index] for index in range(min(len(self._overflow), 2_000))]
            decoded = (decode_line(line.rstrip(b"\n")) for line in lines)
            self._deliver_all([record for record in decoded if record is not None])
            for _ in lines:
                self._overflow.popleft()

    def _deliver_all(self, records: Sequence[Record]) -> None:
        try:
            self._deliver(records)
        except DeliveryRefusedError as error:
            if len(records) == 1:
                self._refuse(records[0], error)
                return
            middle = len(records) // 2
            self._deliver_all(records[:middle])
            self._deliver_all(records[middle:])
            return
        self._counters.delivered += len(records)

    def _refuse(self, record: Record, error: Exception) -> None:
        self._counters.refused += 1
        self._counters.last_error = str(error)
        _log.error("writer %s: a record was refused: %s", self._name, error)
        try:
            with (self._journal.folder / "refused.jsonl").open("ab") as file:
                file.write(encode_line({"reason": str(error), "record": record}))
        except OSError as failure:
            _log.error("the refused record could not be kept: %s", failure)

    def _note_away(self, error: Exception) -> None:
        self._counters.last_error = str(error)
        if self._counters.away_since is None:
            self._counters.away_since = time.monotonic()
            _log.warning(
                "writer %s: %s; records go to the journal %s until it is back",
                self._name,
                error,
                self._journal.folder,
            )

    def _note_back(self) -> None:
        if self._counters.away_since is not None:
            away = time.monotonic() - self._counters.away_since
            self._counters.away_since = None
            _log.warning("writer %s: back after %.1f s, the journal is delivered", self._name, away)


def pending_journals(root: Path | str) -> Iterator[Path]:
    """Journal folders under ``root`` that hold undelivered segments, in order of their names."""
    folders = {path.parent for path in Path(root).glob("**/journal*/**/[0-9]*.jsonl")}
    yield from sorted(folders)
