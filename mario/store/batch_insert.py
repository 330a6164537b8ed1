"""Writing what training leaves behind, in batches, so that writing it again changes nothing."""

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
    """An INSERT that knows ``ON CONFLICT``, in the connection's dialect."""
    if connection.dialect.name == "postgresql":
        return postgresql.insert(table)
    return sqlite.insert(table)


def write_training_rows(
    engine: sa.Engine,
    rows: Iterable[TrainingEntry],
    *,
    episodes: Sequence[Mapping[str, Any]] = (),
) -> None:
    """Write rows of any kind in one transaction.

    A row that is there already is left alone, unless the new one comes from a later attempt of
    the run: after a resume the later attempt's history is the run's history.

    Args:
        engine: the database.
        rows: any mixture; of two rows with one key the later attempt's wins.
        episodes: episodes by field name as the journal has them, which saves making rows of them.

    Raises:
        StoreUnavailableError: if the database does not answer; nothing was written.
        UnknownRunsError: if a row is of a run that is not there; nothing was written.
        StoreConstraintError: if a row contradicts the database; nothing was written.
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
        # Ends first: they take the run's row before the attempt's, as who resumes it or finds it
        # dead does; the other way round the two would wait for each other.
        for end in groups.get(AttemptEnd, ()):
            _end(connection, end)
        for start in groups.get(AttemptStart, ()):
            _start(connection, start)
        for heartbeat in _newest_heartbeats(groups.get(Heartbeat, ())):
            _beat(connection, heartbeat)


def known_runs(connection: sa.Connection, run_ids: Iterable[str]) -> set[str]:
    """Which of these runs the database has."""
    table = tables.RunRow
    return set(connection.execute(sa.select(table.id).where(table.id.in_(run_ids))).scalars())


def _require_runs(connection: sa.Connection, run_ids: set[str]) -> None:
    """Refuse rows of runs that are not there: an UPDATE would pass over them in silence."""
    known = known_runs(connection, run_ids)
    unknown = frozenset(run_ids - known)
    if unknown:
        raise UnknownRunsError(
            f"the database {redact(connection.engine.url)} does not have the run "
            f"{', '.join(sorted(unknown)[:3])}; expected the one that it was begun in; name that "
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
    """NumPy's numbers as Python's: the drivers take no others."""
    return value.item() if hasattr(value, "item") else value


def upsert(
    connection: sa.Connection, table: type[tables.Base], values: Sequence[Mapping[str, Any]]
) -> None:
    """Insert rows that have an ``attempt``; on a key that exists the later attempt stays.

    Args:
        connection: inside a write transaction.
        table: a model with an ``attempt`` column.
        values: column name to value, the same columns in each.
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


def _newest_heartbeats(rows: Sequence[Heartbeat]) -> list[Heartbeat]:
    newest: dict[tuple[str, int], Heartbeat] = {}
    for row in rows:
        newest[row.run_id, row.attempt] = row
    return list(newest.values())


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
    """Take back that an attempt was killed: it was silent, on a machine that nobody could ask.

    The journal of one that was killed may hold a late sign of life; on this machine its process is
    asked for.
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
    """End an attempt, and the run if no later attempt has begun; a killed one may still say how."""
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
