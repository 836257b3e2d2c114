"""Campaigns whose devices calibrate the result: merging, bad answers, quorums, kills."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from skerry_contract.calibration import decode_ranges
from skerry_contract.campaign import CALIBRATE, EVALUATE
from skerry_models.task import CampaignDefaults
from skerry_server.errors import InvalidRequestError
from skerry_server.federation.exchange import Reply
from skerry_server.federation.rounds.calibration_source import CalibrationSource
from skerry_server.federation.settings import load_settings, parse_settings
from unit.federation.fakes import Clock, FakeDevice
from unit.federation.ranging import KnownReference, RangingDevice
from unit.federation.world import KilledError, World

DEFAULTS = CampaignDefaults(rounds=3, local_epochs=1, batch_size=8, learning_rate=0.1, proximal_mu=0.0)
BAD = ("far", "graph", "parameters", "tensors", "crowd", "rows", "nan", "name", "garbage", "refuse", "old")


def fleet(trouble: str = "") -> list[FakeDevice]:
    return [
        RangingDevice("a", 1, low=-3.0, high=1.0, delay_s=0.1),
        RangingDevice("b", 2, low=-1.0, high=4.0, delay_s=0.2),
        RangingDevice("c", 3, low=-8.0, high=8.0, delay_s=0.3, trouble=trouble),
    ]


def world(folder: Path, devices: list[FakeDevice], **settings: Any) -> World:
    made = World(folder, devices, rounds=1, calibration="federated", **settings)
    made.calibration = CalibrationSource(KnownReference(), folder / "calibration.json", made.artifacts.put_bytes)
    return made


def merged(made: World, outcome: dict[str, Any]) -> tuple[float, float]:
    return decode_ranges(made.artifacts.get_bytes(outcome["ranges_sha256"])).ranges["hidden"]


def kinds(made: World) -> list[str]:
    return [broadcast.kind for broadcast in made.exchanges[-1].broadcasts]


def test_the_ranges_of_all_devices_are_merged_in_any_order(tmp_path: Path) -> None:
    digests = set()
    for number, order in enumerate([(0.1, 0.2, 0.3), (0.3, 0.2, 0.1)]):
        (folder := tmp_path / str(number)).mkdir()
        devices = fleet()
        for device, delay_s in zip(devices, order, strict=True):
            device.delay_s = delay_s
        made = world(folder, devices)
        result = made.run().run()
        assert merged(made, result.calibration) == (-8.0, 8.0)
        assert (result.calibration["source"], result.calibration["devices"]) == ("devices", 3)
        assert (result.calibration["rows"], result.calibration["reason"]) == (120, "")
        digests.add(result.calibration["ranges_sha256"])
    assert len(digests) == 1
    # The last question is still the measurement after which devices forget the campaign.
    assert kinds(made)[-2:] == [CALIBRATE, EVALUATE]
    asked = made.exchanges[-1].broadcasts[-2].fields
    assert asked["parameters"] == made.artifacts.get_bytes(result.best.parameters_sha256)
    assert asked["minimum_samples"] == 20


def test_bad_answers_do_not_count_and_the_others_do(tmp_path: Path) -> None:
    bad = [RangingDevice(f"d{i}", 10 + i, low=-8.0, high=8.0, trouble=trouble) for i, trouble in enumerate(BAD)]
    made = world(tmp_path, [*fleet()[:2], *bad], quorum=0.1)
    result = made.run().run()
    assert merged(made, result.calibration) == (-3.0, 4.0)
    assert (result.calibration["devices"], result.calibration["rows"]) == (2, 80)


@pytest.mark.parametrize(("trouble", "reason"), [("far", "beyond 4 times"), ("old", "not known here")])
def test_below_the_quorum_the_result_is_calibrated_centrally(tmp_path: Path, trouble: str, reason: str) -> None:
    made = world(tmp_path, fleet(trouble), quorum=1.0)
    outcome = made.run().run().calibration
    assert (outcome["source"], outcome["devices"], outcome["ranges_sha256"]) == ("central", 0, "")
    assert outcome["reason"].startswith("2 of at least 3 devices answered")
    assert reason in outcome["reason"]
    assert not (tmp_path / "calibration.json").exists()
    stored = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert stored
    assert not any(b"hidden" in path.read_bytes() for path in stored)  # what two devices told is nowhere


def test_the_ranges_of_one_device_are_not_used(tmp_path: Path) -> None:
    devices = fleet("refuse")
    devices[0].trouble = "refuse"  # type: ignore[attr-defined]  # a RangingDevice
    outcome = world(tmp_path, devices, quorum=0.3).run().run().calibration
    assert outcome["source"] == "central"
    assert outcome["reason"] == "1 device answered, and its ranges alone would stand in the release"


def test_a_gateway_may_tell_of_as_many_devices_as_it_has(tmp_path: Path) -> None:
    for number, (members, devices) in enumerate(((("x", "y"), 4), (("x",), 2))):
        (folder := tmp_path / str(number)).mkdir()
        made = world(folder, fleet("crowd"))
        made.gateways = {"c": members}
        assert made.run().run().calibration["devices"] == devices


def test_without_the_graph_nobody_is_asked(tmp_path: Path) -> None:
    made = world(tmp_path, fleet())
    made.calibration = CalibrationSource(None, tmp_path / "calibration.json", made.artifacts.put_bytes)
    assert made.run().run().calibration["reason"] == "the base release has no calibrate.onnx"
    assert CALIBRATE not in kinds(made)
    made.calibration = None
    assert made.run().run().calibration == {}


class Killer(RangingDevice):
    """The campaign's process dies when it answers a kind of question."""

    dies_at = ""

    def answer(self, broadcast: Any, fault: str) -> Reply | None:
        if broadcast.kind == self.dies_at and broadcast.fields.get("last", 1):
            raise KilledError
        return super().answer(broadcast, fault)


