"""Open SQLite or PostgreSQL, with the same transactions and the same errors.

SQLite is opened with write-ahead logging, foreign keys on and a busy timeout, and with explicit
``BEGIN`` statements, because the driver's own transactions neither cover data definition nor take
the write lock before the first write (https://docs.sqlalchemy.org/en/21/dialects/sqlite.html,
"Serializable isolation / Savepoints / Transactional DDL"). A write transaction on SQLite starts
with ``BEGIN IMMEDIATE``, so two of them never read the same "before".
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy import exc as sa_exc

from mario.errors import StoreError

SQLITE_BUSY_TIMEOUT_SECONDS = 30.0
POSTGRES_CONNECT_TIMEOUT_SECONDS = 5
WRITE_OPTION = "mario_write"
_SUPPORTED = "sqlite:///PATH or postgresql+psycopg2://USER:PASSWORD@HOST:PORT/NAME"
# Driver messages of an outage, as opposed to an invalid statement.
_OUTAGE_MARKERS = (
    "could not connect",
    "connection refused",
    "connection to server",
    "server closed the connection",
    "terminating connection",
    "connection already closed",
    "the database system is",
    "could not translate host",
    "timeout expired",
    "database is locked",
    "unable to open database file",
    "disk i/o error",
    "database or disk is full",
    "no space left",
)


class StoreUnavailableError(StoreError):
    """The database is unreachable now; the same call may succeed later."""


class StoreConstraintError(StoreError):
    """The database refused a row that violates a constraint."""


class UnknownRunsError(StoreConstraintError):
    """Rows belong to runs that are not in this database, which may be the wrong one.

    Attributes:
        run_ids: the unknown runs.
        alone: whether every row belongs to an unknown run.
    """

    def __init__(self, message: str, run_ids: frozenset[str], *, alone: bool) -> None:
        super().__init__(message)
        self.run_ids = run_ids
        self.alone = alone


def redact(url: str | sa.URL) -> str:
    """Return a database URL without its password, for messages and logs."""
    try:
        return sa.make_url(url).render_as_string(hide_password=True)
    except sa_exc.ArgumentError:
        return "<unreadable database URL>"


def parse_url(url: str) -> sa.URL:
    """Parse a database URL; refuse databases that the store does not support.

    Args:
        url: ``sqlite:///runs/mario.db`` or ``postgresql+psycopg2://user:password@host:port/name``.

    Raises:
        StoreError: if the text is no URL, or names another database or driver.
    """
    try:
        parsed = sa.make_url(url)
    except sa_exc.ArgumentError as error:
        raise StoreError(
            f"the database URL cannot be read; expected {_SUPPORTED}; check MARIO_DATABASE_URL"
        ) from error
    if parsed.drivername in ("sqlite", "sqlite+pysqlite"):
        if not parsed.database or parsed.database == ":memory:":
            raise StoreError(
                f"got the database URL {redact(parsed)}, which is lost when the process ends; "
                "expected a file: write sqlite:///runs/mario.db"
            )
        return parsed
    if parsed.drivername == "postgresql+psycopg2":
        return parsed
    raise StoreError(
        f"got a database URL for {parsed.drivername!r} ({redact(parsed)}); expected {_SUPPORTED}"
    )


def sqlite_path(url: str | sa.URL) -> Path | None:
    """Return the file behind a SQLite URL, or None for a server."""
    parsed = sa.make_url(url)
    if parsed.get_backend_name() != "sqlite" or parsed.database is None:
        return None
    return Path(parsed.database)


def make_engine(url: str) -> sa.Engine:
    """Create the engine for a database URL without connecting.

    Raises:
        StoreError: as ``parse_url``.
    """
    parsed = parse_url(url)
    if parsed.get_backend_name() == "sqlite":
        engine = sa.create_engine(
            parsed, connect_args={"timeout": SQLITE_BUSY_TIMEOUT_SECONDS}, pool_size=5
        )
        sa.event.listen(engine, "connect", _prepare_sqlite_connection)
        sa.event.listen(engine, "begin", _begin_sqlite)
        return engine
    return sa.create_engine(
        parsed,
        connect_args={
            "connect_timeout": POSTGRES_CONNECT_TIMEOUT_SECONDS,
            "application_name": "mario",
            # A broken connection must fail before the kernel's default of two hours.
            "keepalives_idle": 10,
            "keepalives_interval": 5,
            "keepalives_count": 3,
        },
        pool_pre_ping=True,
        pool_size=5,
    )


def _prepare_sqlite_connection(connection: Any, _record: object) -> None:
    connection.isolation_level = None  # _begin_sqlite begins the transactions
    cursor = connection.cursor()
    cursor.execute(f"PRAGMA busy_timeout={int(SQLITE_BUSY_TIMEOUT_SECONDS * 1000)}")
    cursor.execute("PRAGMA journal_mode=WAL")
    # Commits must survive a power cut, because the journal deletes committed rows. With
    # write-ahead logging, NORMAL keeps the file intact but may lose the last commits.
    cursor.execute("PRAGMA synchronous=FULL")
    cursor.execute("PRAGMA foreign_keys=ON")
    # Otherwise INSERT OR REPLACE would bypass the delete triggers of append-only tables.
    cursor.execute("PRAGMA recursive_triggers=ON")
    cursor.close()


def _begin_sqlite(connection: sa.Connection) -> None:
    write = connection.get_execution_options().get(WRITE_OPTION, False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if write else "BEGIN")


@contextmanager
def reading(engine: sa.Engine) -> Iterator[sa.Connection]:
    """Open a connection for reading; driver errors become ``StoreError``."""
    with translated(engine.url), engine.connect() as connection:
        yield connection


@contextmanager
def writing(engine: sa.Engine) -> Iterator[sa.Connection]:
    """Open a write transaction: committed at the end, rolled back on an exception.

    On SQLite it holds the write lock from its start.
    """
    with (
        translated(engine.url),
        engine.connect().execution_options(**{WRITE_OPTION: True}) as connection,
        connection.begin(),
    ):
        yield connection


@contextmanager
def translated(url: str | sa.URL) -> Iterator[None]:
    """Turn driver exceptions into ``StoreError`` with a one-line message."""
    try:
        yield
    except sa_exc.DBAPIError as error:
        raise explain(error, url) from error
    except sa_exc.StatementError as error:
        # The column's type refused the value before it reached the driver.
        raise StoreConstraintError(
            f"the database {redact(url)} cannot hold a row: {error.orig}"
        ) from error
    except sa_exc.TimeoutError as error:
        raise StoreUnavailableError(
            f"no free connection to {redact(url)}; expected one within 30 s; "
            "run fewer processes, or enlarge the server's connection pool"
        ) from error


# Words of a driver's message (lower case, all of them occur), and the message for a person.
_EXPLANATIONS: tuple[tuple[tuple[str, ...], str], ...] = (
    (("no such table",), "the database {0} lacks the store's tables ({1}); {upgrade}"),
    (("relation", "does not exist"), "the database {0} lacks the store's tables ({1}); {upgrade}"),
    (("file is not a database",), "{0} is not a SQLite database ({1}); move it away or {other}"),
    (("malformed",), "{0} is a damaged SQLite database ({1}); restore it or {other}"),
    (("readonly database",), "{0} may not be written ({1}); check who owns it, or {other}"),
    (("permission denied",), "{0} may not be used ({1}); check the user's rights, or {other}"),
    (("password authentication failed",), "{0} refused the log-in ({1}); correct it, or {other}"),
    (("no password supplied",), "{0} wants a password ({1}); put it into the URL, or {other}"),
    (("role", "does not exist"), "{0} does not know this user ({1}); create it, or {other}"),
    (
        ("database", "does not exist"),
        "the server of {0} has no such database ({1}); create it, then {upgrade}",
    ),
)
_UPGRADE = "run `mario store upgrade`"
_OTHER = "name another database with MARIO_DATABASE_URL"


def explain(error: sa_exc.DBAPIError, url: str | sa.URL) -> StoreError:
    """Translate a driver error: unreachable, refused by a constraint, or another failure."""
    where, reason = redact(url), _first_line(error)
    lowered = str(error.orig).lower()
    if isinstance(error, sa_exc.IntegrityError | sa_exc.DataError):
        return StoreConstraintError(f"the database {where} refused a row: {reason}")
    for marks, text in _EXPLANATIONS:
        if all(mark in lowered for mark in marks):
            return StoreError(text.format(where, reason, upgrade=_UPGRADE, other=_OTHER))
    outage = error.connection_invalidated or any(mark in lowered for mark in _OUTAGE_MARKERS)
    if outage or isinstance(error, sa_exc.OperationalError | sa_exc.InterfaceError):
        return StoreUnavailableError(
            f"cannot reach the database {where} ({reason}); start it, or {_OTHER}"
        )
    return StoreError(f"the database {where} failed: {reason}; see the database's own log")


def _first_line(error: sa_exc.DBAPIError) -> str:
    text = str(error.orig).strip() or type(error.orig).__name__
    return text.splitlines()[0].strip()


def encode_json(value: Any) -> Any:
    """Convert a value to JSON types that both databases accept; non-finite floats become text.

    Python's encoder writes ``NaN`` and ``Infinity``, which PostgreSQL refuses.
    """
    if isinstance(value, float) and not math.isfinite(value):
        return "nan" if math.isnan(value) else ("inf" if value > 0 else "-inf")
    if isinstance(value, dict):
        return {str(key): encode_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [encode_json(item) for item in value]
    return value
