"""What imported episodes had besides the columns of this system, kept as JSON."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from mario.store.types import json_type

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    """Add the column; this system's own episodes leave it empty."""
    op.add_column("episodes", sa.Column("extra", json_type(), nullable=True))


def downgrade() -> None:
    """Remove the column, and with it what only imported episodes had."""
    op.drop_column("episodes", "extra")
