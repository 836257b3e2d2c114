"""Certificates instead of broker passwords, approval of releases, deltas.

Revision 0002, after 0001. Devices that were enrolled with a password have no identity any more: they count as revoked
and are enrolled again with a fresh token; their rows stay. Releases keep their order: each is approved under its
sequence.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "revoked_certificates",
        sa.Column("serial", sa.String(), nullable=False),
        sa.Column("device_id", sa.String(), nullable=False),
        sa.Column("revoked_ms", sa.BigInteger(), nullable=False),
        sa.Column("not_after_ms", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("serial", name=op.f("pk_revoked_certificates")),
    )
    with op.batch_alter_table("devices", schema=None) as batch_op:
        batch_op.add_column(sa.Column("certificate_serial", sa.String(), nullable=False, server_default=""))
        batch_op.add_column(sa.Column("certificate_previous_serial", sa.String(), nullable=False, server_default=""))
        batch_op.add_column(sa.Column("certificate_not_after_ms", sa.BigInteger(), nullable=False, server_default="0"))
        batch_op.add_column(sa.Column("node_public_key", sa.String(), nullable=False, server_default=""))
        batch_op.drop_column("broker_password_hash")
    op.execute("UPDATE devices SET revoked = true, online = false")
    with op.batch_alter_table("releases", schema=None) as batch_op:
        batch_op.add_column(sa.Column("approved_version", sa.BigInteger(), nullable=False, server_default="0"))
    op.execute("UPDATE releases SET approved_version = sequence")
    with op.batch_alter_table("candidates", schema=None) as batch_op:
        batch_op.add_column(sa.Column("deltas", sa.JSON(), nullable=False, server_default="{}"))


def downgrade() -> None:
    with op.batch_alter_table("candidates", schema=None) as batch_op:
        batch_op.drop_column("deltas")
    with op.batch_alter_table("releases", schema=None) as batch_op:
        batch_op.drop_column("approved_version")
    with op.batch_alter_table("devices", schema=None) as batch_op:
        batch_op.add_column(sa.Column("broker_password_hash", sa.String(), nullable=False, server_default=""))
        batch_op.drop_column("node_public_key")
        batch_op.drop_column("certificate_not_after_ms")
        batch_op.drop_column("certificate_previous_serial")
        batch_op.drop_column("certificate_serial")
    op.drop_table("revoked_certificates")
