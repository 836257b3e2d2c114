from skerry_contract.v1 import fitness_pb2 as _fitness_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class UplinkMessage(_message.Message):
    __slots__ = ("device_id", "outbox_id", "sequence", "created_unix_ms", "drift", "health", "label", "update", "campaign", "fitness")
    DEVICE_ID_FIELD_NUMBER: _ClassVar[int]
    OUTBOX_ID_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    CREATED_UNIX_MS_FIELD_NUMBER: _ClassVar[int]
    DRIFT_FIELD_NUMBER: _ClassVar[int]
    HEALTH_FIELD_NUMBER: _ClassVar[int]
    LABEL_FIELD_NUMBER: _ClassVar[int]
    UPDATE_FIELD_NUMBER: _ClassVar[int]
    CAMPAIGN_FIELD_NUMBER: _ClassVar[int]
    FITNESS_FIELD_NUMBER: _ClassVar[int]
    device_id: str
    outbox_id: str
    sequence: int
    created_unix_ms: int
    drift: DriftReport
    health: HealthReport
    label: LabelReport
    update: UpdateEvent
    campaign: CampaignResponse
    fitness: _fitness_pb2.FitnessCertificate
    def __init__(self, device_id: _Optional[str] = ..., outbox_id: _Optional[str] = ..., sequence: _Optional[int] = ..., created_unix_ms: _Optional[int] = ..., drift: _Optional[_Union[DriftReport, _Mapping]] = ..., health: _Optional[_Union[HealthReport, _Mapping]] = ..., label: _Optional[_Union[LabelReport, _Mapping]] = ..., update: _Optional[_Union[UpdateEvent, _Mapping]] = ..., campaign: _Optional[_Union[CampaignResponse, _Mapping]] = ..., fitness: _Optional[_Union[_fitness_pb2.FitnessCertificate, _Mapping]] = ...) -> None: ...

class UplinkAck(_message.Message):
    __slots__ = ("outbox_id", "sequences")
    OUTBOX_ID_FIELD_NUMBER: _ClassVar[int]
    SEQUENCES_FIELD_NUMBER: _ClassVar[int]
    outbox_id: str
    sequences: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, outbox_id: _Optional[str] = ..., sequences: _Optional[_Iterable[int]] = ...) -> None: ...

class HistogramCounts(_message.Message):
    __slots__ = ("counts",)
    COUNTS_FIELD_NUMBER: _ClassVar[int]
    counts: bytes
    def __init__(self, counts: _Optional[bytes] = ...) -> None: ...

class DriftReport(_message.Message):
    __slots__ = ("boot_id", "window", "release_id", "edges_sha256", "started_unix_ms", "ended_unix_ms", "rows", "missing", "out_of_range", "schema_errors", "features", "predictions", "confidence", "latency", "rung", "variant")
    BOOT_ID_FIELD_NUMBER: _ClassVar[int]
    WINDOW_FIELD_NUMBER: _ClassVar[int]
    RELEASE_ID_FIELD_NUMBER: _ClassVar[int]
    EDGES_SHA256_FIELD_NUMBER: _ClassVar[int]
    STARTED_UNIX_MS_FIELD_NUMBER: _ClassVar[int]
    ENDED_UNIX_MS_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    MISSING_FIELD_NUMBER: _ClassVar[int]
    OUT_OF_RANGE_FIELD_NUMBER: _ClassVar[int]
    SCHEMA_ERRORS_FIELD_NUMBER: _ClassVar[int]
    FEATURES_FIELD_NUMBER: _ClassVar[int]
    PREDICTIONS_FIELD_NUMBER: _ClassVar[int]
    CONFIDENCE_FIELD_NUMBER: _ClassVar[int]
    LATENCY_FIELD_NUMBER: _ClassVar[int]
    RUNG_FIELD_NUMBER: _ClassVar[int]
    VARIANT_FIELD_NUMBER: _ClassVar[int]
    boot_id: str
    window: int
    release_id: str
    edges_sha256: bytes
    started_unix_ms: int
    ended_unix_ms: int
    rows: int
    missing: int
    out_of_range: int
    schema_errors: int
    features: _containers.RepeatedCompositeFieldContainer[HistogramCounts]
    predictions: HistogramCounts
    confidence: HistogramCounts
    latency: HistogramCounts
    rung: int
    variant: str
    def __init__(self, boot_id: _Optional[str] = ..., window: _Optional[int] = ..., release_id: _Optional[str] = ..., edges_sha256: _Optional[bytes] = ..., started_unix_ms: _Optional[int] = ..., ended_unix_ms: _Optional[int] = ..., rows: _Optional[int] = ..., missing: _Optional[int] = ..., out_of_range: _Optional[int] = ..., schema_errors: _Optional[int] = ..., features: _Optional[_Iterable[_Union[HistogramCounts, _Mapping]]] = ..., predictions: _Optional[_Union[HistogramCounts, _Mapping]] = ..., confidence: _Optional[_Union[HistogramCounts, _Mapping]] = ..., latency: _Optional[_Union[HistogramCounts, _Mapping]] = ..., rung: _Optional[int] = ..., variant: _Optional[str] = ...) -> None: ...

