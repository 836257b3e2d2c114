"""The agent never imports torch, nor anything else that has no place on a device."""

from __future__ import annotations

import subprocess
import sys

import pytest

FORBIDDEN = (
    "torch", "mlflow", "evidently", "sklearn", "pandas", "onnx", "ray", "matplotlib", "scipy",
    "skerry_models", "skerry_server", "skerry_simulation",
)  # fmt: skip


@pytest.mark.parametrize(
    ("modules", "also"),
    [
        ("skerry_agent.cli, skerry_agent.supervisor", ("fastapi", "numpy", "onnxruntime", "flwr", "grpc")),
        ("skerry_agent.control.process", ("fastapi", "onnxruntime", "flwr")),
        (
            "skerry_agent.serving.process, skerry_agent.engine.engine, skerry_agent.engine.prove",
            ("fastapi", "flwr", "paho"),
        ),
        # Flower's own Fleet client imports fastapi.
        ("skerry_agent.training.process, skerry_agent.training.flower_node", ("paho",)),
    ],
)
def test_a_fresh_process_of_the_agent_stays_light(modules: str, also: tuple[str, ...]) -> None:
    code = f"import sys, {modules}; print(sorted({{m.split('.')[0] for m in sys.modules}}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    loaded = set(eval(done.stdout))
    assert not loaded & {*FORBIDDEN, *also}
