from __future__ import annotations

import subprocess
import sys

from skerry_server.api.overview import UPDATING
from skerry_server.api.queries import TELLING_VERDICTS
from skerry_server.monitoring.judge import CLOSING


def test_the_vocabulary_of_verdicts_is_that_of_the_judge() -> None:
    assert TELLING_VERDICTS == CLOSING


def test_the_vocabulary_of_updates_is_that_of_the_contract() -> None:
    from skerry_contract.v1.device_pb2 import UpdateStatus

    names = {name.removeprefix("UPDATE_STATUS_").lower() for name in UpdateStatus.keys()}  # noqa: SIM118  # no mapping
    settled = {"unspecified", "idle", "committed", "rolled_back", "quarantined"}
    assert set(UPDATING) == names - settled


def test_the_api_process_loads_no_heavy_library() -> None:
    heavy = "('torch', 'mlflow', 'evidently', 'flwr', 'scipy.stats', 'sklearn', 'pandas', 'onnxruntime', 'paho')"
    code = f"import sys, skerry_server.api.process; print([name for name in {heavy} if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert result.stdout.strip() == "[]"
