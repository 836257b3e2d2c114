"""Gateways of sites, and through which of them a device takes part in a campaign.

Revision 0004, after 0003.
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

#: Table to the columns that it gets, with the value of the rows that exist.
COLUMNS: dict[str, tuple[tuple[str, sa.types.TypeEngine[Any], str], ...]] = {
    "devices": (("kind", sa.String(), "device"), ("site_report", sa.JSON(), "{}")),
    "campaign_participants": (("gateway_id", sa.String(), ""),),
}


def upgrade() -> None:
    for table, columns in COLUMNS.items():
        with op.batch_alter_table(table, schema=None) as batch_op:
            for name, kind, default in columns:
                batch_op.add_column(sa.Column(name, kind, nullable=False, server_default=default))


def downgrade() -> None:
    op.execute("DELETE FROM devices WHERE kind = 'gateway'")
    for table, columns in COLUMNS.items():
        with op.batch_alter_table(table, schema=None) as batch_op:
            for name, _, _ in columns:
                batch_op.drop_column(name)
