"""Write the entries of a training run to the store through a journal, from a thread."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import datetime
from pathlib import Path
from typing import Any, Protocol, Self

import sqlalchemy as sa

from mario.errors import StoreError
from mario.journal.format import (
    NO_PATIENCE,
    REPLAY_SECONDS,
    Patience,
    Record,
    first_record,
    pending_journals,
)
from mario.journal.writer import (
    DeliveryRefusedError,
    DeliveryUnavailableError,
    JournaledWriter,
    WriterObserver,
    WriterReport,
)
from mario.store.batch_insert import known_runs, write_training_rows
from mario.store.engine import (
    StoreConstraintError,
    UnknownRunsError,
    encode_json,
    make_engine,
    reading,
    redact,
)
from mario.store.records import (
    AttemptEnd,
    AttemptStart,
    CheckpointEntry,
    EpisodeEntry,
    HealthChangeEntry,
    HealthSampleEntry,
    Heartbeat,
    SelectionEntry,
    TrainingEntry,
)

_log = logging.getLogger(__name__)

JOURNAL_FOLDER = "journal"
# Each kind of entry: its class, its name in the field ``row`` of a journal's records, and the table
# that its rows are counted under. The names are a file format: a journal that an earlier version
# left behind must stay readable.
_KINDS: tuple[tuple[type, str, str], ...] = (
    (EpisodeEntry, "EpisodeRow", "episodes"),
    (HealthSampleEntry, "HealthSampleRow", "health_samples"),
    (HealthChangeEntry, "HealthChangeRow", "health_changes"),
    (CheckpointEntry, "CheckpointRow", "checkpoints"),
    (SelectionEntry, "SelectionRow", "selections"),
    (AttemptEnd, "RunEndRow", "runs"),
    (Heartbeat, "HeartbeatRow", "run_attempts"),
    (AttemptStart, "AttemptStartRow", "run_attempts"),
)
_NAMES = {kind: name for kind, name, _ in _KINDS}
_TYPES = {name: kind for kind, name, _ in _KINDS}
_TABLES = {name: table for _, name, table in _KINDS}
_FIELDS = {kind: tuple(item.name for item in fields(kind)) for kind, _, _ in _KINDS}
_EPISODE = _NAMES[EpisodeEntry]
_EPISODE_KEYS = {"row", *_FIELDS[EpisodeEntry]}
_JSON_SCALARS = frozenset({str, int, float, bool, type(None)})
_TIME_FIELDS = ("at", "ended_at")


def to_record(row: TrainingEntry) -> Record:
    """Convert an entry to a journal record of JSON types."""
    kind = type(row)
    record: Record = {"row": _NAMES[kind]}
    for name in _FIELDS[kind]:
        value: Any = getattr(row, name)
        if type(value) not in _JSON_SCALARS:  # false for nearly every value; this path is hot
            value = value.isoformat() if isinstance(value, datetime) else encode_json(value)
        record[name] = value
    return record


def from_record(record: Record) -> TrainingEntry:
    """Convert a journal record to its entry.

    Raises:
        DeliveryRefusedError: if the record is invalid; a newer version may have written it.
    """
    values = dict(record)
    kind = _TYPES.get(str(values.pop("row", None)))
    if kind is None:
        raise DeliveryRefusedError(f"got a record of type {record.get('row')!r}")
    try:
        for name in _TIME_FIELDS:
            if name in values:
                values[name] = datetime.fromisoformat(values[name])
        if kind is HealthChangeEntry:
            values["reasons"] = tuple(values["reasons"])
        row: TrainingEntry = kind(**values)
    except (TypeError, ValueError, KeyError) as error:
        raise DeliveryRefusedError(f"got a {record['row']} that cannot be read: {error}") from error
    return row


class StoreObserver(WriterObserver, Protocol):
    """Receives the result of each batch, too; `telemetry.store.StoreMetrics` implements it."""

    def written(self, rows: Mapping[str, int], seconds: float) -> None:
        """Report a written batch: rows by table, and its duration."""
        ...

    def failed(self) -> None:
        """Report a batch that failed and will be tried again."""
        ...


class StoreWriter:
    """Writes a run's entries to the store without making training wait.

    Args:
        url: database URL; the database may be unreachable now.
        folder: the run's folder; the journal is ``folder/journal``.
        batch_bytes: journal bytes in one transaction (an episode takes about 450).
        flush_seconds: how long entries may wait for a batch to fill.
        patience: how long to wait for another process' lock on the journal.
        observer: receives numbers for metrics.

    Raises:
        StoreError: if the journal cannot be opened, or the URL is invalid.

    Example:
        >>> with StoreWriter(url, run_dir) as writer:  # doctest: +SKIP
        ...     writer.put([episode])
        ...     writer.sync()  # before a checkpoint
    """

    def __init__(
        self,
        url: str,
        folder: Path | str,
        *,
        batch_bytes: int = 4 << 20,
        flush_seconds: float = 0.5,
        patience: Patience = NO_PATIENCE,
        observer: StoreObserver | None = None,
    ) -> None:
        self._engine = make_engine(url)
        self._writer = JournaledWriter(
            Path(folder) / JOURNAL_FOLDER,
            _deliver_to(self._engine, observer),
            name="store",
            batch_bytes=batch_bytes,
            flush_seconds=flush_seconds,
            patience=patience,
            observer=observer,
        )

    def put(self, rows: Sequence[TrainingEntry]) -> None:
        """Accept entries without waiting and without raising; they survive the process."""
        self._writer.put([to_record(row) for row in rows])

    def sync(self) -> bool:
        """Make the entries put so far durable; call it before a checkpoint that relies on them.

        Returns:
            Whether they are durable. False while neither disk nor database accepts them, and always
            once entries were lost: a run resumed from an earlier checkpoint writes them again.
        """
        return self._writer.sync() and not self._writer.report().lost

    def flush(self, timeout_seconds: float = 10.0) -> bool:
        """Wait until the entries put so far are in the database; False if the time runs out."""
        return self._writer.flush(timeout_seconds)

    def close(self, timeout_seconds: float = 8.0) -> WriterReport:
        """Write for at most this long; the rest stays in the journal for the next start."""
        report = self._writer.close(timeout_seconds)
        self._engine.dispose()
        return report

    def report(self) -> WriterReport:
        """Return the counts so far."""
        return self._writer.report()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _without_row(record: Record) -> Record:
    return {name: value for name, value in record.items() if name != "row"}


def _deliver_to(
    engine: sa.Engine, observer: StoreObserver | None
) -> Callable[[Sequence[Record]], None]:
    def deliver(records: Sequence[Record]) -> None:
        begun = time.perf_counter()
        try:
            # Nearly all records are episodes: they go unconverted, and the database checks them.
            episodes = [r for r in records if r.get("row") == _EPISODE]
            if any(episode.keys() != _EPISODE_KEYS for episode in episodes):
                episodes = []
            rest = [r for r in records if not episodes or r.get("row") != _EPISODE]
            write_training_rows(
                engine,
                [from_record(record) for record in rest],
                episodes=[_without_row(episode) for episode in episodes],
            )
        except (TypeError, ValueError) as error:
            raise DeliveryRefusedError(f"got an episode that cannot be read: {error}") from error
        except UnknownRunsError as error:
            if error.alone:
                # This is the wrong database, because a run is stored before its first entry. Keep
                # the records for the right one. They do not block the entries of a known run:
                # read together with those, they are refused (below).
                if observer is not None:
                    observer.failed()
                raise DeliveryUnavailableError(str(error)) from error
            unknown = [record for record in records if record.get("run_id") in error.run_ids]
            raise DeliveryRefusedError(str(error), unknown) from error
        except StoreConstraintError as error:
            raise DeliveryRefusedError(str(error)) from error
        except StoreError as error:
            # Also a database that is not upgraded yet: waiting loses nothing.
            if observer is not None:
                observer.failed()
            raise DeliveryUnavailableError(str(error)) from error
        if observer is not None:
            tables = Counter(_TABLES[record["row"]] for record in records)
            observer.written(tables, time.perf_counter() - begun)

    return deliver


@dataclass(frozen=True)
class Replay:
    """The result of replaying one journal that an earlier process left.

    Attributes:
        folder: the journal.
        report: the counts of its records; None if it was skipped.
        busy: whether it was skipped because a living process holds it.
    """

    folder: Path
    report: WriterReport | None = None
    busy: bool = False


def replay_journals(
    url: str, runs_dir: Path | str, *, timeout_seconds: float = REPLAY_SECONDS
) -> list[Replay]:
    """Deliver the journals that killed processes left under a runs folder.

    A journal whose run is not in the database is skipped: it belongs to another database.

    Args:
        url: database URL.
        runs_dir: folder that contains the runs' folders.
        timeout_seconds: longest time for each journal.

    Returns:
        One result for each journal with undelivered records.
    """
    folders = [f for f in pending_journals(runs_dir) if f.name == JOURNAL_FOLDER]
    unknown = _of_unknown_runs(url, folders)
    if unknown:
        _log.warning(
            "%d journals under %s are skipped: their runs (%s%s) are not in the database %s; "
            "`mario store check --replay` delivers them with MARIO_DATABASE_URL set to the "
            "database of these runs",
            len(unknown),
            runs_dir,
            ", ".join(list(unknown.values())[:3]),
            ", …" if len(unknown) > 3 else "",
            redact(url),
        )
    return [
        Replay(folder) if folder in unknown else _replay(url, folder, timeout_seconds)
        for folder in folders
    ]


def _replay(url: str, folder: Path, timeout_seconds: float) -> Replay:
    try:
        writer = StoreWriter(url, folder.parent, flush_seconds=0.0)
    except StoreError:
        return Replay(folder, busy=True)
    return Replay(folder, report=writer.close(timeout_seconds))


def _of_unknown_runs(url: str, folders: Sequence[Path]) -> dict[Path, str]:
    """Map journals to their runs, for runs that the database does not have.

    Empty if the database is unreachable: the delivery then checks again.
    """
    first = {folder: first_record(folder) for folder in folders}
    run_ids = {
        f: str(record["run_id"]) for f, record in first.items() if record and "run_id" in record
    }
    if not run_ids:
        return {}
    engine = make_engine(url)
    try:
        with reading(engine) as connection:
            known = known_runs(connection, set(run_ids.values()))
    except StoreError:
        return {}
    finally:
        engine.dispose()
    return {folder: run_id for folder, run_id in run_ids.items() if run_id not in known}
