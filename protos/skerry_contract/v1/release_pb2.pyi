from skerry_contract.v1 import common_pb2 as _common_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class FileEntry(_message.Message):
    __slots__ = ("path", "size", "sha256", "chunk_bytes", "chunk_sha256", "deltas")
    PATH_FIELD_NUMBER: _ClassVar[int]
    SIZE_FIELD_NUMBER: _ClassVar[int]
    SHA256_FIELD_NUMBER: _ClassVar[int]
    CHUNK_BYTES_FIELD_NUMBER: _ClassVar[int]
    CHUNK_SHA256_FIELD_NUMBER: _ClassVar[int]
    DELTAS_FIELD_NUMBER: _ClassVar[int]
    path: str
    size: int
    sha256: bytes
    chunk_bytes: int
    chunk_sha256: _containers.RepeatedScalarFieldContainer[bytes]
    deltas: _containers.RepeatedCompositeFieldContainer[DeltaEntry]
    def __init__(self, path: _Optional[str] = ..., size: _Optional[int] = ..., sha256: _Optional[bytes] = ..., chunk_bytes: _Optional[int] = ..., chunk_sha256: _Optional[_Iterable[bytes]] = ..., deltas: _Optional[_Iterable[_Union[DeltaEntry, _Mapping]]] = ...) -> None: ...

class DeltaEntry(_message.Message):
    __slots__ = ("base_sha256", "size", "sha256", "chunk_bytes", "chunk_sha256")
    BASE_SHA256_FIELD_NUMBER: _ClassVar[int]
    SIZE_FIELD_NUMBER: _ClassVar[int]
    SHA256_FIELD_NUMBER: _ClassVar[int]
    CHUNK_BYTES_FIELD_NUMBER: _ClassVar[int]
    CHUNK_SHA256_FIELD_NUMBER: _ClassVar[int]
    base_sha256: bytes
    size: int
    sha256: bytes
    chunk_bytes: int
    chunk_sha256: _containers.RepeatedScalarFieldContainer[bytes]
    def __init__(self, base_sha256: _Optional[bytes] = ..., size: _Optional[int] = ..., sha256: _Optional[bytes] = ..., chunk_bytes: _Optional[int] = ..., chunk_sha256: _Optional[_Iterable[bytes]] = ...) -> None: ...

class Variant(_message.Message):
    __slots__ = ("name", "path", "device_classes", "golden_tolerance", "rung", "accuracy", "golden", "format")
    NAME_FIELD_NUMBER: _ClassVar[int]
    PATH_FIELD_NUMBER: _ClassVar[int]
    DEVICE_CLASSES_FIELD_NUMBER: _ClassVar[int]
    GOLDEN_TOLERANCE_FIELD_NUMBER: _ClassVar[int]
    RUNG_FIELD_NUMBER: _ClassVar[int]
    ACCURACY_FIELD_NUMBER: _ClassVar[int]
    GOLDEN_FIELD_NUMBER: _ClassVar[int]
    FORMAT_FIELD_NUMBER: _ClassVar[int]
    name: str
    path: str
    device_classes: _containers.RepeatedScalarFieldContainer[str]
    golden_tolerance: float
    rung: int
    accuracy: float
    golden: str
    format: str
    def __init__(self, name: _Optional[str] = ..., path: _Optional[str] = ..., device_classes: _Optional[_Iterable[str]] = ..., golden_tolerance: _Optional[float] = ..., rung: _Optional[int] = ..., accuracy: _Optional[float] = ..., golden: _Optional[str] = ..., format: _Optional[str] = ...) -> None: ...

