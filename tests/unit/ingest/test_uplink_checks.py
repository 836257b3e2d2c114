"""Every bound on a message from a device, one step inside and one step outside."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from skerry_contract.errors import WireError
from skerry_contract.histogram import encode_counts
from skerry_contract.v1.telemetry_pb2 import (
    CampaignResponse,
    DeviceConditions,
    DriftReport,
    HealthReport,
    HistogramCounts,
    LabelReport,
    UpdateEvent,
    UplinkMessage,
)
from skerry_server.monitoring.uplink_checks import check_body, check_key

LARGEST = 1 << 53


def _drift(**fields: Any) -> UplinkMessage:
    base: dict[str, Any] = {"boot_id": "b", "release_id": "r", "edges_sha256": bytes(32), "window": 1}
    return UplinkMessage(drift=DriftReport(**(base | fields)))


def _label(**fields: Any) -> UplinkMessage:
    base: dict[str, Any] = {"labelled": 3, "correct": 2, "classes": 2, "confusion": [1, 1, 0, 1]}
    return UplinkMessage(label=LabelReport(**(base | fields)))


def _health(**fields: Any) -> UplinkMessage:
    return UplinkMessage(health=HealthReport(**fields))


@pytest.mark.parametrize(
    ("message", "kind"),
    [
        (_drift(), "drift"),
        (_drift(features=[encode_counts([1] * 256)] * 64, predictions=encode_counts([0] * 1024)), "drift"),
        (_drift(rows=LARGEST), "drift"),
        (_health(), "health"),
        (_health(labelled=2, labelled_correct=2, temperature_c=-300.0), "health"),
        (_label(), "label"),
        (_label(classes=0, confusion=[]), "label"),
        (UplinkMessage(update=UpdateEvent(to_state="x" * 64, detail="y" * 100_000)), "update"),
        (UplinkMessage(campaign=CampaignResponse(campaign_id="c", accepted=True)), "campaign"),
    ],
)
def test_what_can_be_used(message: UplinkMessage, kind: str) -> None:
    assert check_body(message) == kind


@pytest.mark.parametrize(
    ("message", "field"),
    [
        (UplinkMessage(), "uplink.body"),
        (_drift(release_id=""), "drift.release_id"),
        (_drift(boot_id="b" * 65), "drift.boot_id"),
        (_drift(boot_id="a\0"), "drift.boot_id"),
        (_drift(edges_sha256=bytes(31)), "drift.edges_sha256"),
        (_drift(rows=LARGEST + 1), "drift.rows"),
        (_drift(window=1 << 63), "drift.window"),
        (_drift(started_unix_ms=-1), "drift.started_unix_ms"),
        (_drift(features=[HistogramCounts()] * 65), "drift.features"),
        (_drift(features=[HistogramCounts(), HistogramCounts(counts=b"\x01" * 257)]), "drift.features[1]"),
        (_drift(features=[HistogramCounts(counts=b"\x80")]), "drift.features[0]"),
        (_drift(latency=HistogramCounts(counts=b"\xff" * 2049)), "drift.latency"),
        (_drift(confidence=HistogramCounts(counts=b"\xff" * 8 + b"\x01")), "drift.confidence"),
        (_drift(predictions=HistogramCounts(counts=b"\x00" * 1025)), "drift.predictions"),
        (_health(labelled=1, labelled_correct=2), "health.labelled_correct"),
        (_health(requests=LARGEST + 1), "health.requests"),
        (_health(period_ms=-1), "health.period_ms"),
        (_health(temperature_c=float("nan")), "health.temperature_c"),
        (_health(temperature_c=float("inf")), "health.temperature_c"),
        (_health(release_id="No Name"), "health.release_id"),
        (_label(correct=4), "label.correct"),
        (_label(classes=1025, confusion=[]), "label.classes"),
        (_label(confusion=[1, 1, 0]), "label.confusion"),
        (_label(confusion=[1, 1, 0, LARGEST + 1]), "label.confusion"),
        (UplinkMessage(update=UpdateEvent(from_state="x" * 65)), "update.from_state"),
        (UplinkMessage(update=UpdateEvent(rollout_id="a b")), "update.rollout_id"),
        (UplinkMessage(campaign=CampaignResponse()), "campaign.campaign_id"),
        (UplinkMessage(campaign=CampaignResponse(campaign_id="c", reason_code="x" * 65)), "campaign.reason_code"),
        (
            UplinkMessage(campaign=CampaignResponse(campaign_id="c", conditions=DeviceConditions(battery_percent=101))),
            "campaign.conditions.battery_percent",
        ),
        (_health(conditions=DeviceConditions(temperature_c=float("nan"))), "health.conditions.temperature_c"),
        (_health(conditions=DeviceConditions(utc_offset_minutes=1_441)), "health.conditions.utc_offset_minutes"),
        (_health(conditions=DeviceConditions(fresh_samples=LARGEST + 1)), "health.conditions.fresh_samples"),
    ],
)
def test_what_can_never_be_used_says_which_field(message: UplinkMessage, field: str) -> None:
    with pytest.raises(WireError) as caught:
        check_body(message)
    assert caught.value.field == field


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"device_id": "d2"}, "uplink.device_id"),
        ({"outbox_id": ""}, "uplink.outbox_id"),
        ({"outbox_id": "../x"}, "uplink.outbox_id"),
        ({"sequence": 0}, "uplink.sequence"),
        ({"sequence": LARGEST + 1}, "uplink.sequence"),
    ],
)
def test_a_message_without_a_usable_key_is_refused(fields: dict[str, Any], field: str) -> None:
    good: dict[str, Any] = {"device_id": "d1", "outbox_id": "o1", "sequence": 1}
    check_key(UplinkMessage(**good), "d1")
    with pytest.raises(WireError) as caught:
        check_key(UplinkMessage(**(good | fields)), "d1")
    assert caught.value.field == field


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=300))
def test_hostile_counts_are_accepted_or_refused_and_nothing_else(data: bytes) -> None:
    message = _drift(features=[HistogramCounts(counts=data)])
    try:
        check_body(message)
    except WireError:
        return
    assert len(data) == 0 or data[-1] < 0x80
