"""How good is what a device runs now? Asked in process, so that the question leaves no trace in its drift windows."""

from __future__ import annotations

from pathlib import Path

from skerry_agent import Engine
from skerry_contract.v1.telemetry_pb2 import UplinkMessage
from skerry_models.task import Dataset

_BATCH = 32


class _Discard:
    """A sink for reports that nobody shall see."""

    def enqueue(self, message: UplinkMessage) -> int:
        """Forget ``message``."""
        return 0


def judge(agent_folder: Path, data: Dataset) -> float:
    """Accuracy (fraction) of the active release of an agent, in the form that this device chose, on ``data``."""
    with Engine.open(agent_folder, open_sink=_Discard, follow=False) as engine:
        right = sum(
            int((engine.infer(data.x[i : i + _BATCH]).labels == data.y[i : i + _BATCH]).sum())
            for i in range(0, len(data), _BATCH)
        )
    return right / len(data)