class HealthReport(_message.Message):
    __slots__ = ("boot_id", "release_id", "variant", "requests", "errors", "latency_p50_us", "latency_p99_us", "labelled", "labelled_correct", "rss_bytes", "period_ms", "outbox_depth", "temperature_c", "training", "conditions")
    BOOT_ID_FIELD_NUMBER: _ClassVar[int]
    RELEASE_ID_FIELD_NUMBER: _ClassVar[int]
    VARIANT_FIELD_NUMBER: _ClassVar[int]
    REQUESTS_FIELD_NUMBER: _ClassVar[int]
    ERRORS_FIELD_NUMBER: _ClassVar[int]
    LATENCY_P50_US_FIELD_NUMBER: _ClassVar[int]
    LATENCY_P99_US_FIELD_NUMBER: _ClassVar[int]
    LABELLED_FIELD_NUMBER: _ClassVar[int]
    LABELLED_CORRECT_FIELD_NUMBER: _ClassVar[int]
    RSS_BYTES_FIELD_NUMBER: _ClassVar[int]
    PERIOD_MS_FIELD_NUMBER: _ClassVar[int]
    OUTBOX_DEPTH_FIELD_NUMBER: _ClassVar[int]
    TEMPERATURE_C_FIELD_NUMBER: _ClassVar[int]
    TRAINING_FIELD_NUMBER: _ClassVar[int]
    CONDITIONS_FIELD_NUMBER: _ClassVar[int]
    boot_id: str
    release_id: str
    variant: str
    requests: int
    errors: int
    latency_p50_us: int
    latency_p99_us: int
    labelled: int
    labelled_correct: int
    rss_bytes: int
    period_ms: int
    outbox_depth: int
    temperature_c: float
    training: bool
    conditions: DeviceConditions
    def __init__(self, boot_id: _Optional[str] = ..., release_id: _Optional[str] = ..., variant: _Optional[str] = ..., requests: _Optional[int] = ..., errors: _Optional[int] = ..., latency_p50_us: _Optional[int] = ..., latency_p99_us: _Optional[int] = ..., labelled: _Optional[int] = ..., labelled_correct: _Optional[int] = ..., rss_bytes: _Optional[int] = ..., period_ms: _Optional[int] = ..., outbox_depth: _Optional[int] = ..., temperature_c: _Optional[float] = ..., training: _Optional[bool] = ..., conditions: _Optional[_Union[DeviceConditions, _Mapping]] = ...) -> None: ...

