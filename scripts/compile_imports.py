"""Compile what Skerry's programs import, by importing it on every core; the rest is compiled when it is first used.

pip would compile every file of every package, four fifths of which nobody imports, on one core.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time

#: Longest time that importing may take (seconds); it takes half a minute.
DEADLINE_S = 600.0
#: Programs that run side by side, so that each takes about as long as the others.
SHARES = (
    "torch torch.onnx torch._dynamo onnxscript onnx onnxruntime sklearn.ensemble skerry_models.task",
    "mlflow mlflow.server evidently ray flwr.server flwr.simulation flwr.supernode matplotlib.figure scipy.stats",
    "skerry_server.cli.main skerry_server.api.app skerry_simulation.cli skerry_agent.serving.process skerry_gateway",
)
IMPORT = """
import contextlib, importlib, sys
for name in sys.argv[1:]:
    with contextlib.suppress(Exception):  # it is only about speed: what is missing is said by whoever needs it
        importlib.import_module(name)
"""


def main() -> None:
    """Import every share in a process of its own."""
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": ""}
    command = [sys.executable, "-W", "ignore", "-c", IMPORT]
    shares = [
        subprocess.Popen(
            [*command, *share.split()], env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        for share in SHARES
    ]
    until = time.monotonic() + DEADLINE_S
    for share in shares:
        try:
            share.wait(max(0.0, until - time.monotonic()))
        except subprocess.TimeoutExpired:
            share.kill()
            share.wait()


if __name__ == "__main__":
    main()
