"""Approval and pauses of campaigns, why devices stay out, what a round carries on to the next.

Revision 0003, after 0002. Campaigns that exist were approved when they were made, by whoever made them.
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

#: Table to the columns that it gets, with the value of the rows that exist.
COLUMNS: dict[str, tuple[tuple[str, sa.types.TypeEngine[Any], str], ...]] = {
    "devices": (
        ("ineligible_code", sa.String(), ""),
        ("conditions", sa.JSON(), "{}"),
        ("conditions_ms", sa.BigInteger(), "0"),
        ("participations", sa.BigInteger(), "0"),
        ("last_participation_ms", sa.BigInteger(), "0"),
    ),
    "campaigns": (
        ("approved_by", sa.String(), ""),
        ("approved_ms", sa.BigInteger(), "0"),
        ("paused_from", sa.String(), ""),
    ),
    "campaign_participants": (
        ("reason_code", sa.String(), ""),
        ("conditions", sa.JSON(), "{}"),
        ("rounds", sa.BigInteger(), "0"),
        ("last_round", sa.BigInteger(), "0"),
        ("last_selected", sa.BigInteger(), "0"),
        ("utility", sa.Double(), "-1"),
        ("seconds", sa.Double(), "-1"),
    ),
    "campaign_rounds": (
        ("strategy_sha256", sa.String(), ""),
        ("privacy", sa.JSON(), "{}"),
        ("failures", sa.JSON(), "{}"),
    ),
}


def upgrade() -> None:
    for table, columns in COLUMNS.items():
        with op.batch_alter_table(table, schema=None) as batch_op:
            for name, kind, default in columns:
                batch_op.add_column(sa.Column(name, kind, nullable=False, server_default=default))
    op.execute("UPDATE campaigns SET approved_by = created_by, approved_ms = created_ms")


def downgrade() -> None:
    op.execute("UPDATE campaigns SET state = 'aborted' WHERE state IN ('draft', 'paused')")
    op.execute("DELETE FROM campaign_participants WHERE state = 'excluded'")
    for table, columns in COLUMNS.items():
        with op.batch_alter_table(table, schema=None) as batch_op:
            for name, _, _ in columns:
                batch_op.drop_column(name)
