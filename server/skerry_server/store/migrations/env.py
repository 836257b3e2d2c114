"""Run by Alembic. The connection comes from skerry_server.store.migrate; there is no offline mode and no .ini file."""

from __future__ import annotations

from alembic import context

from skerry_server.store.tables import Base

connection = context.config.attributes["connection"]
context.configure(
    connection=connection,
    target_metadata=Base.metadata,
    render_as_batch=True,  # SQLite alters a table by copying it
    compare_type=True,
)
with context.begin_transaction():
    context.run_migrations()
