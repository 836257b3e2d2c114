"""The database: tables, sessions, migrations."""

from skerry_server.store.database import Database

__all__ = ["Database"]
