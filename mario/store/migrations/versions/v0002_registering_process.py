"""Store host and process of a registration, to recognise a killed one."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Add the columns; older rows have no process and count as dead."""
    op.add_column("registered_versions", sa.Column("host", sa.String(256), nullable=True))
    op.add_column("registered_versions", sa.Column("pid", sa.BigInteger(), nullable=True))


def downgrade() -> None:
    """Remove the columns."""
    op.drop_column("registered_versions", "pid")
    op.drop_column("registered_versions", "host")
