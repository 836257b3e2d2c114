"""Over how long devices spread their reconnection, so that a broker that comes back is not stormed.

A TLS handshake with a client certificate costs the broker about 2 ms of one core. Devices wait for a uniform time in 0
to the spread, so they arrive as a Poisson process of :data:`DEVICES_PER_S`; a device that was downloading comes with
two connections. Hardly any second has more than :data:`PEAK_PER_S` then.
"""

from __future__ import annotations

import math

import sqlalchemy as sa
from sqlalchemy.orm import Session

from skerry_server.config import ServerConfig
from skerry_server.store.tables import Device

#: Devices that come back per second on average, and connections that no second should exceed.
DEVICES_PER_S = 100
PEAK_PER_S = 200
#: Longest spread (ms).
LONGEST_MS = 3_600_000


def spread_ms(devices: int, *, configured_ms: int = 0) -> int:
    """The spread for a number of devices (milliseconds).

    Args:
        devices: How many may come back at once.
        configured_ms: What the operator wants; 0: choose.

    >>> spread_ms(3), spread_ms(2_000), spread_ms(2_000, configured_ms=60_000)
    (30, 20000, 60000)
    """
    return configured_ms or min(LONGEST_MS, math.ceil(devices * 1000 / DEVICES_PER_S))


def fleet_spread_ms(session: Session, config: ServerConfig) -> int:
    """The spread for the devices of the store (milliseconds)."""
    devices = session.scalar(sa.select(sa.func.count()).select_from(Device).where(Device.revoked.is_(False)))
    return spread_ms(int(devices or 0), configured_ms=config.reconnect_spread_ms)
