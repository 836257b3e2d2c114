from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class ActivationRanges(_message.Message):
    __slots__ = ("graph_sha256", "parameters_sha256", "rows", "devices", "tensors")
    GRAPH_SHA256_FIELD_NUMBER: _ClassVar[int]
    PARAMETERS_SHA256_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    DEVICES_FIELD_NUMBER: _ClassVar[int]
    TENSORS_FIELD_NUMBER: _ClassVar[int]
    graph_sha256: bytes
    parameters_sha256: bytes
    rows: int
    devices: int
    tensors: _containers.RepeatedCompositeFieldContainer[ActivationRange]
    def __init__(self, graph_sha256: _Optional[bytes] = ..., parameters_sha256: _Optional[bytes] = ..., rows: _Optional[int] = ..., devices: _Optional[int] = ..., tensors: _Optional[_Iterable[_Union[ActivationRange, _Mapping]]] = ...) -> None: ...

class ActivationRange(_message.Message):
    __slots__ = ("name", "minimum", "maximum")
    NAME_FIELD_NUMBER: _ClassVar[int]
    MINIMUM_FIELD_NUMBER: _ClassVar[int]
    MAXIMUM_FIELD_NUMBER: _ClassVar[int]
    name: str
    minimum: float
    maximum: float
    def __init__(self, name: _Optional[str] = ..., minimum: _Optional[float] = ..., maximum: _Optional[float] = ...) -> None: ...
