"""A strict stand-in for ``tensorrt`` and for the CUDA runtime bindings.

It has only names that the documents of both TensorRT 10.x and 11.x list (plus the STRONGLY_TYPED flag in 10.x, where
it is needed, and not in 11.x, where networks always are). Graphs really run: "device memory" is host memory behind
made-up addresses, and ONNX Runtime computes. It misbehaves on request, the ways the real ones do: ``None`` and
``False`` instead of exceptions, and a status code first in every CUDA result.
"""

from __future__ import annotations

import ctypes
import json
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import onnxruntime

_MAGIC = b"fake-engine\n"


@dataclass
class Faults:
    """What goes wrong.

    Attributes:
        parser_rejects: The ONNX parser refuses every graph.
        build_fails: ``build_serialized_network`` gives None.
        refuse_engines: ``deserialize_cuda_engine`` gives None.
        execution_fails: ``execute_async_v3`` gives False.
        no_memory_after: ``cudaMalloc`` fails after so many calls.
        copy_fails: ``cudaMemcpyAsync`` gives an error.
    """

    parser_rejects: bool = False
    build_fails: bool = False
    refuse_engines: bool = False
    execution_fails: bool = False
    no_memory_after: int | None = None
    copy_fails: bool = False


@dataclass
class FakeGpu:
    """The device behind both modules.

    Attributes:
        version: TensorRT version, "10.3.0" or "11.4.1".
        power_mode: Changes the device's identity through its name.
        builds: How many engines were built.
        timings_reused: How many builds began with timings of this very device and version.
        memory: Address to buffer: what is not freed yet.
        streams: Streams that are not destroyed yet.
    """

    version: str = "10.3.0"
    name: str = "Fake Orin"
    faults: Faults = field(default_factory=Faults)
    builds: int = 0
    timings_reused: int = 0
    mallocs: int = 0
    memory: dict[int, np.ndarray[Any, Any]] = field(default_factory=dict)
    streams: set[int] = field(default_factory=set)

    def tensorrt(self) -> Any:
        """The module."""
        return _TensorRt(self)

    def cuda(self) -> Any:
        """The bindings."""
        return _Cuda(self)

    def buffer_at(self, address: int, size: int) -> np.ndarray[Any, Any]:
        """Bytes of "device memory" from an address on."""
        buffer = self.memory[address]
        assert buffer.nbytes >= size, "access behind the end of device memory"
        return buffer[:size]


class _Namespace:
    """Attributes as given and no others: a name that is not documented is an AttributeError."""

    def __init__(self, **names: Any) -> None:
        self.__dict__.update(names)


class _TensorRt(_Namespace):
    def __init__(self, gpu: FakeGpu) -> None:
        flags = {"STRONGLY_TYPED": 1} if gpu.version.startswith("10.") else {}
        super().__init__(
            __version__=gpu.version,
            Logger=_Logger,
            Builder=lambda logger: _Builder(gpu, logger),
            Runtime=lambda logger: _Runtime(gpu, logger),
            OnnxParser=lambda network, logger: _Parser(gpu, network, logger),
            NetworkDefinitionCreationFlag=_Namespace(**flags),
            MemoryPoolType=_Namespace(WORKSPACE="WORKSPACE"),
            TensorIOMode=_Namespace(INPUT="INPUT", OUTPUT="OUTPUT"),
            DataType=_Namespace(FLOAT="FLOAT", HALF="HALF", INT8="INT8", INT32="INT32"),
        )


class _Logger:
    WARNING = 2

    def __init__(self, severity: int) -> None:
        assert severity == self.WARNING


class _Network:
    def __init__(self, flags: int) -> None:
        self._flags = flags
        self._onnx: bytes | None = None


class _Parser:
    def __init__(self, gpu: FakeGpu, network: _Network, logger: _Logger) -> None:
        assert isinstance(logger, _Logger)
        self._gpu = gpu
        self._network = network
        self.num_errors = 0

    def parse(self, data: bytes) -> bool:
        try:
            if self._gpu.faults.parser_rejects:
                raise ValueError("rejected")
            onnx.load_from_string(data)
            onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
        except Exception:
            self.num_errors = 1
            return False
        self._network._onnx = data
        return True

    def get_error(self, index: int) -> str:
        assert 0 <= index < self.num_errors
        return "In node 0 (parseNode): UNSUPPORTED_NODE: made up"


