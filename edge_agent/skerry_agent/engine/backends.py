"""Which backends there are. An integrator adds one by putting it into :data:`BACKENDS` before the engine opens."""

from __future__ import annotations

from skerry_agent.engine.backend import Backend
from skerry_agent.engine.execution_providers import PROVIDERS
from skerry_agent.engine.onnxruntime_backend import OnnxRuntimeBackend
from skerry_agent.engine.tensorrt_backend import TensorRtBackend

_ALL: tuple[Backend, ...] = (TensorRtBackend(), *(OnnxRuntimeBackend(provider) for provider in PROVIDERS))
#: Name to backend, in the order in which they are tried.
BACKENDS: dict[str, Backend] = {backend.name: backend for backend in _ALL}
