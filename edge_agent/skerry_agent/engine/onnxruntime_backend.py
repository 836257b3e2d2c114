"""ONNX Runtime, one backend per execution provider; the CPU's is the one that every device has.

The only file that imports onnxruntime to serve. What each provider is asked for is in ``execution_providers``.

One thread, sequential, no spinning: a device serves one model beside other work, and a spinning pool costs more in
tail latency than it wins. A batch of one goes through buffers that are bound once, which saves about 3 us a request.
"""

from __future__ import annotations

import collections
import importlib
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from skerry_agent.engine.arrays import copies, fill
from skerry_agent.engine.backend import BuiltModel, Floats, ModelSource, Port, Probe, Runner, base_form
from skerry_agent.engine.device_profile import this_hardware
from skerry_agent.engine.errors import BackendError
from skerry_agent.engine.execution_providers import (
    CACHE,
    CPU,
    LARGEST,
    PROVIDERS,
    SMALLEST,
    USUAL,
    ExecutionProvider,
)
from skerry_agent.engine.kept_forms import form_key, read_form, write_form

#: Format of onnxruntime's flat files.
ORT = "ort"
#: How kept forms are made; another word makes those that exist unknown.
KEPT = "every optimisation, 1 thread"
#: Larger inputs are cheaper to hand over than to copy into a bound buffer (bytes).
BOUND_BYTES = 64 << 10


class _BoundBuffers:
    """Input and output buffers for a batch of one, bound to a session once."""

    def __init__(self, session: Any, source: ModelSource) -> None:
        self.input: Floats = np.zeros((1, *source.input.shape), dtype=np.float32)
        self.outputs: tuple[Floats, ...] = tuple(np.zeros((1, *port.shape), np.float32) for port in source.outputs)
        self.binding: Any = session.io_binding()
        self.binding.bind_input(source.input.name, "cpu", 0, np.float32, self.input.shape, self.input.ctypes.data)
        for port, buffer in zip(source.outputs, self.outputs, strict=True):
            self.binding.bind_output(port.name, "cpu", 0, np.float32, buffer.shape, buffer.ctypes.data)


class OnnxRuntimeRunner:
    """A session. Threads that run at the same time use different buffers; a session itself is thread-safe."""

    def __init__(self, session: Any, source: ModelSource, backend: str) -> None:
        self._session: Any = session
        self._source = source
        self._backend = backend
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
            fill(buffers.input, x)
            self._session.run_with_iobinding(buffers.binding)
            outputs = copies(buffers.outputs)
            self._free.append(buffers)
            return outputs
        except Exception as error:  # onnxruntime raises its own C++ exception types
            raise BackendError(self._backend, "run", str(error)) from error

    def close(self) -> None:
        """See :class:`~skerry_agent.engine.backend.Runner`."""
        self._free.clear()
        self._session = None


