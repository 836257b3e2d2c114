from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class PersonalForm(_message.Message):
    __slots__ = ("task", "release_id", "bundle_sha256", "train_step_sha256", "parameters", "proof")
    TASK_FIELD_NUMBER: _ClassVar[int]
    RELEASE_ID_FIELD_NUMBER: _ClassVar[int]
    BUNDLE_SHA256_FIELD_NUMBER: _ClassVar[int]
    TRAIN_STEP_SHA256_FIELD_NUMBER: _ClassVar[int]
    PARAMETERS_FIELD_NUMBER: _ClassVar[int]
    PROOF_FIELD_NUMBER: _ClassVar[int]
    task: str
    release_id: str
    bundle_sha256: bytes
    train_step_sha256: bytes
    parameters: bytes
    proof: PersonalProof
    def __init__(self, task: _Optional[str] = ..., release_id: _Optional[str] = ..., bundle_sha256: _Optional[bytes] = ..., train_step_sha256: _Optional[bytes] = ..., parameters: _Optional[bytes] = ..., proof: _Optional[_Union[PersonalProof, _Mapping]] = ...) -> None: ...

class PersonalProof(_message.Message):
    __slots__ = ("examples", "global_accuracy", "personal_accuracy", "global_loss", "personal_loss", "measured_unix_ms", "origin", "campaign_sha256", "store_id", "position")
    EXAMPLES_FIELD_NUMBER: _ClassVar[int]
    GLOBAL_ACCURACY_FIELD_NUMBER: _ClassVar[int]
    PERSONAL_ACCURACY_FIELD_NUMBER: _ClassVar[int]
    GLOBAL_LOSS_FIELD_NUMBER: _ClassVar[int]
    PERSONAL_LOSS_FIELD_NUMBER: _ClassVar[int]
    MEASURED_UNIX_MS_FIELD_NUMBER: _ClassVar[int]
    ORIGIN_FIELD_NUMBER: _ClassVar[int]
    CAMPAIGN_SHA256_FIELD_NUMBER: _ClassVar[int]
    STORE_ID_FIELD_NUMBER: _ClassVar[int]
    POSITION_FIELD_NUMBER: _ClassVar[int]
    examples: int
    global_accuracy: float
    personal_accuracy: float
    global_loss: float
    personal_loss: float
    measured_unix_ms: int
    origin: str
    campaign_sha256: bytes
    store_id: str
    position: int
    def __init__(self, examples: _Optional[int] = ..., global_accuracy: _Optional[float] = ..., personal_accuracy: _Optional[float] = ..., global_loss: _Optional[float] = ..., personal_loss: _Optional[float] = ..., measured_unix_ms: _Optional[int] = ..., origin: _Optional[str] = ..., campaign_sha256: _Optional[bytes] = ..., store_id: _Optional[str] = ..., position: _Optional[int] = ...) -> None: ...
