from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable
from typing import ClassVar as _ClassVar, Optional as _Optional

DESCRIPTOR: _descriptor.FileDescriptor

class ActivateRequest(_message.Message):
    __slots__ = ("slot", "release_id")
    SLOT_FIELD_NUMBER: _ClassVar[int]
    RELEASE_ID_FIELD_NUMBER: _ClassVar[int]
    slot: str
    release_id: str
    def __init__(self, slot: _Optional[str] = ..., release_id: _Optional[str] = ...) -> None: ...

class ServingStatusRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ServingStatus(_message.Message):
    __slots__ = ("release_id", "slot", "variant", "requests", "errors", "release_requests", "release_errors", "latency_p50_us", "latency_p99_us", "labelled", "labelled_correct", "rss_bytes", "http_port", "grpc_port", "backend", "detail", "rung", "ladder_reason", "shed", "late", "isolation", "power_w", "power_mode")
    RELEASE_ID_FIELD_NUMBER: _ClassVar[int]
    SLOT_FIELD_NUMBER: _ClassVar[int]
    VARIANT_FIELD_NUMBER: _ClassVar[int]
    REQUESTS_FIELD_NUMBER: _ClassVar[int]
    ERRORS_FIELD_NUMBER: _ClassVar[int]
    RELEASE_REQUESTS_FIELD_NUMBER: _ClassVar[int]
    RELEASE_ERRORS_FIELD_NUMBER: _ClassVar[int]
    LATENCY_P50_US_FIELD_NUMBER: _ClassVar[int]
    LATENCY_P99_US_FIELD_NUMBER: _ClassVar[int]
    LABELLED_FIELD_NUMBER: _ClassVar[int]
    LABELLED_CORRECT_FIELD_NUMBER: _ClassVar[int]
    RSS_BYTES_FIELD_NUMBER: _ClassVar[int]
    HTTP_PORT_FIELD_NUMBER: _ClassVar[int]
    GRPC_PORT_FIELD_NUMBER: _ClassVar[int]
    BACKEND_FIELD_NUMBER: _ClassVar[int]
    DETAIL_FIELD_NUMBER: _ClassVar[int]
    RUNG_FIELD_NUMBER: _ClassVar[int]
    LADDER_REASON_FIELD_NUMBER: _ClassVar[int]
    SHED_FIELD_NUMBER: _ClassVar[int]
    LATE_FIELD_NUMBER: _ClassVar[int]
    ISOLATION_FIELD_NUMBER: _ClassVar[int]
    POWER_W_FIELD_NUMBER: _ClassVar[int]
    POWER_MODE_FIELD_NUMBER: _ClassVar[int]
    release_id: str
    slot: str
    variant: str
    requests: int
    errors: int
    release_requests: int
    release_errors: int
    latency_p50_us: int
    latency_p99_us: int
    labelled: int
    labelled_correct: int
    rss_bytes: int
    http_port: int
    grpc_port: int
    backend: str
    detail: str
    rung: int
    ladder_reason: str
    shed: int
    late: int
    isolation: _containers.RepeatedScalarFieldContainer[str]
    power_w: float
    power_mode: str
    def __init__(self, release_id: _Optional[str] = ..., slot: _Optional[str] = ..., variant: _Optional[str] = ..., requests: _Optional[int] = ..., errors: _Optional[int] = ..., release_requests: _Optional[int] = ..., release_errors: _Optional[int] = ..., latency_p50_us: _Optional[int] = ..., latency_p99_us: _Optional[int] = ..., labelled: _Optional[int] = ..., labelled_correct: _Optional[int] = ..., rss_bytes: _Optional[int] = ..., http_port: _Optional[int] = ..., grpc_port: _Optional[int] = ..., backend: _Optional[str] = ..., detail: _Optional[str] = ..., rung: _Optional[int] = ..., ladder_reason: _Optional[str] = ..., shed: _Optional[int] = ..., late: _Optional[int] = ..., isolation: _Optional[_Iterable[str]] = ..., power_w: _Optional[float] = ..., power_mode: _Optional[str] = ...) -> None: ...
