"""What the store of the control plane holds, read beside the API, to check that nothing was lost or came twice."""

from __future__ import annotations

from pathlib import Path

import sqlalchemy as sa

from skerry_server.store.tables import DriftWindow, Uplink


class StoreReader:
    """Read-only view of the SQLite store of a running control plane."""

    def __init__(self, path: Path) -> None:
        self._engine = sa.create_engine(f"sqlite:///file:{path}?mode=ro&uri=true")

    def close(self) -> None:
        """Give the connection back."""
        self._engine.dispose()

    def windows(self, device_id: str, release_id: str) -> int:
        """Drift windows of a device under a release."""
        query = (
            sa.select(sa.func.count())
            .select_from(DriftWindow)
            .where(DriftWindow.device_id == device_id, DriftWindow.release_id == release_id)
        )
        with self._engine.connect() as connection:
            return int(connection.execute(query).scalar_one())

    def unjudged(self) -> int:
        """Drift windows that no detector has looked at yet."""
        query = sa.select(sa.func.count()).select_from(DriftWindow).where(DriftWindow.judged.is_(False))
        with self._engine.connect() as connection:
            return int(connection.execute(query).scalar_one())

    def uplinks(self, device_id: str) -> dict[str, tuple[int, int, int]]:
        """Messages of a device by outbox: how many, the lowest and the highest number."""
        query = (
            sa.select(Uplink.outbox_id, sa.func.count(), sa.func.min(Uplink.sequence), sa.func.max(Uplink.sequence))
            .where(Uplink.device_id == device_id)
            .group_by(Uplink.outbox_id)
        )
        with self._engine.connect() as connection:
            return {row[0]: (int(row[1]), int(row[2]), int(row[3])) for row in connection.execute(query)}
