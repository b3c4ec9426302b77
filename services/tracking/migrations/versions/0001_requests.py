"""The table of requests.

Indexes are few, since each costs every insert: by time, for ranges and pages, and by address and by page within a time.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Make it."""
    op.create_table(
        "requests",
        sa.Column("id", sa.Text, primary_key=True),
        sa.Column("received_ms", sa.BigInteger, nullable=False),
        sa.Column("occurred_ms", sa.BigInteger, nullable=False),
        sa.Column("url", sa.Text, nullable=False),
        sa.Column("host", sa.Text, nullable=False),
        sa.Column("path", sa.Text, nullable=False),
        sa.Column("ip", sa.Text),
        sa.Column("user_agent", sa.Text),
        sa.Column("browser", sa.Text),
        sa.Column("browser_version", sa.Text),
        sa.Column("os", sa.Text),
        sa.Column("os_version", sa.Text),
        sa.Column("device", sa.Text),
        sa.Column("referrer", sa.Text),
        sa.Column("properties", sa.Text),
    )
    op.create_index("requests_occurred", "requests", ["occurred_ms", "id"])
    op.create_index("requests_received", "requests", ["received_ms", "id"])
    op.create_index("requests_ip", "requests", ["ip", "occurred_ms"])


def downgrade() -> None:
    """Drop it."""
    op.drop_table("requests")
