"""A writer that journals records on disk and delivers them from its own thread.

The producer appends records to the journal and continues; the thread reads them back and delivers
them in batches. This is the only path: the journal stays short while the receiver answers, grows
while the receiver is unreachable, and is delivered by the next start after a kill. A kill between
delivery and deletion repeats a batch, so receivers must be idempotent by key.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Protocol, Self

from mario.journal.format import (
    NO_PATIENCE,
    READ_BYTES,
    Journal,
    Patience,
    Record,
    decode_line,
    encode_line,
)

_log = logging.getLogger(__name__)

OVERFLOW_LINES, OVERFLOW_BATCH_LINES = 200_000, 2_000
FIRST_RETRY_SECONDS = 0.2
LAST_RETRY_SECONDS = 5.0
# Enough of the journal to see whether anything is left in it.
_PEEK_BYTES = 4096
# A writer that has not caught up for this long reports its backlog from `put`.
BEHIND_SECONDS = 30.0


class DeliveryUnavailableError(Exception):
    """The receiver is unreachable: the records are kept and delivered later."""


class DeliveryRefusedError(Exception):
    """The receiver permanently refuses at least one record of the batch.

    Attributes:
        records: the refused records; empty if the receiver does not say which.
    """

    def __init__(self, reason: str, records: Sequence[Record] = ()) -> None:
        super().__init__(reason)
        self.records = tuple(records)


Deliver = Callable[[Sequence[Record]], None]


class WriterObserver(Protocol):
    """Receives a writer's numbers for metrics; its methods must not block.

    They are called from the writer's thread and from the producer's.
    """

    def waiting(self, queue_rows: int, journal_rows: int) -> None:
        """Report the rows that wait in memory, and those in the journal."""
        ...

    def replayed(self, rows: int) -> None:
        """Report delivered records of an earlier process, or of an outage of the receiver."""
        ...


@dataclass(frozen=True)
class WriterReport:
    """How many of a writer's records were delivered, refused or lost.

    Attributes:
        accepted: records put by this process.
        delivered: delivered records, including those of earlier processes.
        refused: records that the receiver permanently refused; they are in ``refused.jsonl``.
        torn: unreadable lines, cut by a kill, a power cut or a full disk.
        lost: records for which neither disk nor memory had room.
        pending: whether records wait in the journal for the next start.
        last_error: the receiver's last error message, if any.
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
    outage_since: float | None = field(default=None)


