"""The revisions make what tables.py says, on every start, also when two processes start at once."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext

from skerry_server.errors import PlatformError
from skerry_server.store.database import Database
from skerry_server.store.migrate import upgrade, upgrade_database
from skerry_server.store.tables import Base, Campaign, CampaignParticipant, CampaignRound, Candidate, Device, Release


def test_the_newest_revision_is_what_the_tables_say() -> None:
    database = Database("sqlite://")
    upgrade_database(database)
    with database.engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, Base.metadata) == []


def test_an_upgrade_keeps_rows_and_can_be_repeated(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'store.sqlite'}"
    upgrade(url)
    with sqlite3.connect(tmp_path / "store.sqlite") as connection:
        connection.execute("INSERT INTO cohorts VALUES ('all', 'all', '{}', 1)")
    upgrade(url)
    with sqlite3.connect(tmp_path / "store.sqlite") as connection:
        assert connection.execute("SELECT id FROM cohorts").fetchall() == [("all",)]


def test_two_processes_may_upgrade_at_once(tmp_path: Path) -> None:
    program = "import sys; from skerry_server.store.migrate import upgrade; upgrade(sys.argv[1])"
    url = f"sqlite:///{tmp_path / 'store.sqlite'}"
    processes = [subprocess.Popen([sys.executable, "-c", program, url], stderr=subprocess.PIPE) for _ in range(2)]
    for process in processes:
        _, errors = process.communicate(timeout=90)
        assert process.returncode == 0, errors.decode()


def test_a_place_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    with pytest.raises(PlatformError, match="cannot be upgraded"):
        upgrade(f"sqlite:///{tmp_path / 'missing' / 'store.sqlite'}")
    assert list(tmp_path.iterdir()) == []


def test_devices_with_passwords_are_revoked_and_releases_keep_their_order() -> None:
    database = Database("sqlite://")
    upgrade_database(database, "0001")
    with database.engine.begin() as connection:
        before = sa.MetaData()
        before.reflect(connection)
        for table, values in (
            (
                "devices",
                {"id": "d1", "broker_password_hash": "$7$101$AAAA$AAAA", "desired_sequence": 7, "online": True},
            ),
            ("releases", {"id": "digits-2", "task": "digits", "sequence": 2}),
            ("candidates", {"id": "c1", "task": "digits"}),
        ):
            row = {column.name: _anything(column) for column in before.tables[table].columns} | values
            connection.execute(before.tables[table].insert().values(row))
    upgrade_database(database)
    with database.reading() as session:
        device = session.get_one(Device, "d1")
        assert (device.revoked, device.online, device.desired_sequence) == (True, False, 7)
        assert (device.certificate_serial, device.node_public_key, device.certificate_not_after_ms) == ("", "", 0)
        assert session.get_one(Release, "digits-2").approved_version == 2
        assert session.get_one(Candidate, "c1").deltas == {}


def test_campaigns_that_exist_were_approved_by_whoever_made_them() -> None:
    database = Database("sqlite://")
    upgrade_database(database, "0002")
    with database.engine.begin() as connection:
        before = sa.MetaData()
        before.reflect(connection)
        for table, values in (
            ("campaigns", {"id": "c1", "created_by": "ada", "created_ms": 7, "state": "running"}),
            ("campaign_participants", {"campaign_id": "c1", "device_id": "d1", "state": "accepted"}),
            ("campaign_rounds", {"campaign_id": "c1", "number": 1}),
        ):
            row = {column.name: _anything(column) for column in before.tables[table].columns} | values
            connection.execute(before.tables[table].insert().values(row))
    upgrade_database(database)
    with database.reading() as session:
        campaign = session.get_one(Campaign, "c1")
        assert (campaign.state, campaign.approved_by, campaign.approved_ms, campaign.paused_from) == (
            "running", "ada", 7, "",
        )  # fmt: skip
        participant = session.get_one(CampaignParticipant, ("c1", "d1"))
        assert (participant.state, participant.rounds, participant.utility, participant.conditions) == (
            "accepted", 0, -1.0, {},
        )  # fmt: skip
        committed = session.get_one(CampaignRound, ("c1", 1))
        assert (committed.strategy_sha256, committed.privacy, committed.failures) == ("", {}, {})


def _anything(column: sa.Column[Any]) -> object:
    return {} if isinstance(column.type, sa.JSON) else column.type.python_type()