@pytest.mark.parametrize("dies_at", [CALIBRATE, EVALUATE])
def test_a_kill_before_the_merge_asks_again_and_after_it_does_not(tmp_path: Path, dies_at: str) -> None:
    killer = Killer("c", 3, low=-8.0, high=8.0)
    devices: list[FakeDevice] = [*fleet()[:2], killer]
    made = world(tmp_path, devices)
    killer.dies_at = dies_at
    with pytest.raises(KilledError):
        made.run().run()
    killer.dies_at = ""
    result = made.run().run()
    assert merged(made, result.calibration) == (-8.0, 8.0)
    assert (CALIBRATE in kinds(made)) == (dies_at == CALIBRATE)
    assert len(made.journal.rounds()) == 1


@pytest.mark.parametrize("content", ["", "[]", '{"parameters_sha256": 1}', "other"])
def test_what_was_kept_for_another_model_or_is_damaged_is_not_used(tmp_path: Path, content: str) -> None:
    made = world(tmp_path, fleet())
    outcome = {"source": "devices", "devices": 9, "rows": 9, "ranges_sha256": "0" * 64, "reason": ""}
    other = json.dumps({"parameters_sha256": "1" * 64, "outcome": outcome})
    (tmp_path / "calibration.json").write_text(other if content == "other" else content)
    assert made.run().run().calibration["devices"] == 3


@pytest.mark.parametrize(
    "others",
    [
        {"secure_aggregation": True},
        {"privacy": {"mode": "central", "noise_multiplier": 1.0}},
        {"privacy": {"mode": "local", "noise_multiplier": 1.0}},
    ],
)
def test_exact_extremes_are_not_asked_for_where_updates_are_hidden(others: dict[str, Any]) -> None:
    assert parse_settings(DEFAULTS, others).calibration == "central"
    with pytest.raises(InvalidRequestError, match=r"settings\.calibration: expected central with"):
        parse_settings(DEFAULTS, {"calibration": "federated", **others})


def test_the_setting_has_two_words_and_old_documents_load() -> None:
    assert parse_settings(DEFAULTS, {"calibration": "federated"}).calibration == "federated"
    with pytest.raises(InvalidRequestError, match=r"settings\.calibration: expected one of central, federated"):
        parse_settings(DEFAULTS, {"calibration": "devices"})
    old = {name: value for name, value in parse_settings(DEFAULTS, {}).as_dict().items() if name != "calibration"}
    assert load_settings(old).calibration == "central"


def test_the_clock_of_a_silent_fleet_runs_out(tmp_path: Path) -> None:
    made = world(tmp_path, fleet(), round_deadline_ms=30_000)
    for device in made.devices[:2]:
        device.faults.extend(["", "", "silent", "silent", "silent"])  # training, evaluation, then nothing
    started = (clock := made.clock)()
    assert isinstance(clock, Clock)
    outcome = made.run().run().calibration
    assert outcome["source"] == "central"
    assert clock() - started < 4 * 30 + 5