class JournaledWriter:
    """Accepts records without waiting and delivers them in batches from its own thread.

    ``put`` never raises and never waits for the receiver: it costs one write to a file.

    Args:
        folder: the journal's folder; records of an earlier process are delivered first.
        deliver: delivers a batch. It raises ``DeliveryUnavailableError`` if the batch must be tried
            again, and ``DeliveryRefusedError`` if records are refused: the others are tried again.
            If the error names no record, the batch is halved until one record is left.
        name: name of the thread, and in messages.
        batch_bytes: journal bytes in one batch.
        flush_seconds: how long records may wait for a batch to fill.
        patience: how long to wait for another process' lock on the journal.
        observer: receives numbers for metrics.

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
        patience: Patience = NO_PATIENCE,
        observer: WriterObserver | None = None,
    ) -> None:
        self._observer = observer
        self._clean_at = time.monotonic()
        self._journal = Journal(folder, patience=patience)
        self._deliver = deliver
        self._name = name
        self._batch_bytes = batch_bytes
        self._flush_seconds = flush_seconds
        self._overflow: deque[bytes] = deque()
        self._overflow_lock = threading.Lock()
        self._counters = _Counters()
        self._wake = threading.Event()
        self._urgent = threading.Event()
        self._idle = threading.Condition()
        self._put_count = 0
        self._clean_count = -1
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"write-{name}", daemon=True)
        self._thread.start()
        self._wake.set()  # an earlier process may have left records

    # -- the producer: never waits, never raises -------------------------------------

    def put(self, records: Sequence[Record]) -> None:
        """Accept records of JSON types; when this returns they survive the process."""
        if not records:
            return
        lines = [encode_line(record) for record in records]
        try:
            self._journal_overflow()  # first, to keep the order of records
            self._journal.append(b"".join(lines))
        except (OSError, ValueError) as error:
            self._keep_in_memory(lines, error)
        self._counters.accepted += len(records)
        self._put_count += 1
        self._wake.set()
        if time.monotonic() - self._clean_at > BEHIND_SECONDS:
            self._report_waiting()

    def _report_waiting(self, *, caught_up: bool = False) -> None:
        if self._observer is not None:
            counters = self._counters
            taken = counters.accepted + counters.foreign
            behind = taken - counters.delivered - counters.refused - counters.lost
            self._observer.waiting(len(self._overflow), 0 if caught_up else max(behind, 0))

    def _keep_in_memory(self, lines: Sequence[bytes], error: Exception) -> None:
        with self._overflow_lock:
            room = OVERFLOW_LINES - len(self._overflow)
            self._overflow.extend(lines[:room])
        self._lose(len(lines) - room, error)
        message = f"journal {self._journal.folder}: {error}"
        if message != self._counters.last_error:
            self._counters.last_error = message
            _log.warning("%s; up to %d records are kept in memory", message, OVERFLOW_LINES)

    def _journal_overflow(self) -> None:
        """Move records that a full disk kept in memory to the journal, oldest first.

        Raises:
            OSError: if the disk refuses some of them; those stay in memory.
        """
        if not self._overflow:  # nearly always; this path is hot
            return
        with self._overflow_lock:
            while self._overflow:
                # In parts: the next try writes again what a nearly full disk took of a part.
                part = list(islice(self._overflow, OVERFLOW_BATCH_LINES))
                self._journal.append(b"".join(part))
                for _ in part:
                    self._overflow.popleft()
        self._wake.set()

    def _lose(self, count: int, error: Exception) -> None:
        if count <= 0:
            return
        if not self._counters.lost:
            _log.error(
                "writer %s: records are lost: neither the disk of %s (%s) nor memory has room; "
                "free space on the disk",
                self._name,
                self._journal.folder,
                error,
            )
        self._counters.lost += count

    def sync(self) -> bool:
        """Flush what was put to the disk; call it before a checkpoint that relies on it.

        Returns:
            Whether everything is durable. False while a full disk keeps records in memory that the
            receiver has not taken either. Lost records do not count: see `report`.
        """
        try:
            self._journal_overflow()
            self._journal.sync()
        except (OSError, ValueError) as error:
            _log.warning("journal %s cannot be synced: %s", self._journal.folder, error)
            return False
        return True

    # -- waiting for delivery --------------------------------------------

    def flush(self, timeout_seconds: float) -> bool:
        """Wait until everything put so far is delivered; False if the time runs out first."""
        target = self._put_count
        self._urgent.set()
        self._wake.set()
        with self._idle:
            return self._idle.wait_for(lambda: self._clean_count >= target, timeout_seconds)

    def close(self, timeout_seconds: float = 10.0) -> WriterReport:
        """Deliver for at most this long, then stop; undelivered records stay in the journal."""
        clean = self.flush(timeout_seconds) if not self._closing.is_set() else False
        self._closing.set()
        self._wake.set()
        self._thread.join(timeout=1.0)
        pending = not clean or bool(self._overflow)
        try:
            self._journal_overflow()
        except (OSError, ValueError) as error:
            self._lose(len(self._overflow), error)
        # A thread that hangs in the receiver may still deliver; keep its files for a replay.
        self._journal.close(empty=clean and not self._thread.is_alive() and not pending)
        return self.report(pending=pending)

    def report(self, *, pending: bool | None = None) -> WriterReport:
        """Return the counts so far."""
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
                self._note_outage(error)
                self._report_waiting()
                # `wake` is set by every `put`: waiting for it would retry without a pause.
                self._closing.wait(retry_seconds)
                retry_seconds = min(2 * retry_seconds, LAST_RETRY_SECONDS)
                self._wake.set()
                continue
            except Exception:  # a bug here must not end the run; it must be logged
                _log.exception("writer %s failed; trying again", self._name)
                self._closing.wait(LAST_RETRY_SECONDS)
                self._wake.set()
                continue
            retry_seconds = FIRST_RETRY_SECONDS
            self._note_recovery()
            self._clean_at = time.monotonic()
            self._report_waiting(caught_up=True)
            self._urgent.clear()
            with self._idle:
                self._clean_count = max(self._clean_count, before)
                self._idle.notify_all()

    def _drain(self) -> None:
        while not self._closing.is_set():
            records, position = self._journal.read(self._batch_bytes)
            if not records:
                self._forget(position)
                if self._deliver_overflow():
                    continue
                return
            self._deliver_batch(records)
            own = position[0] >= self._journal.first_own_segment
            if not own:
                # Records of an earlier process: delivered by this one, but not accepted by it.
                self._counters.foreign += len(records)
            if self._observer is not None and (not own or self._counters.outage_since is not None):
                self._observer.replayed(len(records))
            self._forget(position)

    def _deliver_overflow(self) -> bool:
        """Deliver a part of the records that a full disk kept in memory; False if there are none.

        The journal holds earlier records, so it is delivered first.
        """
        with self._overflow_lock:
            if not self._overflow:
                return False
            if self._journal.read(_PEEK_BYTES)[0]:
                return True
            lines = list(islice(self._overflow, OVERFLOW_BATCH_LINES))
        decoded = (decode_line(line.rstrip(b"\n")) for line in lines)
        self._deliver_batch([record for record in decoded if record is not None])
        with self._overflow_lock:
            # `put` may have moved them to the journal meanwhile: then they are delivered twice.
            for line in lines:
                if self._overflow and self._overflow[0] is line:
                    self._overflow.popleft()
        return True

    def _forget(self, position: tuple[int, int]) -> None:
        torn = self._journal.forget(position)
        if torn:
            _log.error(
                "writer %s: %d lines of the journal %s cannot be read: a kill, a power cut or a "
                "full disk cut them. Their records are lost, unless they were kept in memory (full "
                "disk) or the run resumes from an earlier checkpoint",
                self._name,
                torn,
                self._journal.folder,
            )

    def _deliver_batch(self, records: Sequence[Record]) -> None:
        """Deliver records; then write the refused ones to ``refused.jsonl``.

        Not before the others are delivered: until then the whole batch may be tried again.
        """
        refused: list[tuple[Record, Exception]] = []
        self._deliver_all(records, refused)
        if self._journal.closed:
            return  # the journal's next owner delivers them again, with the same refusals
        self._counters.delivered += len(records) - len(refused)
        for record, error in refused:
            self._refuse(record, error)

    def _deliver_all(
        self, records: Sequence[Record], refused: list[tuple[Record, Exception]]
    ) -> None:
        try:
            self._deliver(records)
        except DeliveryRefusedError as error:
            named = error.records or (records if len(records) == 1 else ())
            refused += [(record, error) for record in named]
            known = {id(record) for record in named}
            rest = [record for record in records if id(record) not in known]
            # If none is named, deliver halves until the refused record is alone.
            middle = len(rest) if named else len(rest) // 2
            for part in (rest[:middle], rest[middle:]):
                if part:
                    self._deliver_all(part, refused)

    def _refuse(self, record: Record, error: Exception) -> None:
        self._counters.refused += 1
        self._counters.last_error = str(error)
        _log.error("writer %s: a record was refused: %s", self._name, error)
        try:
            with (self._journal.folder / "refused.jsonl").open("ab") as file:
                file.write(encode_line({"reason": str(error), "record": record}))
        except OSError as failure:
            _log.error("the refused record could not be kept: %s", failure)

    def _note_outage(self, error: Exception) -> None:
        self._counters.last_error = str(error)
        if self._counters.outage_since is None:
            self._counters.outage_since = time.monotonic()
            _log.warning(
                "writer %s: %s; records stay in the journal %s until the receiver answers",
                self._name,
                error,
                self._journal.folder,
            )

    def _note_recovery(self) -> None:
        if self._counters.outage_since is not None:
            outage = time.monotonic() - self._counters.outage_since
            self._counters.outage_since = None
            _log.warning(
                "writer %s: the receiver answers again after %.1f s; the journal is delivered",
                self._name,
                outage,
            )
