from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class DeviceProfile(_message.Message):
    __slots__ = ("device_class", "cpu", "isa", "cores", "memory_bytes", "accelerators", "runtimes", "power_mode")
    class RuntimesEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    DEVICE_CLASS_FIELD_NUMBER: _ClassVar[int]
    CPU_FIELD_NUMBER: _ClassVar[int]
    ISA_FIELD_NUMBER: _ClassVar[int]
    CORES_FIELD_NUMBER: _ClassVar[int]
    MEMORY_BYTES_FIELD_NUMBER: _ClassVar[int]
    ACCELERATORS_FIELD_NUMBER: _ClassVar[int]
    RUNTIMES_FIELD_NUMBER: _ClassVar[int]
    POWER_MODE_FIELD_NUMBER: _ClassVar[int]
    device_class: str
    cpu: str
    isa: _containers.RepeatedScalarFieldContainer[str]
    cores: int
    memory_bytes: int
    accelerators: _containers.RepeatedScalarFieldContainer[str]
    runtimes: _containers.ScalarMap[str, str]
    power_mode: str
    def __init__(self, device_class: _Optional[str] = ..., cpu: _Optional[str] = ..., isa: _Optional[_Iterable[str]] = ..., cores: _Optional[int] = ..., memory_bytes: _Optional[int] = ..., accelerators: _Optional[_Iterable[str]] = ..., runtimes: _Optional[_Mapping[str, str]] = ..., power_mode: _Optional[str] = ...) -> None: ...

class FormFitness(_message.Message):
    __slots__ = ("variant", "backend", "rung", "correct", "p50_us", "p99_us", "worst_difference", "size", "load_us", "chosen", "detail", "tried")
    VARIANT_FIELD_NUMBER: _ClassVar[int]
    BACKEND_FIELD_NUMBER: _ClassVar[int]
    RUNG_FIELD_NUMBER: _ClassVar[int]
    CORRECT_FIELD_NUMBER: _ClassVar[int]
    P50_US_FIELD_NUMBER: _ClassVar[int]
    P99_US_FIELD_NUMBER: _ClassVar[int]
    WORST_DIFFERENCE_FIELD_NUMBER: _ClassVar[int]
    SIZE_FIELD_NUMBER: _ClassVar[int]
    LOAD_US_FIELD_NUMBER: _ClassVar[int]
    CHOSEN_FIELD_NUMBER: _ClassVar[int]
    DETAIL_FIELD_NUMBER: _ClassVar[int]
    TRIED_FIELD_NUMBER: _ClassVar[int]
    variant: str
    backend: str
    rung: int
    correct: bool
    p50_us: float
    p99_us: float
    worst_difference: float
    size: int
    load_us: float
    chosen: bool
    detail: str
    tried: bool
    def __init__(self, variant: _Optional[str] = ..., backend: _Optional[str] = ..., rung: _Optional[int] = ..., correct: _Optional[bool] = ..., p50_us: _Optional[float] = ..., p99_us: _Optional[float] = ..., worst_difference: _Optional[float] = ..., size: _Optional[int] = ..., load_us: _Optional[float] = ..., chosen: _Optional[bool] = ..., detail: _Optional[str] = ..., tried: _Optional[bool] = ...) -> None: ...

class FitnessStatement(_message.Message):
    __slots__ = ("device_id", "release_id", "task", "bundle_sha256", "profile", "measured_unix_ms", "forms")
    DEVICE_ID_FIELD_NUMBER: _ClassVar[int]
    RELEASE_ID_FIELD_NUMBER: _ClassVar[int]
    TASK_FIELD_NUMBER: _ClassVar[int]
    BUNDLE_SHA256_FIELD_NUMBER: _ClassVar[int]
    PROFILE_FIELD_NUMBER: _ClassVar[int]
    MEASURED_UNIX_MS_FIELD_NUMBER: _ClassVar[int]
    FORMS_FIELD_NUMBER: _ClassVar[int]
    device_id: str
    release_id: str
    task: str
    bundle_sha256: bytes
    profile: DeviceProfile
    measured_unix_ms: int
    forms: _containers.RepeatedCompositeFieldContainer[FormFitness]
    def __init__(self, device_id: _Optional[str] = ..., release_id: _Optional[str] = ..., task: _Optional[str] = ..., bundle_sha256: _Optional[bytes] = ..., profile: _Optional[_Union[DeviceProfile, _Mapping]] = ..., measured_unix_ms: _Optional[int] = ..., forms: _Optional[_Iterable[_Union[FormFitness, _Mapping]]] = ...) -> None: ...

class FitnessCertificate(_message.Message):
    __slots__ = ("statement", "certificate", "signature")
    STATEMENT_FIELD_NUMBER: _ClassVar[int]
    CERTIFICATE_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    statement: bytes
    certificate: bytes
    signature: bytes
    def __init__(self, statement: _Optional[bytes] = ..., certificate: _Optional[bytes] = ..., signature: _Optional[bytes] = ...) -> None: ...
