"""Client of the serving process over shared memory, for applications on the device.

Importing it is light: NumPy, no inference runtime and no RPC library. Example::

    from skerry_agent.client import SharedMemoryClient

    with SharedMemoryClient.connect("/var/lib/skerry-agent") as client:
        prediction = client.infer(window, deadline_us=5_000)     # float32 [9, 128], or [batch, 9, 128]
        print(prediction.class_name, prediction.variant)

C and C++ applications use ``edge_agent/include/skerry.h``; ``docs/shared-memory.md`` describes the bytes.
"""

from __future__ import annotations

from skerry_agent.client.errors import (
    BusyError,
    ChangedModelError,
    DisconnectedError,
    FailedError,
    ForbiddenError,
    LateError,
    NoActiveReleaseError,
    RefusedRequestError,
    ServingError,
    UnfitInputError,
)
from skerry_agent.client.shared_memory import ModelDescription, SharedMemoryClient, Ticket
from skerry_agent.engine.prediction import Prediction

__all__ = [
    "BusyError",
    "ChangedModelError",
    "DisconnectedError",
    "FailedError",
    "ForbiddenError",
    "LateError",
    "ModelDescription",
    "NoActiveReleaseError",
    "Prediction",
    "RefusedRequestError",
    "ServingError",
    "SharedMemoryClient",
    "Ticket",
    "UnfitInputError",
]
