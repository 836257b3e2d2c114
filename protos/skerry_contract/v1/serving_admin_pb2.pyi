from skerry_contract.v1 import agent_local_pb2 as _agent_local_pb2
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class AdminRequest(_message.Message):
    __slots__ = ("activate", "status")
    ACTIVATE_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    activate: _agent_local_pb2.ActivateRequest
    status: _agent_local_pb2.ServingStatusRequest
    def __init__(self, activate: _Optional[_Union[_agent_local_pb2.ActivateRequest, _Mapping]] = ..., status: _Optional[_Union[_agent_local_pb2.ServingStatusRequest, _Mapping]] = ...) -> None: ...

class AdminReply(_message.Message):
    __slots__ = ("code", "detail", "status")
    class Code(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        CODE_OK: _ClassVar[AdminReply.Code]
        CODE_INVALID_ARGUMENT: _ClassVar[AdminReply.Code]
        CODE_FAILED_PRECONDITION: _ClassVar[AdminReply.Code]
        CODE_UNAVAILABLE: _ClassVar[AdminReply.Code]
    CODE_OK: AdminReply.Code
    CODE_INVALID_ARGUMENT: AdminReply.Code
    CODE_FAILED_PRECONDITION: AdminReply.Code
    CODE_UNAVAILABLE: AdminReply.Code
    CODE_FIELD_NUMBER: _ClassVar[int]
    DETAIL_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    code: AdminReply.Code
    detail: str
    status: _agent_local_pb2.ServingStatus
    def __init__(self, code: _Optional[_Union[AdminReply.Code, str]] = ..., detail: _Optional[str] = ..., status: _Optional[_Union[_agent_local_pb2.ServingStatus, _Mapping]] = ...) -> None: ...
