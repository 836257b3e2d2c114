"""Windows that a device's own parameters answered carry no predictions, and nobody calls that a drift."""

from __future__ import annotations

from pathlib import Path

import pytest

from integration.monitoring.drift_world import DriftWorld
from skerry_contract.histogram import encode_counts
from skerry_contract.v1.telemetry_pb2 import DriftReport
from skerry_server.monitoring.controller import DriftController
from skerry_server.store.tables import DriftWindow


def predict(world: DriftWorld, counts: list[int]) -> None:
    """The newest window predicted so."""
    with world.context.database.transaction() as session:
        row = session.query(DriftWindow).order_by(DriftWindow.id.desc()).limit(1).one()
        report = DriftReport.FromString(row.body)
        report.predictions.CopyFrom(encode_counts(counts))
        row.body = report.SerializeToString()


@pytest.mark.parametrize("order", ["signed-own-signed", "own-signed"])
def test_changes_of_the_form_are_no_drift(tmp_path: Path, order: str) -> None:
    world = DriftWorld(tmp_path / "plane", devices=1)
    for form in order.split("-"):
        for _ in range(5):
            world.report("d0", "r1")
            predict(world, [0, 0] if form == "own" else [150, 150])
    DriftController(world.context).step()
    flagged = [verdict.get("predictions", {}).get("flagged", False) for verdict in world.verdicts("d0")]
    assert not any(flagged), world.verdicts("d0")
    assert "drift" not in world.statuses("d0")
    forms = [form for form in order.split("-") for _ in range(5)]
    compared = ["predictions" in verdict for verdict in world.verdicts("d0")]
    assert not any(said for said, form in zip(compared, forms, strict=True) if form == "own")
    assert compared[-1] == (order == "signed-own-signed")


def test_a_change_of_the_releases_own_predictions_still_is(tmp_path: Path) -> None:
    world = DriftWorld(tmp_path / "plane", devices=1)
    for counts in ([150, 150], [150, 150], [0, 0], [20, 280], [20, 280]):
        world.report("d0", "r1")
        predict(world, counts)
    DriftController(world.context).step()
    assert world.statuses("d0")[2] == "ok"
    assert world.verdicts("d0")[-1]["predictions"]["flagged"]
