"""ONNX Runtime on the CPU: the backend that every device has, and the only file that imports onnxruntime to serve.

One thread, sequential, no spinning: a device serves one model beside other work, and a spinning pool costs more in
tail latency than it wins. A batch of one goes through buffers that are bound once, which saves about 3 us a request.
"""

from __future__ import annotations

import collections
import importlib
from pathlib import Path
from typing import Any

import numpy as np

from skerry_agent.engine.backend import BuiltModel, Floats, ModelSource, Port, Probe, Runner
from skerry_agent.engine.errors import BackendError

NAME = "onnxruntime"
PROVIDER = "CPUExecutionProvider"
#: Larger inputs are cheaper to hand over than to copy into a bound buffer (bytes).
BOUND_BYTES = 64 << 10


class _BoundBuffers:
    """Input and output buffers for a batch of one, bound to a session once."""

    def __init__(self, session: Any, source: ModelSource) -> None:
        self.input: Floats = np.zeros((1, *source.input.shape), dtype=np.float32)
        self.outputs: list[Floats] = [np.zeros((1, *port.shape), dtype=np.float32) for port in source.outputs]
        self.binding: Any = session.io_binding()
        self.binding.bind_input(source.input.name, "cpu", 0, np.float32, self.input.shape, self.input.ctypes.data)
        for port, buffer in zip(source.outputs, self.outputs, strict=True):
            self.binding.bind_output(port.name, "cpu", 0, np.float32, buffer.shape, buffer.ctypes.data)


class OnnxRuntimeRunner:
    """A session. Threads that run at the same time use different buffers; a session itself is thread-safe."""

    def __init__(self, session: Any, source: ModelSource) -> None:
        self._session: Any = session
        self._source = source
        self._names = [port.name for port in source.outputs]
        self._free: collections.deque[_BoundBuffers] = collections.deque(maxlen=16)
        self._free.append(_BoundBuffers(session, source))

    def run(self, x: Floats) -> tuple[Floats, ...]:
        """See :class:`~skerry_agent.engine.backend.Runner`."""
        try:
            if x.shape[0] != 1 or x.nbytes > BOUND_BYTES:
                return tuple(self._session.run(self._names, {self._source.input.name: x}))
            try:
                buffers = self._free.pop()
            except IndexError:
                buffers = _BoundBuffers(self._session, self._source)
            np.copyto(buffers.input, x)
            self._session.run_with_iobinding(buffers.binding)
            outputs = tuple([output.copy() for output in buffers.outputs])
            self._free.append(buffers)
            return outputs
        except Exception as error:  # onnxruntime raises its own C++ exception types
            raise BackendError(NAME, "run", str(error)) from error

    def close(self) -> None:
        """See :class:`~skerry_agent.engine.backend.Runner`."""
        self._free.clear()
        self._session = None


class OnnxRuntimeBackend:
    """Runs every variant: quantised graphs are ONNX like any other."""

    name = NAME

    def accepts(self, variant: str) -> bool:
        """See :class:`~skerry_agent.engine.backend.Backend`."""
        return bool(variant)

    def probe(self) -> Probe:
        """See :class:`~skerry_agent.engine.backend.Backend`."""
        try:
            runtime: Any = importlib.import_module("onnxruntime")
        except ImportError as error:
            return Probe(False, "", f"onnxruntime cannot be imported: {error}")
        return Probe(True, str(runtime.__version__), f"{PROVIDER}, 1 thread")

    def build(self, source: ModelSource, cache: Path) -> BuiltModel:
        """The ONNX file is the form that this runtime loads; nothing is cached."""
        return BuiltModel(source, source.onnx, f"{NAME}-{source.sha256.hex()}")

    def load(self, built: BuiltModel) -> Runner:
        """See :class:`~skerry_agent.engine.backend.Backend`."""
        runtime: Any = importlib.import_module("onnxruntime")
        options: Any = runtime.SessionOptions()
        options.intra_op_num_threads = 1
        options.inter_op_num_threads = 1
        options.execution_mode = runtime.ExecutionMode.ORT_SEQUENTIAL
        options.log_severity_level = 3
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        try:
            session: Any = runtime.InferenceSession(built.data, sess_options=options, providers=[PROVIDER])
        except Exception as error:
            raise BackendError(NAME, "load", str(error)) from error
        # Asking for an absent provider is only a warning in onnxruntime.
        if session.get_providers()[0] != PROVIDER:
            raise BackendError(NAME, "load", f"got provider {session.get_providers()[0]} instead of {PROVIDER}")
        _check_ports("input", session.get_inputs(), (built.source.input,), exact=True)
        _check_ports("output", session.get_outputs(), built.source.outputs, exact=False)
        return OnnxRuntimeRunner(session, built.source)


def _check_ports(kind: str, arguments: list[Any], ports: tuple[Port, ...], *, exact: bool) -> None:
    """Compare the graph with the manifest; symbolic dimensions (str or None) match any size."""
    found = {str(argument.name): argument for argument in arguments}
    if exact and set(found) != {port.name for port in ports}:
        raise BackendError(NAME, "load", f"the graph's {kind}s are {sorted(found)}, not {[p.name for p in ports]}")
    for port in ports:
        argument = found.get(port.name)
        if argument is None:
            raise BackendError(NAME, "load", f"the graph has no {kind} {port.name}, only {sorted(found)}")
        shape = list(argument.shape)
        fits = len(shape) == len(port.shape) + 1 and all(
            not isinstance(dimension, int) or dimension == wanted
            for dimension, wanted in zip(shape[1:], port.shape, strict=True)
        )
        if argument.type != "tensor(float)" or not fits or isinstance(shape[0], int):
            raise BackendError(
                NAME,
                "load",
                f"{kind} {port.name} is {argument.type} {shape}, not tensor(float) [batch, {list(port.shape)}]",
            )
