"""A store with releases whose bundles hold real drift edges, and devices that report windows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from integration.rollouts.control_plane import add_release, open_control_plane
from skerry_contract.histogram import build_edges, count_values, edges_digest, encode_counts, parse_edges
from skerry_contract.v1.telemetry_pb2 import DriftReport
from skerry_server.context import ServerContext
from skerry_server.store.tables import Cohort, Device, DriftWindow

NAMES = ("energy", "tilt", "tempo")


def make_edges(seed: int = 0) -> bytes:
    """A drift_edges.pb of three standard normal features and two classes."""
    rng = np.random.default_rng(seed)
    return build_edges(
        {name: rng.normal(0, 1, 3_000) for name in NAMES},
        cells=30,
        classes=["no", "yes"],
        confidence_edges=[0.5, 0.9],
        latency_edges=[100.0, 1_000.0],
        predictions=np.array([1_500, 1_500]),
    ).SerializeToString(deterministic=True)


class DriftWorld:
    """Devices of the task "digits"; windows arrive in the order of the calls."""

    def __init__(self, root: Path, *, devices: int = 4) -> None:
        self.context: ServerContext = open_control_plane(root)
        self.root = root
        self.rng = np.random.default_rng(101)
        self.edges: dict[str, bytes] = {}
        self.devices = [f"d{number}" for number in range(devices)]
        self.window = 0
        with self.context.database.transaction() as session:
            session.add(Cohort(id="all", name="all", selector={}, created_ms=1))
            for name in self.devices:
                session.add(Device(id=name, enrolled_ms=1, online=True, active_release="", update_status="committed"))
        self.release("r1")

    def release(self, release_id: str, *, parent: str = "", edges: bytes | None = None, incident_id: str = "") -> None:
        """Publish a release and let every device run it."""
        data = edges if edges is not None else make_edges()
        folder = self.root / "bundle" / release_id
        folder.mkdir(parents=True)
        (folder / "drift_edges.pb").write_bytes(data)
        (folder / "model_card.md").write_text(release_id)
        self.edges[release_id] = data
        with self.context.database.transaction() as session:
            add_release(
                session,
                release_id,
                sequence=len(self.edges),
                parent=parent,
                bundle_sha256=self.context.artifacts.put_bundle(folder),
                edges_sha256=edges_digest(data).hex(),
                incident_id=incident_id,
            )
            for name in self.devices:
                session.get_one(Device, name).active_release = release_id

    def report(self, device_id: str, release_id: str, *, rows: int = 300, shift: float = 0.0, **changes: Any) -> None:
        """One window of a device: standard normal features, "tilt" shifted; ``changes`` of the report or row."""
        self.window += 1
        data = self.edges[release_id] if release_id in self.edges else make_edges()
        message = DriftReport(
            boot_id="boot",
            window=self.window,
            release_id=release_id,
            rows=rows,
            missing=changes.pop("missing", 0),
            out_of_range=changes.pop("out_of_range", 0),
            schema_errors=changes.pop("schema_errors", 0),
        )
        for feature in parse_edges(data).features:
            values = self.rng.normal(shift if feature.name == "tilt" else 0.0, 1, rows)
            message.features.append(encode_counts(int(n) for n in count_values(values, np.array(feature.edges))))
        yes = int(self.rng.binomial(rows, 0.5))
        message.predictions.CopyFrom(encode_counts([rows - yes, yes]))
        row = {
            "edges_sha256": edges_digest(data).hex(),
            "body": message.SerializeToString(),
            **changes,
        }
        with self.context.database.transaction() as session:
            session.add(
                DriftWindow(
                    device_id=device_id,
                    boot_id="boot",
                    window=self.window,
                    release_id=release_id,
                    started_ms=self.window,
                    ended_ms=self.window + 1,
                    rows=rows,
                    received_ms=self.window,
                    verdict={},
                    **row,
                )
            )

    def round(self, release_id: str = "r1", *, shifts: dict[str, float] | None = None, rows: int = 300) -> None:
        """One window of every device."""
        for name in self.devices:
            self.report(name, release_id, rows=rows, shift=(shifts or {}).get(name, 0.0))

    def verdicts(self, device_id: str) -> list[dict[str, Any]]:
        """Verdicts of a device, in order."""
        with self.context.database.transaction() as session:
            rows = session.query(DriftWindow).filter_by(device_id=device_id).order_by(DriftWindow.id).all()
            return [row.verdict for row in rows]

    def statuses(self, device_id: str) -> list[str]:
        """Statuses of a device's windows, in order; empty text for one that is not judged."""
        return [verdict.get("status", "") for verdict in self.verdicts(device_id)]
