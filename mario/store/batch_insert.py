"""Insert the entries of training runs in batches; inserting them again changes nothing."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from datetime import datetime, timedelta
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from mario.config.run_states import RunStatus
from mario.store import tables
from mario.store.engine import UnknownRunsError, encode_json, redact, writing
from mario.store.postgres_copy import copy_upsert
from mario.store.process_identity import SILENCE_SECONDS, host_name, is_alive
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
    utc_now,
)

_TABLES: dict[type, type[tables.Base]] = {
    EpisodeEntry: tables.EpisodeRow,
    HealthSampleEntry: tables.HealthSampleRow,
    HealthChangeEntry: tables.HealthChangeRow,
    CheckpointEntry: tables.CheckpointRow,
    SelectionEntry: tables.SelectionRow,
}
_FIELDS: dict[type, tuple[str, ...]] = {
    kind: tuple(item.name for item in fields(kind)) for kind in _TABLES
}
_JSON_FIELDS = {
    HealthSampleEntry: ("signals",),
    HealthChangeEntry: ("reasons",),
    SelectionEntry: ("details",),
}


def insert_into(
    connection: sa.Connection, table: type[tables.Base] | sa.Table
) -> postgresql.Insert | sqlite.Insert:
    """Create an INSERT with ``ON CONFLICT`` in the connection's dialect."""
    if connection.dialect.name == "postgresql":
        return postgresql.insert(table)
    return sqlite.insert(table)


def write_training_rows(
    engine: sa.Engine,
    rows: Iterable[TrainingEntry],
    *,
    episodes: Sequence[Mapping[str, Any]] = (),
) -> None:
    """Write entries of any kind in one transaction.

    An existing row stays, unless the new one is of a later attempt at the run: after a resumption
    the later attempt's history replaces the earlier one's.

    Args:
        engine: the database.
        rows: entries in any mixture; of two with one key the later attempt's is written.
        episodes: episodes by field name, as they are in the journal, which saves creating entries.

    Raises:
        StoreUnavailableError: if the database is unreachable; nothing was written.
        UnknownRunsError: if an entry belongs to an unknown run; nothing was written.
        StoreConstraintError: if an entry violates a constraint; nothing was written.
    """
    groups: dict[type, list[Any]] = {}
    for row in rows:
        groups.setdefault(type(row), []).append(row)
    if not groups and not episodes:
        return
    run_ids = {row.run_id for group in groups.values() for row in group}
    run_ids.update(episode["run_id"] for episode in episodes)
    with writing(engine) as connection:
        _require_runs(connection, run_ids)
        for kind, table in _TABLES.items():
            values = [_values(row) for row in groups.get(kind, ())]
            if kind is EpisodeEntry:
                values += [_episode_values(episode) for episode in episodes]
            if values:
                upsert(connection, table, values)
        # Ends first: they lock the run's row before the attempt's, like `resume` and `mark_killed`.
        # The other order could deadlock with them.
        for end in groups.get(AttemptEnd, ()):
            _end(connection, end)
        for start in groups.get(AttemptStart, ()):
            _start(connection, start)
        newest = {(row.run_id, row.attempt): row for row in groups.get(Heartbeat, ())}
        for heartbeat in newest.values():
            _beat(connection, heartbeat)


def known_runs(connection: sa.Connection, run_ids: Iterable[str]) -> set[str]:
    """Select the runs that the database has."""
    table = tables.RunRow
    return set(connection.execute(sa.select(table.id).where(table.id.in_(run_ids))).scalars())


def _require_runs(connection: sa.Connection, run_ids: set[str]) -> None:
    """Raise for unknown runs: an UPDATE would ignore them silently."""
    known = known_runs(connection, run_ids)
    unknown = frozenset(run_ids - known)
    if unknown:
        raise UnknownRunsError(
            f"the database {redact(connection.engine.url)} does not have the run "
            f"{', '.join(sorted(unknown)[:3])}; expected the database of this run; name it "
            "with MARIO_DATABASE_URL",
            unknown,
            alone=not known,
        )


def _values(row: Any) -> dict[str, Any]:
    kind = type(row)
    values = {name: _plain(getattr(row, name)) for name in _FIELDS[kind]}
    for name in _JSON_FIELDS.get(kind, ()):
        values[name] = encode_json(values[name])
    return _episode_values(values) if kind is EpisodeEntry else values


def _episode_values(values: Mapping[str, Any]) -> dict[str, Any]:
    at = values["ended_at"]
    return {
        **values,
        "ended_at": datetime.fromisoformat(at) if isinstance(at, str) else at,
        "imported": False,
        "flag": bool(values["flag"]),
        "dying": bool(values["dying"]),
    }


