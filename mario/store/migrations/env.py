"""What Alembic runs for each command; ``mario.store.migrate`` hands it an open connection."""

from __future__ import annotations

from alembic import context

from mario.store.tables import Base


def run() -> None:
    """Run the requested migration inside the transaction that the caller opened."""
    connection = context.config.attributes["connection"]
    context.configure(
        connection=connection,
        target_metadata=Base.metadata,
        # SQLite's data definition is transactional once BEGIN is explicit, as the engine makes it.
        transactional_ddl=True,
        compare_type=True,
    )
    with context.begin_transaction():
        context.run_migrations()


run()