class _Profile:
    def __init__(self) -> None:
        self._shapes: dict[str, tuple[tuple[int, ...], ...]] = {}

    def set_shape(self, name: str, smallest: Any, best: Any, largest: Any) -> None:
        assert all(a <= b <= c for a, b, c in zip(smallest, best, largest, strict=True))
        self._shapes[name] = (tuple(smallest), tuple(best), tuple(largest))


class _TimingCache:
    def __init__(self, data: bytes) -> None:
        self.data = data

    def serialize(self) -> bytes:
        return self.data


class _Config:
    def __init__(self, gpu: FakeGpu) -> None:
        self._gpu = gpu
        self._profiles: list[_Profile] = []
        self._cache: _TimingCache | None = None
        self._limits: dict[str, int] = {}

    def set_memory_pool_limit(self, pool: str, size: int) -> None:
        assert pool == "WORKSPACE"
        self._limits[pool] = size

    def add_optimization_profile(self, profile: _Profile) -> int:
        self._profiles.append(profile)
        return len(self._profiles) - 1

    def create_timing_cache(self, data: bytes) -> _TimingCache:
        return _TimingCache(data)

    def set_timing_cache(self, cache: _TimingCache, ignore_mismatch: bool) -> bool:
        assert not ignore_mismatch
        mine = f"timing of {self._gpu.name} by {self._gpu.version}".encode()
        if cache.data not in (b"", mine):
            return False
        self._gpu.timings_reused += cache.data == mine
        self._cache = _TimingCache(mine)
        return True

    def get_timing_cache(self) -> _TimingCache:
        assert self._cache is not None
        return self._cache


class _Builder:
    def __init__(self, gpu: FakeGpu, logger: _Logger) -> None:
        assert isinstance(logger, _Logger)
        self._gpu = gpu

    def create_network(self, flags: int = 0) -> _Network:
        wanted = 1 << 1 if self._gpu.version.startswith("10.") else 0
        assert flags == wanted, "the network must be strongly typed"
        return _Network(flags)

    def create_builder_config(self) -> _Config:
        return _Config(self._gpu)

    def create_optimization_profile(self) -> _Profile:
        return _Profile()

    def build_serialized_network(self, network: _Network, config: _Config) -> bytes | None:
        assert network._onnx is not None, "nothing was parsed"
        assert config._profiles, "dynamic shapes need a profile"
        if self._gpu.faults.build_fails:
            return None
        self._gpu.builds += 1
        header = {"version": self._gpu.version, "name": self._gpu.name, "profile": config._profiles[0]._shapes}
        return _MAGIC + json.dumps(header).encode() + b"\n" + network._onnx


class _Runtime:
    def __init__(self, gpu: FakeGpu, logger: _Logger) -> None:
        assert isinstance(logger, _Logger)
        self._gpu = gpu

    def deserialize_cuda_engine(self, data: bytes) -> _Engine | None:
        if self._gpu.faults.refuse_engines or not data.startswith(_MAGIC):
            return None
        header_text, model = data[len(_MAGIC) :].split(b"\n", 1)
        header = json.loads(header_text)
        if header["version"] != self._gpu.version or header["name"] != self._gpu.name:
            return None
        return _Engine(self._gpu, model, header["profile"])


