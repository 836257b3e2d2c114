from skerry_contract.v1 import common_pb2 as _common_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class UpdateStatus(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    UPDATE_STATUS_UNSPECIFIED: _ClassVar[UpdateStatus]
    UPDATE_STATUS_IDLE: _ClassVar[UpdateStatus]
    UPDATE_STATUS_DOWNLOADING: _ClassVar[UpdateStatus]
    UPDATE_STATUS_VERIFYING: _ClassVar[UpdateStatus]
    UPDATE_STATUS_STAGING: _ClassVar[UpdateStatus]
    UPDATE_STATUS_PROVING: _ClassVar[UpdateStatus]
    UPDATE_STATUS_ACTIVATING: _ClassVar[UpdateStatus]
    UPDATE_STATUS_PROBATION: _ClassVar[UpdateStatus]
    UPDATE_STATUS_COMMITTED: _ClassVar[UpdateStatus]
    UPDATE_STATUS_ROLLED_BACK: _ClassVar[UpdateStatus]
    UPDATE_STATUS_QUARANTINED: _ClassVar[UpdateStatus]
    UPDATE_STATUS_NEED: _ClassVar[UpdateStatus]
UPDATE_STATUS_UNSPECIFIED: UpdateStatus
UPDATE_STATUS_IDLE: UpdateStatus
UPDATE_STATUS_DOWNLOADING: UpdateStatus
UPDATE_STATUS_VERIFYING: UpdateStatus
UPDATE_STATUS_STAGING: UpdateStatus
UPDATE_STATUS_PROVING: UpdateStatus
UPDATE_STATUS_ACTIVATING: UpdateStatus
UPDATE_STATUS_PROBATION: UpdateStatus
UPDATE_STATUS_COMMITTED: UpdateStatus
UPDATE_STATUS_ROLLED_BACK: UpdateStatus
UPDATE_STATUS_QUARANTINED: UpdateStatus
UPDATE_STATUS_NEED: UpdateStatus

class DesiredState(_message.Message):
    __slots__ = ("device_id", "sequence", "issued_unix_ms", "release", "rollout_id", "probation_ms", "reporting", "reconnect_spread_ms", "preferred_variants")
    DEVICE_ID_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    ISSUED_UNIX_MS_FIELD_NUMBER: _ClassVar[int]
    RELEASE_FIELD_NUMBER: _ClassVar[int]
    ROLLOUT_ID_FIELD_NUMBER: _ClassVar[int]
    PROBATION_MS_FIELD_NUMBER: _ClassVar[int]
    REPORTING_FIELD_NUMBER: _ClassVar[int]
    RECONNECT_SPREAD_MS_FIELD_NUMBER: _ClassVar[int]
    PREFERRED_VARIANTS_FIELD_NUMBER: _ClassVar[int]
    device_id: str
    sequence: int
    issued_unix_ms: int
    release: _common_pb2.SignedEnvelope
    rollout_id: str
    probation_ms: int
    reporting: ReportingPolicy
    reconnect_spread_ms: int
    preferred_variants: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, device_id: _Optional[str] = ..., sequence: _Optional[int] = ..., issued_unix_ms: _Optional[int] = ..., release: _Optional[_Union[_common_pb2.SignedEnvelope, _Mapping]] = ..., rollout_id: _Optional[str] = ..., probation_ms: _Optional[int] = ..., reporting: _Optional[_Union[ReportingPolicy, _Mapping]] = ..., reconnect_spread_ms: _Optional[int] = ..., preferred_variants: _Optional[_Iterable[str]] = ...) -> None: ...

class ReportingPolicy(_message.Message):
    __slots__ = ("window_requests", "window_ms", "health_period_ms")
    WINDOW_REQUESTS_FIELD_NUMBER: _ClassVar[int]
    WINDOW_MS_FIELD_NUMBER: _ClassVar[int]
    HEALTH_PERIOD_MS_FIELD_NUMBER: _ClassVar[int]
    window_requests: int
    window_ms: int
    health_period_ms: int
    def __init__(self, window_requests: _Optional[int] = ..., window_ms: _Optional[int] = ..., health_period_ms: _Optional[int] = ...) -> None: ...

