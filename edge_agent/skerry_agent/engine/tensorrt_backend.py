"""TensorRT on NVIDIA devices: the only file that imports tensorrt and the CUDA bindings, both when first needed.

The code keeps to names that the documents of TensorRT 10.x and 11.x share: named tensors, ``execute_async_v3``,
serialised builds, explicit Q/DQ. Networks are strongly typed: by flag in 10.x, always in 11.x, which removed the
precision flags and calibrators. Engines are built on the device, because they are not portable, and kept under a key
of everything that they depend on.

This file has been held to the backend contract with a strict stand-in for both modules, never yet run on a GPU.
"""

from __future__ import annotations

import hashlib
import importlib
import logging
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from skerry_agent.engine.backend import BuiltModel, Floats, ModelSource, Port, Probe, Runner, base_form
from skerry_agent.engine.errors import BackendError
from skerry_agent.files import write_atomically

NAME = "tensorrt"
WORKSPACE_BYTES = 256 << 20

_TEGRA_RELEASE = Path("/etc/nv_tegra_release")
_POWER_MODE = Path("/var/lib/nvpmodel/status")
_log = logging.getLogger(__name__)


def _import_cuda() -> Any:
    """CUDA runtime bindings: ``cuda.bindings.runtime`` since cuda-python 12.6, ``cuda.cudart`` before (JetPack 6)."""
    try:
        return importlib.import_module("cuda.bindings.runtime")
    except ImportError:
        return importlib.import_module("cuda.cudart")


class TensorRtBackend:
    """Builds and runs float32 and explicitly quantised graphs on the GPU.

    Args:
        import_tensorrt: Gives the ``tensorrt`` module; tests give their own.
        import_cuda: Gives the CUDA runtime bindings; tests give their own.
    """

    name = NAME
    compiles = True

    def __init__(
        self,
        import_tensorrt: Callable[[], Any] = lambda: importlib.import_module("tensorrt"),
        import_cuda: Callable[[], Any] = _import_cuda,
    ) -> None:
        self._import_tensorrt = import_tensorrt
        self._import_cuda = import_cuda

    def accepts(self, variant: str, form: str = "") -> bool:
        """Symmetric int8 Q/DQ and floats; unsigned activations (int8-x86) are not TensorRT's."""
        return not form and base_form(variant) in ("fp32", "fp16", "int8-qdq")

    def probe(self) -> Probe:
        """See :class:`~skerry_agent.engine.backend.Backend`."""
        try:
            trt = self._import_tensorrt()
            identity = _device_identity(self._import_cuda())
        except (ImportError, OSError, BackendError) as error:
            return Probe(False, "", str(error))
        return Probe(True, f"{trt.__version__}; {identity}", identity)

    def keep(self, source: ModelSource, cache: Path) -> bool:
        """``build`` keeps its engines by itself."""
        return False

    def build(self, source: ModelSource, cache: Path) -> BuiltModel:
        """Build an engine for batches of 1 to ``maximum_batch``, best at 1, or take it from the cache."""
        trt, cuda = self._modules("build")
        key = self._key(trt, cuda, source)
        path = cache / f"{key}.engine"
        if path.exists():
            data = path.read_bytes()
            if trt.Runtime(trt.Logger(trt.Logger.WARNING)).deserialize_cuda_engine(data) is not None:
                return BuiltModel(source, data, key, kept=path, fresh=False)
            _log.warning("cached engine %s is refused by TensorRT %s and is built again", path.name, trt.__version__)
        cache.mkdir(parents=True, exist_ok=True)
        data = _build_engine(trt, source, cache / f"{self._timing_key(trt, cuda)}.timing")
        write_atomically(path, data)
        return BuiltModel(source, data, key, kept=path)

    def load(self, built: BuiltModel) -> Runner:
        """See :class:`~skerry_agent.engine.backend.Backend`."""
        trt, cuda = self._modules("load")
        logger = trt.Logger(trt.Logger.WARNING)
        runtime = trt.Runtime(logger)
        engine = runtime.deserialize_cuda_engine(built.data)
        if engine is None:
            raise BackendError(NAME, "load", f"TensorRT {trt.__version__} refuses the engine {built.key}")
        _check_tensors(trt, engine, built.source)
        return TensorRtRunner(cuda, engine, built.source, keep=(runtime, logger))

    def _modules(self, operation: str) -> tuple[Any, Any]:
        try:
            return self._import_tensorrt(), self._import_cuda()
        except (ImportError, OSError) as error:
            raise BackendError(NAME, operation, str(error)) from error

    @staticmethod
    def _key(trt: Any, cuda: Any, source: ModelSource) -> str:
        parts = [
            source.sha256.hex(),
            str(trt.__version__),
            _device_identity(cuda),
            f"{source.input.shape} 1..{source.maximum_batch}",
            f"strongly typed, workspace {WORKSPACE_BYTES}",
        ]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()

    @staticmethod
    def _timing_key(trt: Any, cuda: Any) -> str:
        """Timings of kernels hold for a device and a version, whatever the graph."""
        return hashlib.sha256(f"{trt.__version__}\n{_device_identity(cuda)}".encode()).hexdigest()[:32]