class _Engine:
    def __init__(self, gpu: FakeGpu, model: bytes, profile: dict[str, Any]) -> None:
        self._gpu = gpu
        self._session: Any = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
        self._inputs = {i.name: i for i in self._session.get_inputs()}
        self._tensors = {**self._inputs, **{o.name: o for o in self._session.get_outputs()}}
        self._profile = profile
        self.num_io_tensors = len(self._tensors)

    def get_tensor_name(self, index: int) -> str:
        return str(list(self._tensors)[index])

    def get_tensor_mode(self, name: str) -> str:
        return "INPUT" if name in self._inputs else "OUTPUT"

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return tuple(d if isinstance(d, int) else -1 for d in self._tensors[name].shape)

    def get_tensor_dtype(self, name: str) -> str:
        types = {"tensor(float)": "FLOAT", "tensor(int64)": "INT64"}
        return types[str(self._tensors[name].type)]

    def create_execution_context(self) -> _Context:
        return _Context(self)


class _Context:
    def __init__(self, engine: _Engine) -> None:
        self._engine = engine
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._addresses: dict[str, int] = {}

    def set_input_shape(self, name: str, shape: Any) -> bool:
        smallest, _, largest = self._engine._profile[name]
        if not all(a <= b <= c for a, b, c in zip(smallest, shape, largest, strict=True)):
            return False
        self._shapes[name] = tuple(shape)
        return True

    def set_tensor_address(self, name: str, address: int) -> bool:
        assert isinstance(address, int)
        self._addresses[name] = address
        return name in self._engine._tensors

    def execute_async_v3(self, stream: int) -> bool:
        gpu = self._engine._gpu
        assert stream in gpu.streams
        if gpu.faults.execution_fails:
            return False
        feeds = {}
        for name, shape in self._shapes.items():
            size = 4 * int(np.prod(shape))
            feeds[name] = gpu.buffer_at(self._addresses[name], size).view(np.float32).reshape(shape)
        names = [name for name in self._engine._tensors if name not in self._engine._inputs]
        for name, values in zip(names, self._engine._session.run(names, feeds), strict=True):
            if name in self._addresses:
                target = gpu.buffer_at(self._addresses[name], values.nbytes)
                target[:] = values.reshape(-1).view(np.uint8)
        return True


class _Properties:
    def __init__(self, name: str) -> None:
        self.name = name.encode()
        self.major = 8
        self.minor = 7


class _Cuda(_Namespace):
    def __init__(self, gpu: FakeGpu) -> None:
        self._gpu = gpu
        super().__init__(cudaMemcpyKind=_Namespace(cudaMemcpyHostToDevice=1, cudaMemcpyDeviceToHost=2))

    def cudaGetDevice(self) -> tuple[int, int]:
        return 0, 0

    def cudaGetDeviceProperties(self, device: int) -> tuple[int, _Properties]:
        assert device == 0
        return 0, _Properties(self._gpu.name)

    def cudaDriverGetVersion(self) -> tuple[int, int]:
        return 0, 12060

    def cudaMalloc(self, size: int) -> tuple[int, int | None]:
        self._gpu.mallocs += 1
        limit = self._gpu.faults.no_memory_after
        if limit is not None and self._gpu.mallocs > limit:
            return 2, None
        address = 0x1000_0000 + 0x10_0000 * self._gpu.mallocs
        self._gpu.memory[address] = np.zeros(size, dtype=np.uint8)
        return 0, address

    def cudaFree(self, address: int) -> tuple[int]:
        del self._gpu.memory[address]
        return (0,)

    def cudaStreamCreate(self) -> tuple[int, int]:
        stream = 7000 + len(self._gpu.streams)
        self._gpu.streams.add(stream)
        return 0, stream

    def cudaStreamSynchronize(self, stream: int) -> tuple[int]:
        assert stream in self._gpu.streams
        return (0,)

    def cudaStreamDestroy(self, stream: int) -> tuple[int]:
        self._gpu.streams.remove(stream)
        return (0,)

    def cudaMemcpyAsync(self, target: int, source: int, size: int, kind: int, stream: int) -> tuple[int]:
        assert stream in self._gpu.streams
        if self._gpu.faults.copy_fails:
            return (700,)
        if kind == 1:
            self._gpu.buffer_at(target, size)[:] = np.frombuffer(ctypes.string_at(source, size), dtype=np.uint8)
        else:
            assert kind == 2
            ctypes.memmove(target, self._gpu.buffer_at(source, size).ctypes.data, size)
        return (0,)
