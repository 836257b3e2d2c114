"""Over how long a fleet spreads its reconnection."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from skerry_agent.link.backoff import reconnect_delay
from skerry_server.config import ServerConfig
from skerry_server.delivery.reconnects import LONGEST_MS, PEAK_PER_S, fleet_spread_ms, spread_ms
from skerry_server.store.database import Database
from skerry_server.store.tables import Base, Device


@pytest.mark.parametrize(
    ("devices", "configured_ms", "expected"),
    [(0, 0, 0), (1, 0, 10), (2_000, 0, 20_000), (10**9, 0, LONGEST_MS), (2_000, 5_000, 5_000)],
)
def test_the_spread_grows_with_the_fleet_unless_the_operator_chose_one(
    devices: int, configured_ms: int, expected: int
) -> None:
    assert spread_ms(devices, configured_ms=configured_ms) == expected


def test_devices_that_wait_as_the_agent_does_stay_below_the_peak() -> None:
    uniform = random.Random(3).uniform
    spread_s = spread_ms(20_000) / 1000
    delays = [reconnect_delay(1, ceiling_s=300, uniform=uniform, spread_s=spread_s) for _ in range(20_000)]
    assert max(Counter(int(delay) for delay in delays).values()) <= PEAK_PER_S


def test_revoked_devices_do_not_come_back() -> None:
    database = Database("sqlite://")
    Base.metadata.create_all(database.engine)
    names = [name for name, field in ServerConfig.model_fields.items() if field.is_required()]
    config = ServerConfig(**dict.fromkeys(names, 1))
    with database.transaction() as session:
        session.add_all(Device(id=f"d{number}", enrolled_ms=0, revoked=number >= 30) for number in range(50))
    with database.reading() as session:
        assert fleet_spread_ms(session, config) == 300
        assert fleet_spread_ms(session, config.model_copy(update={"reconnect_spread_ms": 7_000})) == 7_000
    database.close()