class TensorRtRunner:
    """An execution context with its own stream and buffers; it serves one thread at a time, which a lock ensures."""

    def __init__(self, cuda: Any, engine: Any, source: ModelSource, *, keep: tuple[Any, ...]) -> None:
        self._cuda = cuda
        self._engine = engine
        self._keep = keep  # TensorRT needs its runtime and logger to outlive the engine
        self._source = source
        self._lock = threading.Lock()
        self._buffers: dict[str, int] = {}
        self._context: Any = engine.create_execution_context()
        if self._context is None:
            raise BackendError(NAME, "load", "no execution context: not enough device memory?")
        (self._stream,) = self._call("load", cuda.cudaStreamCreate())
        try:
            for port in (source.input, *source.outputs):
                size = 4 * source.maximum_batch * int(np.prod(port.shape))
                (self._buffers[port.name],) = self._call("load", cuda.cudaMalloc(size))
                if not self._context.set_tensor_address(port.name, int(self._buffers[port.name])):
                    raise BackendError(NAME, "load", f"no address can be set for {port.name}")
        except BackendError:
            self.close()
            raise

    def run(self, x: Floats) -> tuple[Floats, ...]:
        """See :class:`~skerry_agent.engine.backend.Runner`."""
        batch = x.shape[0]
        host = np.ascontiguousarray(x)
        outputs: tuple[Floats, ...] = tuple(
            np.empty((batch, *port.shape), dtype=np.float32) for port in self._source.outputs
        )
        name, kind = self._source.input.name, self._cuda.cudaMemcpyKind
        with self._lock:
            if not self._context.set_input_shape(name, (batch, *self._source.input.shape)):
                raise BackendError(NAME, "run", f"batch {batch} is outside the optimisation profile")
            self._copy(self._buffers[name], host.ctypes.data, host.nbytes, kind.cudaMemcpyHostToDevice)
            if not self._context.execute_async_v3(int(self._stream)):
                raise BackendError(NAME, "run", "the execution could not be queued")
            for port, output in zip(self._source.outputs, outputs, strict=True):
                device = self._buffers[port.name]
                self._copy(output.ctypes.data, device, output.nbytes, kind.cudaMemcpyDeviceToHost)
            self._call("run", self._cuda.cudaStreamSynchronize(self._stream))
        return outputs

    def close(self) -> None:
        """See :class:`~skerry_agent.engine.backend.Runner`."""
        with self._lock:
            self._context = None
            for buffer in self._buffers.values():
                self._cuda.cudaFree(buffer)
            self._buffers.clear()
            if self._stream is not None:
                self._cuda.cudaStreamDestroy(self._stream)
                self._stream = None
            self._engine = None

    def _copy(self, target: int, source: int, size: int, kind: Any) -> None:
        self._call("run", self._cuda.cudaMemcpyAsync(target, source, size, kind, self._stream))

    @staticmethod
    def _call(operation: str, result: tuple[Any, ...]) -> tuple[Any, ...]:
        return _check_cuda(operation, result)


