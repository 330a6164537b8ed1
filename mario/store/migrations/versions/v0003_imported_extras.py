"""Store additional values of imported episodes as JSON."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from mario.store.types import json_type

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    """Add the column; it is NULL for episodes of this system."""
    op.add_column("episodes", sa.Column("extra", json_type(), nullable=True))


def downgrade() -> None:
    """Remove the column and its values."""
    op.drop_column("episodes", "extra")
