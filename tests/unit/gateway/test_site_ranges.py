"""Activation ranges through a gateway: its devices' are merged, and what does not fit does not count."""

from __future__ import annotations

from pathlib import Path

import pytest

from skerry_agent.training.worker import RefusedError
from skerry_contract.calibration import TensorRanges, decode_ranges, encode_ranges
from skerry_contract.campaign import CALIBRATE, CalibrateInstruction, CalibrateReply
from skerry_contract.errors import WireError
from skerry_contract.tensors import encode_bundle
from unit.federation.fakes import Clock, FakeDevice
from unit.federation.ranging import GRAPH, RangingDevice, ranges
from unit.gateway.site_world import CAMPAIGN, MODEL, Site

PARAMETERS = encode_bundle(MODEL)
REFERENCE = encode_ranges(ranges(PARAMETERS, -2.0, 2.0))


def site(folder: Path, troubles: tuple[str, ...], *, quorum: float = 0.5) -> Site:
    devices: list[FakeDevice] = [RangingDevice("a", 1, low=-3.0), RangingDevice("b", 2, high=4.0)]
    devices += [
        RangingDevice(f"d{number}", 10 + number, low=-8.0, high=8.0, trouble=trouble)
        for number, trouble in enumerate(troubles)
    ]
    return Site(folder / "site", devices, Clock(), quorum=quorum)


def ask(made: Site, reference: bytes = REFERENCE) -> TensorRanges:
    instruction = CalibrateInstruction(
        campaign_id=CAMPAIGN,
        round=1,
        task="t",
        train_step_sha256="0" * 64,
        graph_sha256=GRAPH.hex(),
        minimum_samples=2,
        maximum_rows=512,
        deadline_ms=30_000,
        parameters=PARAMETERS,
        reference=reference,
    )
    reply = CalibrateReply.from_fields(made.gateway().handle(CALIBRATE, instruction.to_fields()))
    assert reply.device_id == "gw"
    return decode_ranges(reply.ranges)


def test_the_site_tells_the_merged_ranges_and_how_many_are_behind_them(tmp_path: Path) -> None:
    made = site(tmp_path, ())
    told = ask(made)
    assert told.ranges["hidden"] == (-3.0, 4.0)
    assert (told.devices, told.rows) == (2, 80)
    written = [path for path in made.folder.rglob("*") if path.is_file()]
    assert not any(b"hidden" in path.read_bytes() for path in written)


def test_bad_answers_do_not_count(tmp_path: Path) -> None:
    troubles = ("far", "graph", "parameters", "tensors", "crowd", "rows", "nan", "name", "garbage", "refuse")
    told = ask(site(tmp_path, troubles, quorum=0.1))
    assert told.ranges["hidden"] == (-3.0, 4.0)
    assert told.devices == 2


def test_too_few_devices_and_a_broken_reference_are_refused(tmp_path: Path) -> None:
    made = site(tmp_path, ("far", "refuse"), quorum=0.75)
    with pytest.raises(RefusedError, match="site-quorum: 2 of at least 3 devices answered"):
        ask(made)
    asked = made.asked()
    with pytest.raises(WireError):
        ask(made, reference=b"\xff")
    assert made.asked() == asked