class DeviceConditions(_message.Message):
    __slots__ = ("idle", "charging", "battery_percent", "metered", "temperature_c", "latency_p99_us", "fresh_samples", "utc_offset_minutes")
    IDLE_FIELD_NUMBER: _ClassVar[int]
    CHARGING_FIELD_NUMBER: _ClassVar[int]
    BATTERY_PERCENT_FIELD_NUMBER: _ClassVar[int]
    METERED_FIELD_NUMBER: _ClassVar[int]
    TEMPERATURE_C_FIELD_NUMBER: _ClassVar[int]
    LATENCY_P99_US_FIELD_NUMBER: _ClassVar[int]
    FRESH_SAMPLES_FIELD_NUMBER: _ClassVar[int]
    UTC_OFFSET_MINUTES_FIELD_NUMBER: _ClassVar[int]
    idle: bool
    charging: bool
    battery_percent: float
    metered: bool
    temperature_c: float
    latency_p99_us: int
    fresh_samples: int
    utc_offset_minutes: int
    def __init__(self, idle: _Optional[bool] = ..., charging: _Optional[bool] = ..., battery_percent: _Optional[float] = ..., metered: _Optional[bool] = ..., temperature_c: _Optional[float] = ..., latency_p99_us: _Optional[int] = ..., fresh_samples: _Optional[int] = ..., utc_offset_minutes: _Optional[int] = ...) -> None: ...

class LabelReport(_message.Message):
    __slots__ = ("release_id", "labelled", "correct", "confusion", "classes")
    RELEASE_ID_FIELD_NUMBER: _ClassVar[int]
    LABELLED_FIELD_NUMBER: _ClassVar[int]
    CORRECT_FIELD_NUMBER: _ClassVar[int]
    CONFUSION_FIELD_NUMBER: _ClassVar[int]
    CLASSES_FIELD_NUMBER: _ClassVar[int]
    release_id: str
    labelled: int
    correct: int
    confusion: _containers.RepeatedScalarFieldContainer[int]
    classes: int
    def __init__(self, release_id: _Optional[str] = ..., labelled: _Optional[int] = ..., correct: _Optional[int] = ..., confusion: _Optional[_Iterable[int]] = ..., classes: _Optional[int] = ...) -> None: ...

class UpdateEvent(_message.Message):
    __slots__ = ("release_id", "rollout_id", "from_state", "event", "to_state", "detail", "at_unix_ms")
    RELEASE_ID_FIELD_NUMBER: _ClassVar[int]
    ROLLOUT_ID_FIELD_NUMBER: _ClassVar[int]
    FROM_STATE_FIELD_NUMBER: _ClassVar[int]
    EVENT_FIELD_NUMBER: _ClassVar[int]
    TO_STATE_FIELD_NUMBER: _ClassVar[int]
    DETAIL_FIELD_NUMBER: _ClassVar[int]
    AT_UNIX_MS_FIELD_NUMBER: _ClassVar[int]
    release_id: str
    rollout_id: str
    from_state: str
    event: str
    to_state: str
    detail: str
    at_unix_ms: int
    def __init__(self, release_id: _Optional[str] = ..., rollout_id: _Optional[str] = ..., from_state: _Optional[str] = ..., event: _Optional[str] = ..., to_state: _Optional[str] = ..., detail: _Optional[str] = ..., at_unix_ms: _Optional[int] = ...) -> None: ...

class HistogramEdges(_message.Message):
    __slots__ = ("features", "classes", "confidence_edges", "latency_edges", "reference_rows", "reference_predictions")
    FEATURES_FIELD_NUMBER: _ClassVar[int]
    CLASSES_FIELD_NUMBER: _ClassVar[int]
    CONFIDENCE_EDGES_FIELD_NUMBER: _ClassVar[int]
    LATENCY_EDGES_FIELD_NUMBER: _ClassVar[int]
    REFERENCE_ROWS_FIELD_NUMBER: _ClassVar[int]
    REFERENCE_PREDICTIONS_FIELD_NUMBER: _ClassVar[int]
    features: _containers.RepeatedCompositeFieldContainer[FeatureEdges]
    classes: _containers.RepeatedScalarFieldContainer[str]
    confidence_edges: _containers.RepeatedScalarFieldContainer[float]
    latency_edges: _containers.RepeatedScalarFieldContainer[float]
    reference_rows: int
    reference_predictions: HistogramCounts
    def __init__(self, features: _Optional[_Iterable[_Union[FeatureEdges, _Mapping]]] = ..., classes: _Optional[_Iterable[str]] = ..., confidence_edges: _Optional[_Iterable[float]] = ..., latency_edges: _Optional[_Iterable[float]] = ..., reference_rows: _Optional[int] = ..., reference_predictions: _Optional[_Union[HistogramCounts, _Mapping]] = ...) -> None: ...

