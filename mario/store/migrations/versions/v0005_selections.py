"""Store the scores on selection seeds, which select a run's best checkpoint."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from mario.store.types import UtcDateTime, json_type

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    """Create the table."""
    op.create_table(
        "selections",
        sa.Column("run_id", sa.String(length=64), nullable=False),
        sa.Column("total_steps", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("score", sa.Double(), nullable=False),
        sa.Column("best_score", sa.Double(), nullable=False),
        sa.Column("is_best", sa.Boolean(), nullable=False),
        sa.Column("details", json_type(), nullable=False),
        sa.Column("seconds", sa.Double(), nullable=False),
        sa.Column("at", UtcDateTime(), nullable=False),
        sa.CheckConstraint("NOT is_best OR score = best_score", name=op.f("ck_selections_is_best")),
        sa.ForeignKeyConstraint(["run_id"], ["runs.id"], name=op.f("fk_selections_run_id")),
        sa.PrimaryKeyConstraint("run_id", "total_steps", name=op.f("pk_selections")),
    )


def downgrade() -> None:
    """Remove the table and its rows."""
    op.drop_table("selections")
