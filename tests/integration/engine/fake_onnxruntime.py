"""A stand-in for ``onnxruntime`` with execution providers that this machine lacks: the real CPU computes for them.

It misbehaves the ways the real one does: an absent or broken provider is silently replaced by the CPU, a provider may
take no node of the graph, and its libraries may be missing only when a session is made.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import onnxruntime

CPU = "CPUExecutionProvider"


@dataclass
class FakeRuntime:
    """The module.

    Attributes:
        providers: What it was built with.
        falls_back: Sessions run on the CPU whatever was asked for.
        takes_nothing: The provider is registered and every node runs on the CPU.
        lacks_library: Sessions cannot be made.
        old: A version that does not say which nodes went where.
        asked: Providers with their options, and configuration entries, of the sessions that were made.
    """

    providers: tuple[str, ...]
    falls_back: bool = False
    takes_nothing: bool = False
    lacks_library: bool = False
    old: bool = False
    asked: list[tuple[list[Any], dict[str, str]]] = field(default_factory=list)
    __version__: str = "1.31.1"

    ExecutionMode = onnxruntime.ExecutionMode
    GraphOptimizationLevel = onnxruntime.GraphOptimizationLevel

    def get_available_providers(self) -> list[str]:
        return [*self.providers, CPU]

    def SessionOptions(self) -> _Options:
        return _Options()

    def InferenceSession(self, data: bytes, *, sess_options: _Options, providers: list[Any]) -> Any:
        self.asked.append((providers, sess_options.entries))
        if self.lacks_library:
            raise RuntimeError("libcudnn.so.9: cannot open shared object file")
        session: Any = onnxruntime.InferenceSession(data, sess_options=sess_options.real, providers=[CPU])
        names = [entry if isinstance(entry, str) else entry[0] for entry in providers]
        running = [CPU] if self.falls_back else names
        owner = CPU if self.takes_nothing else running[0]
        return _Session(session, running, owner, old=self.old)


class _Options:
    def __init__(self) -> None:
        object.__setattr__(self, "real", onnxruntime.SessionOptions())
        object.__setattr__(self, "entries", {})

    real: Any
    entries: dict[str, str]

    def add_session_config_entry(self, name: str, value: str) -> None:
        self.entries[name] = value

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self.real, name, value)


class _Session:
    def __init__(self, session: Any, running: list[str], owner: str, *, old: bool) -> None:
        self._session = session
        self._running = running
        if not old:
            self.get_provider_graph_assignment_info = lambda: [SimpleNamespace(ep_name=owner)]

    def get_providers(self) -> list[str]:
        return self._running

    def __getattr__(self, name: str) -> Any:
        if name == "get_provider_graph_assignment_info":
            raise AttributeError(name)
        return getattr(self._session, name)