class FeatureEdges(_message.Message):
    __slots__ = ("name", "edges", "reference")
    NAME_FIELD_NUMBER: _ClassVar[int]
    EDGES_FIELD_NUMBER: _ClassVar[int]
    REFERENCE_FIELD_NUMBER: _ClassVar[int]
    name: str
    edges: _containers.RepeatedScalarFieldContainer[float]
    reference: HistogramCounts
    def __init__(self, name: _Optional[str] = ..., edges: _Optional[_Iterable[float]] = ..., reference: _Optional[_Union[HistogramCounts, _Mapping]] = ...) -> None: ...

class CampaignInvitation(_message.Message):
    __slots__ = ("campaign_id", "task", "release_id", "train_step_sha256", "superlink_address", "minimum_samples", "expires_unix_ms", "gateway_id")
    CAMPAIGN_ID_FIELD_NUMBER: _ClassVar[int]
    TASK_FIELD_NUMBER: _ClassVar[int]
    RELEASE_ID_FIELD_NUMBER: _ClassVar[int]
    TRAIN_STEP_SHA256_FIELD_NUMBER: _ClassVar[int]
    SUPERLINK_ADDRESS_FIELD_NUMBER: _ClassVar[int]
    MINIMUM_SAMPLES_FIELD_NUMBER: _ClassVar[int]
    EXPIRES_UNIX_MS_FIELD_NUMBER: _ClassVar[int]
    GATEWAY_ID_FIELD_NUMBER: _ClassVar[int]
    campaign_id: str
    task: str
    release_id: str
    train_step_sha256: bytes
    superlink_address: str
    minimum_samples: int
    expires_unix_ms: int
    gateway_id: str
    def __init__(self, campaign_id: _Optional[str] = ..., task: _Optional[str] = ..., release_id: _Optional[str] = ..., train_step_sha256: _Optional[bytes] = ..., superlink_address: _Optional[str] = ..., minimum_samples: _Optional[int] = ..., expires_unix_ms: _Optional[int] = ..., gateway_id: _Optional[str] = ...) -> None: ...

class CampaignResponse(_message.Message):
    __slots__ = ("campaign_id", "accepted", "reason", "flower_node_id", "labelled_samples", "reason_code", "conditions")
    CAMPAIGN_ID_FIELD_NUMBER: _ClassVar[int]
    ACCEPTED_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    FLOWER_NODE_ID_FIELD_NUMBER: _ClassVar[int]
    LABELLED_SAMPLES_FIELD_NUMBER: _ClassVar[int]
    REASON_CODE_FIELD_NUMBER: _ClassVar[int]
    CONDITIONS_FIELD_NUMBER: _ClassVar[int]
    campaign_id: str
    accepted: bool
    reason: str
    flower_node_id: int
    labelled_samples: int
    reason_code: str
    conditions: DeviceConditions
    def __init__(self, campaign_id: _Optional[str] = ..., accepted: _Optional[bool] = ..., reason: _Optional[str] = ..., flower_node_id: _Optional[int] = ..., labelled_samples: _Optional[int] = ..., reason_code: _Optional[str] = ..., conditions: _Optional[_Union[DeviceConditions, _Mapping]] = ...) -> None: ...

class Command(_message.Message):
    __slots__ = ("command_id", "expires_unix_ms", "invitation")
    COMMAND_ID_FIELD_NUMBER: _ClassVar[int]
    EXPIRES_UNIX_MS_FIELD_NUMBER: _ClassVar[int]
    INVITATION_FIELD_NUMBER: _ClassVar[int]
    command_id: str
    expires_unix_ms: int
    invitation: CampaignInvitation
    def __init__(self, command_id: _Optional[str] = ..., expires_unix_ms: _Optional[int] = ..., invitation: _Optional[_Union[CampaignInvitation, _Mapping]] = ...) -> None: ...