class OnnxRuntimeBackend:
    """One execution provider of ONNX Runtime.

    Args:
        provider: Which one, and its options.
        import_runtime: Gives the ``onnxruntime`` module; tests give their own.
        hardware: Names the machine in the keys of kept forms.
    """

    def __init__(
        self,
        provider: ExecutionProvider = PROVIDERS[-1],
        *,
        import_runtime: Callable[[], Any] = lambda: importlib.import_module("onnxruntime"),
        hardware: Callable[[], str] = this_hardware,
    ) -> None:
        self._provider = provider
        self._import = import_runtime
        self._hardware = hardware

    @property
    def name(self) -> str:
        """See :class:`~skerry_agent.engine.backend.Backend`."""
        return self._provider.backend

    @property
    def compiles(self) -> bool:
        """See :class:`~skerry_agent.engine.backend.Backend`."""
        return self._provider.compiles

    def accepts(self, variant: str, form: str = "") -> bool:
        """See :class:`~skerry_agent.engine.backend.Backend`."""
        runs_file = not form or (form == ORT and self._provider.ort_files)
        return bool(variant) and runs_file and (not self._provider.forms or base_form(variant) in self._provider.forms)

    def probe(self) -> Probe:
        """See :class:`~skerry_agent.engine.backend.Backend`."""
        try:
            runtime = self._import()
            available = runtime.get_available_providers()
        except (ImportError, AttributeError) as error:
            return Probe(False, "", f"onnxruntime cannot be imported: {error}")
        version = str(runtime.__version__)
        if self._provider.provider not in available:
            return Probe(False, version, f"onnxruntime {version} was built without {self._provider.provider}")
        return Probe(True, version, f"{self._provider.device}, {self._provider.provider}, 1 thread")

    def keep(self, source: ModelSource, cache: Path) -> bool:
        """Keep the optimised graph in onnxruntime's flat form, which loads two to five times faster.

        Optimisations that fit this processor are in it, so it is the same graph that runs, and it is for this machine
        only. Providers that compile have caches of their own.
        """
        if not self._provider.ort_files or source.format:
            return False
        cache.mkdir(parents=True, exist_ok=True)
        runtime = self._import()
        with tempfile.TemporaryDirectory(dir=cache) as folder:
            path = Path(folder) / "model.ort"
            options = self._options(runtime)
            options.optimized_model_filepath = str(path)
            options.add_session_config_entry("session.save_model_format", "ORT")
            try:
                runtime.InferenceSession(source.onnx, sess_options=options, providers=[self._provider.provider])
                content = path.read_bytes()
            except OSError:
                raise
            except Exception as error:
                raise BackendError(self.name, "keep", str(error)) from error
        write_form(self._kept(source, cache), content)
        return True

    def build(self, source: ModelSource, cache: Path) -> BuiltModel:
        """The kept form, if there is one that is whole; else the file of the bundle."""
        if self._provider.ort_files and not source.format:
            kept = self._kept(source, cache)
            content = read_form(kept)
            if content is not None:
                return BuiltModel(source, content, f"{self.name}-{kept.stem}", format=ORT, kept=kept, fresh=False)
        if any(CACHE in value for value in self._provider.options.values()):
            cache.mkdir(parents=True, exist_ok=True)
        return BuiltModel(source, source.onnx, f"{self.name}-{source.sha256.hex()}", format=source.format, cache=cache)

    def load(self, built: BuiltModel) -> Runner:
        """See :class:`~skerry_agent.engine.backend.Backend`."""
        runtime = self._import()
        options = self._options(runtime)
        if built.format == ORT:
            options.add_session_config_entry("session.load_model_format", "ORT")
            options.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_DISABLE_ALL
        provider = self._provider.provider
        wanted: list[Any] = [(provider, self._provider_options(built))] if self._provider.options else [provider]
        if not self._provider.whole:
            wanted.append(CPU)
        try:
            session: Any = runtime.InferenceSession(built.data, sess_options=options, providers=wanted)
        except Exception as error:
            raise BackendError(self.name, "load", str(error)) from error
        self._check_provider(session)
        _check_ports(self.name, "input", session.get_inputs(), (built.source.input,), exact=True)
        _check_ports(self.name, "output", session.get_outputs(), built.source.outputs, exact=False)
        return OnnxRuntimeRunner(session, built.source, self.name)

    def _options(self, runtime: Any) -> Any:
        options: Any = runtime.SessionOptions()
        options.intra_op_num_threads = 1
        options.inter_op_num_threads = 1
        options.execution_mode = runtime.ExecutionMode.ORT_SEQUENTIAL
        options.log_severity_level = 3
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        if self._provider.provider != CPU:
            options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
        return options

    def _provider_options(self, built: BuiltModel) -> dict[str, str]:
        source = built.source

        def shape(batch: int) -> str:
            return f"{source.input.name}:{'x'.join(str(size) for size in (batch, *source.input.shape))}"

        stands_for = {
            CACHE: str(built.cache or ""),
            SMALLEST: shape(1),
            USUAL: shape(1),
            LARGEST: shape(source.maximum_batch),
        }
        return {name: stands_for.get(value, value) for name, value in self._provider.options.items()}

    def _check_provider(self, session: Any) -> None:
        """Refuse a session that another provider runs: asking for an absent one is only a warning in onnxruntime."""
        provider, running = self._provider.provider, list(session.get_providers())
        if running[:1] != [provider]:
            raise BackendError(self.name, "load", f"got provider {', '.join(running) or 'none'} instead of {provider}")
        if provider == CPU:
            return
        assignment = getattr(session, "get_provider_graph_assignment_info", None)
        if assignment is None:  # before onnxruntime 1.24 nobody says which nodes went where
            return
        try:
            owners = {str(part.ep_name) for part in assignment()}
        except Exception as error:
            raise BackendError(self.name, "load", f"it does not say what {provider} runs: {error}") from error
        if provider not in owners:
            raise BackendError(self.name, "load", f"{provider} runs nothing of the graph, {sorted(owners)} do")

    def _kept(self, source: ModelSource, cache: Path) -> Path:
        runtime = self._import()
        key = form_key(source.sha256.hex(), str(runtime.__version__), self._provider.provider, self._hardware(), KEPT)
        return cache / f"{key}.{ORT}"


def _check_ports(backend: str, kind: str, arguments: list[Any], ports: tuple[Port, ...], *, exact: bool) -> None:
    """Compare the graph with the manifest; symbolic dimensions (str or None) match any size."""
    found = {str(argument.name): argument for argument in arguments}
    if exact and set(found) != {port.name for port in ports}:
        raise BackendError(backend, "load", f"the graph's {kind}s are {sorted(found)}, not {[p.name for p in ports]}")
    for port in ports:
        argument = found.get(port.name)
        if argument is None:
            raise BackendError(backend, "load", f"the graph has no {kind} {port.name}, only {sorted(found)}")
        shape = list(argument.shape)
        fits = len(shape) == len(port.shape) + 1 and all(
            not isinstance(dimension, int) or dimension == wanted
            for dimension, wanted in zip(shape[1:], port.shape, strict=True)
        )
        if argument.type != "tensor(float)" or not fits or isinstance(shape[0], int):
            raise BackendError(
                backend,
                "load",
                f"{kind} {port.name} is {argument.type} {shape}, not tensor(float) [batch, {list(port.shape)}]",
            )
