"""The agent on the device, and its in-process inference library.

Invariants: importing this package is light (no numpy, no onnxruntime), and no process of the agent imports torch.

Example::

    from skerry_agent import Engine

    with Engine.open("/var/lib/skerry-agent") as engine:
        prediction = engine.infer(window)        # float32 [9, 128], or [batch, 9, 128]
        print(prediction.class_name, prediction.confidence)
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from skerry_agent.engine.engine import Engine
    from skerry_agent.engine.prediction import Prediction

__all__ = ["Engine", "Prediction"]

_WHERE = {"Engine": "skerry_agent.engine.engine", "Prediction": "skerry_agent.engine.prediction"}


def __getattr__(name: str) -> object:
    """Import the library when it is first used."""
    module = _WHERE.get(name)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(module), name)
