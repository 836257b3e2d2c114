"""The API process loads no numerics library, no training and no Flower: it starts fast and stays small."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

FORBIDDEN = {
    "scipy", "torch", "mlflow", "flwr", "evidently", "sklearn", "pandas", "onnx", "onnxruntime", "matplotlib", "ray",
    "paho", "skerry_agent", "skerry_simulation",
}  # fmt: skip


@pytest.mark.parametrize("module", ["skerry_server.api.app", "skerry_server.api.process"])
def test_a_fresh_process_of_the_api_stays_light(module: str) -> None:
    code = f"import json, sys, {module}; print(json.dumps(sorted({{name.split('.')[0] for name in sys.modules}})))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    loaded = set(json.loads(done.stdout))
    assert "fastapi" in loaded
    assert not loaded & FORBIDDEN
