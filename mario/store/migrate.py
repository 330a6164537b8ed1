"""Upgrade, downgrade and check the database's schema, each in one transaction."""

from __future__ import annotations

from pathlib import Path

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from alembic.util.exc import CommandError

from mario.errors import StoreError
from mario.store.engine import make_engine, reading, redact, sqlite_path, writing

# Key of the advisory lock; any constant that every process shares.
_POSTGRES_LOCK = 0x6D6172696F  # "mario"


def _config(connection: sa.Connection | None = None) -> Config:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    config.attributes["connection"] = connection
    return config


def head_revision() -> str:
    """Return the schema revision of this package."""
    head = ScriptDirectory.from_config(_config()).get_current_head()
    if head is None:
        raise StoreError("the package holds no migrations; expected at least one; reinstall it")
    return head


def current_revision(engine: sa.Engine) -> str | None:
    """Return the database's revision; None if it has no tables of the store.

    Raises:
        StoreError: if the database is unreachable.
    """
    with reading(engine) as connection:
        return MigrationContext.configure(connection).get_current_revision()


def upgrade(url: str, revision: str = "head") -> str:
    """Upgrade a database to a revision; create a missing SQLite file.

    Concurrent upgrades are safe: the second waits and finds nothing to do.

    Args:
        url: database URL.
        revision: Alembic revision, ``head`` for the newest.

    Returns:
        The database's new revision.

    Raises:
        StoreError: if the database is unreachable, or newer than this package.
    """
    return _migrate(url, revision, down=False)


def downgrade(url: str, revision: str) -> str | None:
    """Downgrade a database to a revision; ``base`` removes every table and all data.

    Raises:
        StoreError: if the database is unreachable, or the revision unknown.
    """
    return _migrate(url, revision, down=True) or None


def _migrate(url: str, revision: str, *, down: bool) -> str:
    engine = make_engine(url)
    _make_sqlite_folder(url)
    try:
        with writing(engine) as connection:
            if connection.dialect.name == "postgresql":
                connection.execute(
                    sa.text("SELECT pg_advisory_xact_lock(:key)"), {"key": _POSTGRES_LOCK}
                )
            current = MigrationContext.configure(connection).get_current_revision()
            if not down and revision == "head" and current == head_revision():
                # Alembic's commands use globals of the process, and MLflow may migrate its own
                # database in another thread.
                return current or ""
            config = _config(connection)
            (command.downgrade if down else command.upgrade)(config, revision)
            return MigrationContext.configure(connection).get_current_revision() or ""
    except CommandError as error:
        raise StoreError(
            f"cannot bring {redact(url)} to revision {revision!r} ({error}); expected a revision "
            "of this package: a database written by a newer version needs that newer version"
        ) from error
    finally:
        engine.dispose()


def _make_sqlite_folder(url: str) -> None:
    path = sqlite_path(url)
    if path is None:
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(
            f"cannot create the folder of {redact(url)} ({error.strerror}); name a database in a "
            "folder that can be written, with MARIO_DATABASE_URL"
        ) from error


def require_current(engine: sa.Engine) -> None:
    """Check that a database is at this package's revision.

    Raises:
        StoreError: if it is not.
    """
    current, head = current_revision(engine), head_revision()
    if current != head:
        raise StoreError(
            f"the database {redact(engine.url)} is at revision {current or 'none'}; expected "
            f"{head}; run `mario store upgrade`"
        )