def _check_cuda(operation: str, result: tuple[Any, ...]) -> tuple[Any, ...]:
    """Every call of the CUDA bindings returns its status first."""
    status, *values = result
    if int(status) != 0:
        raise BackendError(NAME, operation, f"CUDA error {status}")
    return tuple(values)


def _device_identity(cuda: Any) -> str:
    """GPU, compute capability, driver, JetPack and power mode: what an engine's speed and validity depend on."""
    (device,) = _check_cuda("build", cuda.cudaGetDevice())
    (properties,) = _check_cuda("build", cuda.cudaGetDeviceProperties(device))
    (driver,) = _check_cuda("build", cuda.cudaDriverGetVersion())
    name = properties.name.decode() if isinstance(properties.name, bytes) else str(properties.name)
    release, mode = (
        path.read_text(errors="replace").strip()[:120] if path.exists() else "none"
        for path in (_TEGRA_RELEASE, _POWER_MODE)
    )
    capability = f"sm_{properties.major}{properties.minor}"
    return f"{name.strip(chr(0))}, {capability}, driver {driver}, jetpack {release}, power {mode}"


def _build_engine(trt: Any, source: ModelSource, timing: Path) -> bytes:
    logger = trt.Logger(trt.Logger.WARNING)
    builder = trt.Builder(logger)
    if int(str(trt.__version__).split(".")[0]) < 11:
        network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    else:
        network = builder.create_network()
    parser = trt.OnnxParser(network, logger)
    if not parser.parse(source.onnx):
        errors = "; ".join(str(parser.get_error(index)) for index in range(parser.num_errors))
        raise BackendError(NAME, "build", errors or "the ONNX parser gave no reason")
    config = builder.create_builder_config()
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, WORKSPACE_BYTES)
    profile = builder.create_optimization_profile()
    one = (1, *source.input.shape)
    profile.set_shape(source.input.name, one, one, (source.maximum_batch, *source.input.shape))
    config.add_optimization_profile(profile)
    if not config.set_timing_cache(config.create_timing_cache(_read(timing)), False):
        _log.warning("timing cache %s is refused and is made anew", timing.name)
        config.set_timing_cache(config.create_timing_cache(b""), False)
    serialized = builder.build_serialized_network(network, config)
    if serialized is None:
        raise BackendError(NAME, "build", "the builder gave no engine; its log says why")
    write_atomically(timing, bytes(config.get_timing_cache().serialize()))
    return bytes(serialized)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


def _check_tensors(trt: Any, engine: Any, source: ModelSource) -> None:
    """Compare the engine's tensors with the manifest's."""
    names = {str(engine.get_tensor_name(index)) for index in range(engine.num_io_tensors)}
    inputs = {name for name in names if engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT}
    if inputs != {source.input.name}:
        raise BackendError(NAME, "load", f"the graph's inputs are {sorted(inputs)}, not [{source.input.name}]")
    for port in (source.input, *source.outputs):
        if port.name not in names:
            raise BackendError(NAME, "load", f"the graph has no output {port.name}, only {sorted(names - inputs)}")
        _check_tensor(trt, engine, port)


def _check_tensor(trt: Any, engine: Any, port: Port) -> None:
    shape = tuple(int(dimension) for dimension in engine.get_tensor_shape(port.name))
    dtype = engine.get_tensor_dtype(port.name)
    if dtype != trt.DataType.FLOAT or shape != (-1, *port.shape):
        raise BackendError(NAME, "load", f"{port.name} is {dtype} {list(shape)}, not float32 [-1, {list(port.shape)}]")
