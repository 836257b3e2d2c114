from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Optional as _Optional

DESCRIPTOR: _descriptor.FileDescriptor

class ChunkRequest(_message.Message):
    __slots__ = ("device_id", "file_sha256", "missing_bitmap", "chunk_count", "window", "chunk_bytes", "quiet_ms")
    DEVICE_ID_FIELD_NUMBER: _ClassVar[int]
    FILE_SHA256_FIELD_NUMBER: _ClassVar[int]
    MISSING_BITMAP_FIELD_NUMBER: _ClassVar[int]
    CHUNK_COUNT_FIELD_NUMBER: _ClassVar[int]
    WINDOW_FIELD_NUMBER: _ClassVar[int]
    CHUNK_BYTES_FIELD_NUMBER: _ClassVar[int]
    QUIET_MS_FIELD_NUMBER: _ClassVar[int]
    device_id: str
    file_sha256: bytes
    missing_bitmap: bytes
    chunk_count: int
    window: int
    chunk_bytes: int
    quiet_ms: int
    def __init__(self, device_id: _Optional[str] = ..., file_sha256: _Optional[bytes] = ..., missing_bitmap: _Optional[bytes] = ..., chunk_count: _Optional[int] = ..., window: _Optional[int] = ..., chunk_bytes: _Optional[int] = ..., quiet_ms: _Optional[int] = ...) -> None: ...

class Chunk(_message.Message):
    __slots__ = ("file_sha256", "index", "data", "sha256", "report_below", "report_every")
    FILE_SHA256_FIELD_NUMBER: _ClassVar[int]
    INDEX_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    SHA256_FIELD_NUMBER: _ClassVar[int]
    REPORT_BELOW_FIELD_NUMBER: _ClassVar[int]
    REPORT_EVERY_FIELD_NUMBER: _ClassVar[int]
    file_sha256: bytes
    index: int
    data: bytes
    sha256: bytes
    report_below: int
    report_every: int
    def __init__(self, file_sha256: _Optional[bytes] = ..., index: _Optional[int] = ..., data: _Optional[bytes] = ..., sha256: _Optional[bytes] = ..., report_below: _Optional[int] = ..., report_every: _Optional[int] = ...) -> None: ...

class ChunkRefusal(_message.Message):
    __slots__ = ("file_sha256", "reason")
    FILE_SHA256_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    file_sha256: bytes
    reason: str
    def __init__(self, file_sha256: _Optional[bytes] = ..., reason: _Optional[str] = ...) -> None: ...
