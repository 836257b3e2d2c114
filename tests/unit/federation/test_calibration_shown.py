"""From the campaign's job to its candidate's job, and what people see of the calibration."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from skerry_models.task import Dataset
from skerry_server.api import campaign_views
from skerry_server.cli.commands.campaigns import _CAMPAIGN_DETAILS
from skerry_server.context import ServerContext
from skerry_server.federation.controller import CampaignController
from skerry_server.federation.rounds.calibration_source import CalibrationOutcome, OnnxReference
from skerry_server.federation.service import job_id
from skerry_server.releases.candidate_calibration import PAYLOAD
from skerry_server.releases.service import candidate_job_id
from skerry_server.store.tables import Campaign, Job
from unit.agent_training.linear_graphs import BIAS, WEIGHT, linear_graphs, with_ranges
from unit.federation.campaign_store import answer, broker, campaign, context, controller, finish_job, start

__all__ = ["broker", "context", "controller"]

DEVICES = CalibrationOutcome("devices", devices=12, rows=480, ranges_sha256="ab" * 32).as_dict()
CENTRAL = CalibrationOutcome("central", reason="1 of at least 2 devices answered").as_dict()


@pytest.mark.parametrize("outcome", [DEVICES, CENTRAL, {}])
def test_the_candidates_job_gets_the_outcome(
    context: ServerContext, controller: CampaignController, outcome: dict[str, Any]
) -> None:
    campaign_id = start(context, settings={"rounds": 2, "calibration": "federated"})
    controller.step()
    answer(context, campaign_id, a="accepted", b="accepted", c="accepted")
    controller.step()
    finish_job(context, campaign_id)
    with context.database.transaction() as session:
        job = session.get_one(Job, job_id(campaign_id))
        job.result = {**job.result, "calibration": outcome}
    controller.step()
    made = campaign(context, campaign_id).candidate_id
    with context.database.reading() as session:
        payload = session.get_one(Job, candidate_job_id(made)).payload
    assert payload == {"candidate_id": made, **({PAYLOAD: outcome} if outcome else {})}


@pytest.mark.parametrize(
    ("told", "line"),
    [
        (DEVICES, "INT8 ranges of 480 rows on 12 devices"),
        (CENTRAL, "central: 1 of at least 2 devices answered"),
        ({}, ""),
    ],
)
def test_one_line_of_campaign_show(context: ServerContext, told: dict[str, Any], line: str) -> None:
    campaign_id = start(context)
    with context.database.reading() as session:
        row = session.get_one(Campaign, campaign_id)
        document = campaign_views.campaign(row, [], progress={"calibration": told}).model_dump()
    assert _CAMPAIGN_DETAILS["calibration"](document) == line
    assert "ranges_sha256" not in (document["calibration"] or {})


def test_the_control_planes_own_ranges_by_hand(tmp_path: Path) -> None:
    graph = with_ranges(linear_graphs().evaluate, ("rows", "scores"))
    rows = np.outer(np.arange(1100), [1, -1]).astype(np.float32)
    reference = OnnxReference(graph, Dataset(rows, np.zeros(1100, np.int64)))
    state = {WEIGHT: np.array([[1, 0], [0, -2]], np.float32), BIAS: np.array([0.5, 0], np.float32)}
    told = reference(state)
    # Every third row, up to (1098, -1098).
    assert told.ranges == {"rows": (-1098, 1098), "scores": (0, 2196)}
    assert (told.rows, told.devices, told.graph_sha256) == (367, 1, reference.graph_sha256)
    with pytest.raises(ValueError, match="empty"):
        OnnxReference(graph, Dataset(rows[:0], np.zeros(0, np.int64)))
