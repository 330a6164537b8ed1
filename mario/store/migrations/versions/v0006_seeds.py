"""Store seeds reserved for runs before their start."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from mario.store.types import UInt64, UtcDateTime

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    """Create the table."""
    op.create_table(
        "seed_reservations",
        sa.Column("run_id", sa.String(length=64), nullable=False),
        sa.Column("task", sa.String(length=128), nullable=False),
        sa.Column("seed", UInt64(), nullable=False),
        sa.Column("at", UtcDateTime(), nullable=False),
        sa.PrimaryKeyConstraint("run_id", name=op.f("pk_seed_reservations")),
        sa.UniqueConstraint("task", "seed", name=op.f("uq_seed_reservations_task_seed")),
    )


def downgrade() -> None:
    """Remove the table; started runs keep their seeds in their configuration."""
    op.drop_table("seed_reservations")