class ReleaseManifest(_message.Message):
    __slots__ = ("release_id", "sequence", "task", "bundle_sha256", "files", "variants", "inputs", "outputs", "edges_sha256", "train_step_sha256", "created_unix_ms", "expires_unix_ms", "parent_release_id", "scores_output", "features_output", "deadline_us")
    RELEASE_ID_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    TASK_FIELD_NUMBER: _ClassVar[int]
    BUNDLE_SHA256_FIELD_NUMBER: _ClassVar[int]
    FILES_FIELD_NUMBER: _ClassVar[int]
    VARIANTS_FIELD_NUMBER: _ClassVar[int]
    INPUTS_FIELD_NUMBER: _ClassVar[int]
    OUTPUTS_FIELD_NUMBER: _ClassVar[int]
    EDGES_SHA256_FIELD_NUMBER: _ClassVar[int]
    TRAIN_STEP_SHA256_FIELD_NUMBER: _ClassVar[int]
    CREATED_UNIX_MS_FIELD_NUMBER: _ClassVar[int]
    EXPIRES_UNIX_MS_FIELD_NUMBER: _ClassVar[int]
    PARENT_RELEASE_ID_FIELD_NUMBER: _ClassVar[int]
    SCORES_OUTPUT_FIELD_NUMBER: _ClassVar[int]
    FEATURES_OUTPUT_FIELD_NUMBER: _ClassVar[int]
    DEADLINE_US_FIELD_NUMBER: _ClassVar[int]
    release_id: str
    sequence: int
    task: str
    bundle_sha256: bytes
    files: _containers.RepeatedCompositeFieldContainer[FileEntry]
    variants: _containers.RepeatedCompositeFieldContainer[Variant]
    inputs: _containers.RepeatedCompositeFieldContainer[_common_pb2.TensorSpec]
    outputs: _containers.RepeatedCompositeFieldContainer[_common_pb2.TensorSpec]
    edges_sha256: bytes
    train_step_sha256: bytes
    created_unix_ms: int
    expires_unix_ms: int
    parent_release_id: str
    scores_output: str
    features_output: str
    deadline_us: int
    def __init__(self, release_id: _Optional[str] = ..., sequence: _Optional[int] = ..., task: _Optional[str] = ..., bundle_sha256: _Optional[bytes] = ..., files: _Optional[_Iterable[_Union[FileEntry, _Mapping]]] = ..., variants: _Optional[_Iterable[_Union[Variant, _Mapping]]] = ..., inputs: _Optional[_Iterable[_Union[_common_pb2.TensorSpec, _Mapping]]] = ..., outputs: _Optional[_Iterable[_Union[_common_pb2.TensorSpec, _Mapping]]] = ..., edges_sha256: _Optional[bytes] = ..., train_step_sha256: _Optional[bytes] = ..., created_unix_ms: _Optional[int] = ..., expires_unix_ms: _Optional[int] = ..., parent_release_id: _Optional[str] = ..., scores_output: _Optional[str] = ..., features_output: _Optional[str] = ..., deadline_us: _Optional[int] = ...) -> None: ...

class TrustIndex(_message.Message):
    __slots__ = ("files",)
    FILES_FIELD_NUMBER: _ClassVar[int]
    files: _containers.RepeatedCompositeFieldContainer[TrustFile]
    def __init__(self, files: _Optional[_Iterable[_Union[TrustFile, _Mapping]]] = ...) -> None: ...

class TrustFile(_message.Message):
    __slots__ = ("name", "size")
    NAME_FIELD_NUMBER: _ClassVar[int]
    SIZE_FIELD_NUMBER: _ClassVar[int]
    name: str
    size: int
    def __init__(self, name: _Optional[str] = ..., size: _Optional[int] = ...) -> None: ...

class GoldenSet(_message.Message):
    __slots__ = ("inputs", "outputs")
    INPUTS_FIELD_NUMBER: _ClassVar[int]
    OUTPUTS_FIELD_NUMBER: _ClassVar[int]
    inputs: _containers.RepeatedCompositeFieldContainer[_common_pb2.Tensor]
    outputs: _containers.RepeatedCompositeFieldContainer[GoldenOutputs]
    def __init__(self, inputs: _Optional[_Iterable[_Union[_common_pb2.Tensor, _Mapping]]] = ..., outputs: _Optional[_Iterable[_Union[GoldenOutputs, _Mapping]]] = ...) -> None: ...

