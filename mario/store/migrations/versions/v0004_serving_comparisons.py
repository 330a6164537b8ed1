"""Store comparisons of a shadow or canary challenger with the champion."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from mario.store.types import UtcDateTime

revision = "0004"
down_revision = "0003"

_COUNTS = (
    "shadow_observations",
    "agreed_observations",
    "dropped_observations",
    "champion_decisions",
    "challenger_decisions",
    "champion_observations",
    "challenger_observations",
)


def upgrade() -> None:
    """Create the table."""
    op.create_table(
        "serving_comparisons",
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("model", sa.String(length=128), nullable=False),
        sa.Column("champion_version", sa.String(length=128), nullable=False),
        sa.Column("champion_digest", sa.String(length=64), nullable=False),
        sa.Column("challenger_version", sa.String(length=128), nullable=False),
        sa.Column("challenger_digest", sa.String(length=64), nullable=False),
        sa.Column("started_at", UtcDateTime(), nullable=False),
        sa.Column("ended_at", UtcDateTime(), nullable=False),
        *(sa.Column(name, sa.BigInteger(), nullable=False) for name in _COUNTS),
        sa.Column("champion_seconds", sa.Double(), nullable=False),
        sa.Column("challenger_seconds", sa.Double(), nullable=False),
        sa.CheckConstraint(
            "agreed_observations <= shadow_observations",
            name=op.f("ck_serving_comparisons_agreed"),
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_serving_comparisons")),
    )
    op.create_index(
        "ix_serving_comparisons_challenger", "serving_comparisons", ["model", "challenger_digest"]
    )


def downgrade() -> None:
    """Remove the table and its rows."""
    op.drop_table("serving_comparisons")
