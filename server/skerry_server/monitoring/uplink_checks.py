"""Whether a message from a device can ever be used. Pure; every bound is checked before anything is stored.

Counts are checked to be well-formed varints of a bounded number of cells. Whether the cells are those of the release's
edges is the detector's to say, for the release may be unknown here.
"""

from __future__ import annotations

from skerry_contract.errors import WireError
from skerry_contract.fitness import read_statement
from skerry_contract.histogram import decode_counts
from skerry_contract.identifiers import check_name
from skerry_contract.limits import CELL_COUNT, CLASSES, FEATURES, HISTOGRAM_CELLS
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

#: Longest identifier of a boot, a variant or a state (characters).
WORD = 64
#: Numbers of DeviceConditions with what they can be.
_CONDITION_BOUNDS: tuple[tuple[str, float, float], ...] = (
    ("battery_percent", 0.0, 100.0),
    ("temperature_c", -300.0, 1000.0),
    ("latency_p99_us", 0, CELL_COUNT),
    ("fresh_samples", 0, CELL_COUNT),
    ("utc_offset_minutes", -1_440, 1_440),
)


def check_key(message: UplinkMessage, device_id: str) -> None:
    """Pass if the message has a key by which it can be recorded and acknowledged.

    Raises:
        WireError: Another device than ``device_id``, no usable outbox, or a sequence out of bounds.
    """
    if message.device_id != device_id:
        raise WireError("uplink.device_id", expected=f"{device_id}, whose topic it is", got=message.device_id)
    check_name(message.outbox_id, field="uplink.outbox_id")
    if not 1 <= message.sequence <= CELL_COUNT:
        raise WireError("uplink.sequence", expected=f"1 to {CELL_COUNT}", got=message.sequence)


def check_body(message: UplinkMessage) -> str:
    """Pass if the body can be stored; returns which one it is.

    Raises:
        WireError: No body, or one with a field out of bounds. It can never be used, however often it is sent.
    """
    kind = message.WhichOneof("body")
    match kind:
        case "drift":
            _check_drift(message.drift)
        case "health":
            _check_health(message.health)
        case "label":
            _check_label(message.label)
        case "update":
            _check_update(message.update)
        case "campaign":
            _check_campaign(message.campaign)
        case "fitness":
            read_statement(message.fitness)
        case _:
            known = "drift, health, label, update, campaign or fitness"
            raise WireError("uplink.body", expected=known, got="none of them")
    return str(kind)


def _check_drift(report: DriftReport) -> None:
    _word(report.boot_id, "drift.boot_id")
    _word(report.variant, "drift.variant")
    check_name(report.release_id, field="drift.release_id")
    if len(report.edges_sha256) != 32:
        raise WireError("drift.edges_sha256", expected="32 bytes", got=f"{len(report.edges_sha256)} bytes")
    _numbers(report, "drift", "window", "rows", "missing", "out_of_range", "schema_errors")
    _moments(report, "drift", "started_unix_ms", "ended_unix_ms")
    if len(report.features) > FEATURES:
        raise WireError("drift.features", expected=f"at most {FEATURES}", got=len(report.features))
    for index, counts in enumerate(report.features):
        _counts(counts, f"drift.features[{index}]", most=HISTOGRAM_CELLS)
    _counts(report.predictions, "drift.predictions", most=CLASSES)
    _counts(report.confidence, "drift.confidence", most=HISTOGRAM_CELLS)
    _counts(report.latency, "drift.latency", most=HISTOGRAM_CELLS)


def _check_health(report: HealthReport) -> None:
    _word(report.boot_id, "health.boot_id")
    _word(report.variant, "health.variant")
    _optional_name(report.release_id, "health.release_id")
    _numbers(
        report,
        "health",
        "requests",
        "errors",
        "latency_p50_us",
        "latency_p99_us",
        "labelled",
        "labelled_correct",
        "rss_bytes",
        "outbox_depth",
    )
    _moments(report, "health", "period_ms")
    _at_most(report.labelled_correct, report.labelled, "health.labelled_correct", "health.labelled")
    if not -300.0 <= report.temperature_c <= 1000.0:  # also refuses NaN
        raise WireError("health.temperature_c", expected="-300 to 1000", got=report.temperature_c)
    _conditions(report.conditions, "health.conditions")


def _check_label(report: LabelReport) -> None:
    _optional_name(report.release_id, "label.release_id")
    _numbers(report, "label", "labelled", "correct")
    _at_most(report.correct, report.labelled, "label.correct", "label.labelled")
    if report.classes > CLASSES:
        raise WireError("label.classes", expected=f"at most {CLASSES}", got=report.classes)
    if len(report.confusion) != report.classes**2:
        raise WireError("label.confusion", expected=f"{report.classes**2} counts", got=len(report.confusion))
    if any(count > CELL_COUNT for count in report.confusion):
        raise WireError("label.confusion", expected=f"counts up to {CELL_COUNT}", got=max(report.confusion))


def _check_update(event: UpdateEvent) -> None:
    _optional_name(event.release_id, "update.release_id")
    _optional_name(event.rollout_id, "update.rollout_id")
    for field, value in (("from_state", event.from_state), ("event", event.event), ("to_state", event.to_state)):
        _word(value, f"update.{field}")
    _moments(event, "update", "at_unix_ms")


def _check_campaign(response: CampaignResponse) -> None:
    check_name(response.campaign_id, field="campaign.campaign_id")
    _numbers(response, "campaign", "labelled_samples")
    _word(response.reason_code, "campaign.reason_code")
    _conditions(response.conditions, "campaign.conditions")


def _conditions(conditions: DeviceConditions, name: str) -> None:
    for field, lowest, highest in _CONDITION_BOUNDS:
        value = getattr(conditions, field)
        if conditions.HasField(field) and not lowest <= value <= highest:  # also refuses NaN
            raise WireError(f"{name}.{field}", expected=f"{lowest:g} to {highest:g}", got=value)


def _word(value: str, field: str) -> None:
    if len(value) > WORD or (value and not value.isprintable()):
        raise WireError(field, expected=f"at most {WORD} printable characters", got=value)


def _optional_name(value: str, field: str) -> None:
    if value:
        check_name(value, field=field)


def _numbers(message: DriftReport | HealthReport | LabelReport | CampaignResponse, name: str, *fields: str) -> None:
    for field in fields:
        value: int = getattr(message, field)
        if value > CELL_COUNT:
            raise WireError(f"{name}.{field}", expected=f"at most {CELL_COUNT}", got=value)


def _moments(message: DriftReport | HealthReport | UpdateEvent, name: str, *fields: str) -> None:
    for field in fields:
        value: int = getattr(message, field)
        if not 0 <= value <= CELL_COUNT:
            raise WireError(f"{name}.{field}", expected=f"0 to {CELL_COUNT}", got=value)


def _at_most(value: int, limit: int, field: str, whose: str) -> None:
    if value > limit:
        raise WireError(field, expected=f"at most {whose}, {limit}", got=value)


def _counts(message: HistogramCounts, field: str, *, most: int) -> None:
    data = message.counts
    if len(data) > most * 8:
        raise WireError(field, expected=f"at most {most * 8} bytes", got=f"{len(data)} bytes")
    cells = sum(byte < 0x80 for byte in data)
    if cells > most:
        raise WireError(field, expected=f"at most {most} cells", got=f"{cells} cells")
    decode_counts(message, cells=cells, field=field)