class GoldenOutputs(_message.Message):
    __slots__ = ("variant", "tensors")
    VARIANT_FIELD_NUMBER: _ClassVar[int]
    TENSORS_FIELD_NUMBER: _ClassVar[int]
    variant: str
    tensors: _containers.RepeatedCompositeFieldContainer[_common_pb2.Tensor]
    def __init__(self, variant: _Optional[str] = ..., tensors: _Optional[_Iterable[_Union[_common_pb2.Tensor, _Mapping]]] = ...) -> None: ...

class GoldenStep(_message.Message):
    __slots__ = ("inputs", "outputs", "tolerance")
    INPUTS_FIELD_NUMBER: _ClassVar[int]
    OUTPUTS_FIELD_NUMBER: _ClassVar[int]
    TOLERANCE_FIELD_NUMBER: _ClassVar[int]
    inputs: _containers.RepeatedCompositeFieldContainer[_common_pb2.Tensor]
    outputs: _containers.RepeatedCompositeFieldContainer[_common_pb2.Tensor]
    tolerance: float
    def __init__(self, inputs: _Optional[_Iterable[_Union[_common_pb2.Tensor, _Mapping]]] = ..., outputs: _Optional[_Iterable[_Union[_common_pb2.Tensor, _Mapping]]] = ..., tolerance: _Optional[float] = ...) -> None: ...

class TrainStepSpec(_message.Message):
    __slots__ = ("parameters", "data_input", "label_input", "learning_rate_input", "proximal_input", "loss_output", "momentum", "opset")
    PARAMETERS_FIELD_NUMBER: _ClassVar[int]
    DATA_INPUT_FIELD_NUMBER: _ClassVar[int]
    LABEL_INPUT_FIELD_NUMBER: _ClassVar[int]
    LEARNING_RATE_INPUT_FIELD_NUMBER: _ClassVar[int]
    PROXIMAL_INPUT_FIELD_NUMBER: _ClassVar[int]
    LOSS_OUTPUT_FIELD_NUMBER: _ClassVar[int]
    MOMENTUM_FIELD_NUMBER: _ClassVar[int]
    OPSET_FIELD_NUMBER: _ClassVar[int]
    parameters: _containers.RepeatedCompositeFieldContainer[ParameterSpec]
    data_input: str
    label_input: str
    learning_rate_input: str
    proximal_input: str
    loss_output: str
    momentum: float
    opset: int
    def __init__(self, parameters: _Optional[_Iterable[_Union[ParameterSpec, _Mapping]]] = ..., data_input: _Optional[str] = ..., label_input: _Optional[str] = ..., learning_rate_input: _Optional[str] = ..., proximal_input: _Optional[str] = ..., loss_output: _Optional[str] = ..., momentum: _Optional[float] = ..., opset: _Optional[int] = ...) -> None: ...

class ParameterSpec(_message.Message):
    __slots__ = ("name", "dtype", "shape", "trainable", "velocity_input", "global_input", "new_output", "new_velocity_output")
    NAME_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    SHAPE_FIELD_NUMBER: _ClassVar[int]
    TRAINABLE_FIELD_NUMBER: _ClassVar[int]
    VELOCITY_INPUT_FIELD_NUMBER: _ClassVar[int]
    GLOBAL_INPUT_FIELD_NUMBER: _ClassVar[int]
    NEW_OUTPUT_FIELD_NUMBER: _ClassVar[int]
    NEW_VELOCITY_OUTPUT_FIELD_NUMBER: _ClassVar[int]
    name: str
    dtype: str
    shape: _containers.RepeatedScalarFieldContainer[int]
    trainable: bool
    velocity_input: str
    global_input: str
    new_output: str
    new_velocity_output: str
    def __init__(self, name: _Optional[str] = ..., dtype: _Optional[str] = ..., shape: _Optional[_Iterable[int]] = ..., trainable: _Optional[bool] = ..., velocity_input: _Optional[str] = ..., global_input: _Optional[str] = ..., new_output: _Optional[str] = ..., new_velocity_output: _Optional[str] = ...) -> None: ...
