"""Insert many rows into PostgreSQL with COPY, and with an upsert where keys exist already.

COPY reads a stream, while every INSERT is planned and answered separately
(https://www.postgresql.org/docs/18/populate.html, "Use COPY"). COPY has no ``ON CONFLICT``: if a
key exists already (a resumed run, a replay), the rows go through a temporary table, which each
connection creates once and which every commit empties.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from operator import itemgetter
from typing import Any

import sqlalchemy as sa
from sqlalchemy import exc as sa_exc

from mario.store.engine import StoreConstraintError
from mario.store.types import UInt64

# https://www.postgresql.org/docs/18/sql-copy.html, "Text Format"
_ESCAPES = str.maketrans({"\\": "\\\\", "\t": "\\t", "\n": "\\n", "\r": "\\r"})


def copy_upsert(
    connection: sa.Connection,
    table: sa.Table,
    rows: Iterable[Mapping[str, Any]],
    *,
    columns: Sequence[str],
    key: Sequence[str],
    newer: str,
) -> None:
    """Insert rows; where the key exists, a row with a greater ``newer`` replaces the stored one.

    Args:
        connection: to PostgreSQL, inside a write transaction.
        table: the target.
        rows: values by column name; no two with the same key.
        columns: the given columns; the others become NULL.
        key: names of the primary key's columns.
        newer: the column that decides between two rows with one key.

    Raises:
        StoreConstraintError: if a value does not fit its column's type.
        sqlalchemy.exc.DBAPIError: if the driver fails.
    """
    given = list(rows)
    text = _copy_text(table, given, columns)
    if not _probably_exist(connection, table, given, key):
        try:
            with connection.begin_nested():
                _copy(connection, f"COPY {table.name} ({', '.join(columns)}) FROM STDIN", text)
            return
        except sa_exc.IntegrityError as error:
            if getattr(error.orig, "pgcode", None) != _UNIQUE_VIOLATION:
                raise
            text.seek(0)
    stage, names = f"mario_stage_{table.name}", ", ".join(columns)
    rest = [name for name in columns if name not in key]
    changes = ", ".join(f"{name} = excluded.{name}" for name in rest)
    connection.exec_driver_sql(
        f"CREATE TEMPORARY TABLE IF NOT EXISTS {stage} (LIKE {table.name}) ON COMMIT DELETE ROWS"
    )
    _copy(connection, f"COPY {stage} ({names}) FROM STDIN", text)
    connection.exec_driver_sql(
        # Table and column names come from `tables`, never from a user.
        f"INSERT INTO {table.name} ({names}) SELECT {names} FROM {stage} "  # noqa: S608
        f"ON CONFLICT ({', '.join(key)}) DO UPDATE SET {changes} "
        f"WHERE {table.name}.{newer} < excluded.{newer}"
    )
    connection.exec_driver_sql(f"DELETE FROM {stage}")  # noqa: S608


def _probably_exist(
    connection: sa.Connection,
    table: sa.Table,
    rows: Sequence[Mapping[str, Any]],
    key: Sequence[str],
) -> bool:
    """Guess from the first and the last row whether the rows exist already."""
    keys = [tuple(row[name] for name in key) for row in (rows[0], rows[-1])]
    columns = sa.tuple_(*(table.c[name] for name in key))
    found = connection.execute(sa.select(sa.literal(1)).where(columns.in_(keys)).limit(1))
    return found.first() is not None


def _copy_text(
    table: sa.Table, rows: Sequence[Mapping[str, Any]], columns: Sequence[str]
) -> io.StringIO:
    """Write rows in COPY's text format."""
    pick = itemgetter(*columns)
    special = [(index, writer) for index, name in enumerate(columns)
               if (writer := _writer(table.c[name])) is not _text]  # fmt: skip
    lines = []
    try:
        for row in rows:
            values = pick(row)
            # Most values are numbers; this line dominates the cost of writing an episode.
            cells = [str(v) if type(v) in _NUMBERS else _text(v) for v in values]
            for index, writer in special:
                cells[index] = writer(values[index])
            lines.append("\t".join(cells))
    except (TypeError, ValueError) as error:
        raise StoreConstraintError(f"{table.name} cannot hold a row: {error}") from error
    lines.append("")
    return io.StringIO("\n".join(lines))


def _copy(connection: sa.Connection, statement: str, text: io.StringIO) -> None:
    driver: Any = connection.dialect.loaded_dbapi
    try:
        raw = connection.connection.driver_connection
        assert raw is not None
        with raw.cursor() as cursor:
            cursor.copy_expert(statement, text)
    except driver.Error as error:
        # COPY bypasses SQLAlchemy's cursor, so its error translation is called here.
        raise sa_exc.DBAPIError.instance(
            statement,
            None,
            error,
            driver.Error,
            connection_invalidated=bool(raw is not None and raw.closed),
            dialect=connection.dialect,
        ) from error


def _writer(column: sa.Column[Any]) -> Callable[[Any], str]:
    """Return the function that writes a column's values in COPY's text format."""
    if isinstance(column.type, UInt64):
        fold = column.type.process_bind_param
        return lambda value: _NULL if value is None else str(fold(value, _NO_DIALECT))
    if isinstance(column.type, sa.JSON):
        return lambda value: _NULL if value is None else json.dumps(value).translate(_ESCAPES)
    return _text


_NULL = "\\N"
# https://www.postgresql.org/docs/18/errcodes-appendix.html
_UNIQUE_VIOLATION = "23505"
_NUMBERS = frozenset({int, float, bool})
_NO_DIALECT: Any = None


def _text(value: Any) -> str:
    if type(value) in _NUMBERS:  # first, because most columns are numbers
        return str(value)
    if value is None:
        return _NULL
    if isinstance(value, str):
        return value.translate(_ESCAPES)
    if isinstance(value, datetime):
        if value.tzinfo is None:
            raise ValueError(f"got the naive time {value!r}; expected one with a time zone")
        return value.isoformat()
    return str(value)
