"""Bringing a database to the newest revision of the tables.

On SQLite a whole upgrade is one transaction that starts with ``BEGIN IMMEDIATE``: a second process that upgrades at
the same time waits and then finds nothing to do, and a kill half way leaves the old revision.
"""

from __future__ import annotations

from pathlib import Path

from alembic import command
from alembic.config import Config
from sqlalchemy.exc import OperationalError

from skerry_server.errors import PlatformError
from skerry_server.store.database import Database

_SCRIPTS = Path(__file__).with_name("migrations")


def upgrade(database_url: str) -> None:
    """Upgrade the database at ``database_url`` (SQLAlchemy URL) to the newest revision.

    Raises:
        PlatformError: It cannot be opened or written.
    """
    database = Database(database_url)
    try:
        upgrade_database(database)
    except OperationalError as error:
        raise PlatformError(
            f"the database {database.engine.url.render_as_string()} cannot be upgraded ({error.orig})",
            remedy="check that the server is reachable, the folder writable and the disk not full",
        ) from error
    finally:
        database.close()


def upgrade_database(database: Database, revision: str = "head") -> None:
    """Upgrade an open database; also for a database in memory."""
    with database.engine.begin() as connection:
        config = Config()
        config.set_main_option("script_location", str(_SCRIPTS).replace("%", "%%"))
        config.attributes["connection"] = connection
        command.upgrade(config, revision)