def _plain(value: Any) -> Any:
    """Convert NumPy scalars to Python numbers, as the drivers need them."""
    return value.item() if hasattr(value, "item") else value


def upsert(
    connection: sa.Connection, table: type[tables.Base], values: Sequence[Mapping[str, Any]]
) -> None:
    """Insert rows with an ``attempt``; for an existing key the later attempt's row stays.

    Args:
        connection: inside a write transaction.
        table: a table with a column ``attempt``.
        values: values by column name, the same columns in each.
    """
    key = [column.name for column in sa.inspect(table).primary_key]
    newest: dict[tuple[Any, ...], Mapping[str, Any]] = {}
    for row in values:
        identity = tuple(row[name] for name in key)
        if identity not in newest or newest[identity]["attempt"] <= row["attempt"]:
            newest[identity] = row
    if connection.dialect.name == "postgresql":
        copy_upsert(
            connection,
            tables.Base.metadata.tables[table.__tablename__],
            newest.values(),
            columns=list(values[0]),
            key=key,
            newer="attempt",
        )
        return
    statement = insert_into(connection, table)
    excluded = statement.excluded
    statement = statement.on_conflict_do_update(
        index_elements=key,
        set_={name: excluded[name] for name in values[0] if name not in key},
        where=table.__table__.c.attempt < excluded["attempt"],
    )
    connection.execute(statement, [dict(row) for row in newest.values()])


def _start(connection: sa.Connection, row: AttemptStart) -> None:
    attempt = tables.RunAttemptRow
    connection.execute(
        sa.update(attempt)
        .where(attempt.run_id == row.run_id, attempt.attempt == row.attempt)
        .values(start_steps=row.start_steps)
    )


def _newest_attempt(run_id: str) -> sa.ScalarSelect[int]:
    attempt = tables.RunAttemptRow
    return sa.select(sa.func.max(attempt.attempt)).where(attempt.run_id == run_id).scalar_subquery()


def _beat(connection: sa.Connection, row: Heartbeat) -> None:
    attempt = tables.RunAttemptRow
    connection.execute(
        sa.update(attempt)
        .where(
            attempt.run_id == row.run_id,
            attempt.attempt == row.attempt,
            attempt.heartbeat_at < row.at,
        )
        .values(heartbeat_at=row.at)
    )
    if utc_now() - row.at < timedelta(seconds=SILENCE_SECONDS):
        _revive(connection, row)


def _revive(connection: sa.Connection, row: Heartbeat) -> None:
    """Set a killed attempt to running again: it was only silent, on another machine.

    The journal of a really killed attempt may hold a late heartbeat; on this machine the process
    table decides.
    """
    attempt, run = tables.RunAttemptRow, tables.RunRow
    newest = _newest_attempt(row.run_id)
    killed = connection.execute(
        sa.select(attempt.host, attempt.pid).where(
            attempt.run_id == row.run_id,
            attempt.attempt == row.attempt,
            attempt.attempt == newest,
            attempt.status == RunStatus.KILLED,
            attempt.ended_at < row.at,
        )
    ).one_or_none()
    if killed is None or (killed.host == host_name() and not is_alive(killed.host, killed.pid)):
        return
    connection.execute(
        sa.update(attempt)
        .where(attempt.run_id == row.run_id, attempt.attempt == row.attempt)
        .values(status=RunStatus.RUNNING, ended_at=None)
    )
    connection.execute(
        sa.update(run)
        .where(run.id == row.run_id, run.status == RunStatus.KILLED)
        .values(status=RunStatus.RUNNING, status_reason=None, ended_at=None)
    )


def _end(connection: sa.Connection, row: AttemptEnd) -> None:
    """End an attempt, and its run unless a later attempt began; this may replace ``killed``."""
    attempt, run = tables.RunAttemptRow, tables.RunRow
    newest = _newest_attempt(row.run_id)
    connection.execute(
        sa.update(run)
        .where(
            run.id == row.run_id,
            newest == row.attempt,
            run.status.in_((RunStatus.RUNNING, RunStatus.KILLED)),
        )
        .values(status=row.status, status_reason=row.reason, ended_at=row.at)
    )
    connection.execute(
        sa.update(attempt)
        .where(
            attempt.run_id == row.run_id,
            attempt.attempt == row.attempt,
            attempt.status.in_((RunStatus.RUNNING, RunStatus.KILLED)),
        )
        .values(status=row.status, end_steps=row.end_steps, ended_at=row.at, heartbeat_at=row.at)
    )
