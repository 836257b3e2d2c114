"""A campaign through gateways has the result of the same devices without them: to 1e-6 of the largest parameter."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import sqlalchemy as sa

from skerry_contract.tensors import encode_bundle
from skerry_server.federation.rounds.journal import RoundRecord
from skerry_server.store.tables import CampaignUpdate
from unit.federation.fakes import FakeDevice
from unit.federation.world import World
from unit.gateway.site_world import GatewayDevice, Site

RANDOM = np.random.default_rng(5)
BASE = {"w": RANDOM.normal(size=(20, 30)).astype(np.float32), "bias": RANDOM.normal(size=7).astype(np.float32)}
#: Name, how far the device moves every parameter, examples, accuracy of the model there.
DEVICES = (("a", 0.31, 11, 0.5), ("b", -1.7, 250, 0.9), ("c", 0.003, 40, 0.25), ("d", 2.2, 3, 1.0), ("e", 0.9, 77, 0.0))


def devices(names: str) -> list[FakeDevice]:
    return [
        FakeDevice(name, 10 + index, adds=adds, examples=examples, accuracy=accuracy)
        for index, (name, adds, examples, accuracy) in enumerate(DEVICES)
        if name in names
    ]


def world(folder: Path, sites: dict[str, str], direct: str, **settings: Any) -> World:
    """A campaign of some devices asked directly and some through gateways."""
    folder.mkdir()
    made = World(folder, devices(direct), quorum=1.0, **settings)
    made.base = encode_bundle(BASE)
    for index, (name, members) in enumerate(sites.items()):
        site = Site(folder / name, devices(members), made.clock)
        worker = site.gateway()
        worker._gateway_id = name
        made.devices.append(GatewayDevice(name, 90 + index, worker=worker))
        made.gateways[name] = tuple(members)
    made.participants = tuple(device.name for device in made.devices)
    return made


def records(made: World) -> list[RoundRecord]:
    made.run().run()
    return made.journal.rounds()


def parameter(made: World, record: RoundRecord, name: str = "w") -> npt.NDArray[np.float64]:
    return np.asarray(made.journal.load(record.parameters_sha256)[name], dtype=np.float64)


@pytest.mark.parametrize("strategy", ["fedavg", "fedavgm", "fedadam"])
def test_two_sites_and_one_device_give_the_model_of_five_devices(tmp_path: Path, strategy: str) -> None:
    settings: dict[str, Any] = {"strategy": strategy, "rounds": 2}
    plain = world(tmp_path / "plain", {}, "abcde", **settings)
    through = world(tmp_path / "sites", {"gw-1": "ab", "gw-2": "de"}, "c", **settings)
    for ours, theirs in zip(records(through), records(plain), strict=True):
        for name in BASE:
            mine, other = parameter(through, ours, name), parameter(plain, theirs, name)
            np.testing.assert_allclose(mine, other, rtol=0, atol=1e-6 * np.abs(other).max())
        assert (ours.accepted, ours.invited) == (5, 5)
        assert ours.metrics["examples"] == theirs.metrics["examples"] == 381
        assert ours.loss == pytest.approx(theirs.loss)
        assert ours.metrics["device_accuracy_before"] == pytest.approx(theirs.metrics["device_accuracy_before"])


def test_a_lossy_wire_goes_on_as_error_feedback_says(tmp_path: Path) -> None:
    # Every device moves by the same amount, so int8 carries the site's difference exactly up to its scale.
    made = world(tmp_path / "sites", {"gw": "abc"}, "de", rounds=3, wire="int8")
    plain = world(tmp_path / "plain", {}, "abcde", rounds=3)
    ours, theirs = records(made)[-1], records(plain)[-1]
    mine, other = parameter(made, ours), parameter(plain, theirs)
    assert np.abs(mine - other).max() < 0.05 * np.abs(other - BASE["w"]).max()
    with made.database.reading() as session:
        wires = {device.wires[-1] for device in made.devices if not isinstance(device, GatewayDevice)}
        assert wires == {("float32", "int8")}
        rows = session.scalars(sa.select(CampaignUpdate).where(CampaignUpdate.device_id == "gw")).all()
    assert [row.metrics["members"] for row in rows] == [["a", "b", "c"]] * 3


def test_devices_that_add_noise_weigh_the_same_through_a_gateway(tmp_path: Path) -> None:
    privacy = {"mode": "local", "noise_multiplier": 0.5, "clip_norm": 5.0, "delta": 1e-5}
    plain = world(tmp_path / "plain", {}, "abcde", privacy=privacy, rounds=2)
    through = world(tmp_path / "sites", {"gw": "abcd"}, "e", privacy=privacy, rounds=2)
    ours, theirs = records(through)[-1], records(plain)[-1]
    mine, other = parameter(through, ours), parameter(plain, theirs)
    np.testing.assert_allclose(mine, other, rtol=0, atol=1e-6 * np.abs(other).max())
    mean = sum(adds for _, adds, _, _ in DEVICES) / 5  # not by examples
    np.testing.assert_allclose(other, BASE["w"] + 2 * mean, rtol=0, atol=1e-5)


def test_a_gateway_cannot_speak_for_devices_of_others(tmp_path: Path) -> None:
    made = world(tmp_path / "sites", {"gw": "abc"}, "de", rounds=1)
    made.gateways = {"gw": ("a", "b")}  # what the control plane knows
    made.settings = made.settings.__class__(**{**made.settings.as_dict(), "quorum": 0.5})
    (record,) = records(made)
    assert record.accepted == 2
    assert "members: expected some of the site's 2 devices, got ['c']" in record.failures["gw"]


def test_a_device_that_claims_members_is_one_device(tmp_path: Path) -> None:
    made = world(tmp_path / "sites", {"gw": "abc"}, "de", rounds=1)
    made.gateways = {}
    (record,) = records(made)
    assert record.accepted == 3
