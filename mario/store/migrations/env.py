"""Alembic's environment; ``mario.store.migrate`` passes an open connection."""

from __future__ import annotations

from alembic import context

from mario.store.tables import Base


def run() -> None:
    """Run the requested migration inside the transaction that the caller opened."""
    connection = context.config.attributes["connection"]
    context.configure(
        connection=connection,
        target_metadata=Base.metadata,
        # SQLite's data definition is transactional because the engine sends an explicit BEGIN.
        transactional_ddl=True,
        compare_type=True,
    )
    with context.begin_transaction():
        context.run_migrations()


run()