class ReportedState(_message.Message):
    __slots__ = ("device_id", "boot_id", "revision", "desired_sequence", "active_release", "active_variant", "target_release", "update_status", "update_detail", "rollout_id", "device_class", "agent_version", "flower_node_id", "labelled_samples", "reported_unix_ms", "chunks_done", "chunks_total", "ineligible_reason", "labels", "ineligible_code", "profile_sha256")
    class LabelsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    DEVICE_ID_FIELD_NUMBER: _ClassVar[int]
    BOOT_ID_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    DESIRED_SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    ACTIVE_RELEASE_FIELD_NUMBER: _ClassVar[int]
    ACTIVE_VARIANT_FIELD_NUMBER: _ClassVar[int]
    TARGET_RELEASE_FIELD_NUMBER: _ClassVar[int]
    UPDATE_STATUS_FIELD_NUMBER: _ClassVar[int]
    UPDATE_DETAIL_FIELD_NUMBER: _ClassVar[int]
    ROLLOUT_ID_FIELD_NUMBER: _ClassVar[int]
    DEVICE_CLASS_FIELD_NUMBER: _ClassVar[int]
    AGENT_VERSION_FIELD_NUMBER: _ClassVar[int]
    FLOWER_NODE_ID_FIELD_NUMBER: _ClassVar[int]
    LABELLED_SAMPLES_FIELD_NUMBER: _ClassVar[int]
    REPORTED_UNIX_MS_FIELD_NUMBER: _ClassVar[int]
    CHUNKS_DONE_FIELD_NUMBER: _ClassVar[int]
    CHUNKS_TOTAL_FIELD_NUMBER: _ClassVar[int]
    INELIGIBLE_REASON_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    INELIGIBLE_CODE_FIELD_NUMBER: _ClassVar[int]
    PROFILE_SHA256_FIELD_NUMBER: _ClassVar[int]
    device_id: str
    boot_id: str
    revision: int
    desired_sequence: int
    active_release: str
    active_variant: str
    target_release: str
    update_status: UpdateStatus
    update_detail: str
    rollout_id: str
    device_class: str
    agent_version: str
    flower_node_id: int
    labelled_samples: int
    reported_unix_ms: int
    chunks_done: int
    chunks_total: int
    ineligible_reason: str
    labels: _containers.ScalarMap[str, str]
    ineligible_code: str
    profile_sha256: str
    def __init__(self, device_id: _Optional[str] = ..., boot_id: _Optional[str] = ..., revision: _Optional[int] = ..., desired_sequence: _Optional[int] = ..., active_release: _Optional[str] = ..., active_variant: _Optional[str] = ..., target_release: _Optional[str] = ..., update_status: _Optional[_Union[UpdateStatus, str]] = ..., update_detail: _Optional[str] = ..., rollout_id: _Optional[str] = ..., device_class: _Optional[str] = ..., agent_version: _Optional[str] = ..., flower_node_id: _Optional[int] = ..., labelled_samples: _Optional[int] = ..., reported_unix_ms: _Optional[int] = ..., chunks_done: _Optional[int] = ..., chunks_total: _Optional[int] = ..., ineligible_reason: _Optional[str] = ..., labels: _Optional[_Mapping[str, str]] = ..., ineligible_code: _Optional[str] = ..., profile_sha256: _Optional[str] = ...) -> None: ...

class Presence(_message.Message):
    __slots__ = ("device_id", "online", "boot_id", "since_unix_ms")
    DEVICE_ID_FIELD_NUMBER: _ClassVar[int]
    ONLINE_FIELD_NUMBER: _ClassVar[int]
    BOOT_ID_FIELD_NUMBER: _ClassVar[int]
    SINCE_UNIX_MS_FIELD_NUMBER: _ClassVar[int]
    device_id: str
    online: bool
    boot_id: str
    since_unix_ms: int
    def __init__(self, device_id: _Optional[str] = ..., online: _Optional[bool] = ..., boot_id: _Optional[str] = ..., since_unix_ms: _Optional[int] = ...) -> None: ...
