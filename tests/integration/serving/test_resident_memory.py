"""What control and serving hold, measured on real processes; and what they import."""

from __future__ import annotations

import http.client
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import ExitStack, closing
from pathlib import Path

import numpy as np
import pytest
import tritonclient.grpc

from integration.control.control_plane import ControlPlane
from integration.control.device import enrolled
from integration.engine.tiny_bundle import TinyRelease
from integration.link.broker import Broker
from skerry_agent.supervisor import agent_children
from skerry_agent.update.slots import MANIFEST
from skerry_contract.v1.common_pb2 import SignedEnvelope
from skerry_contract.v1.device_pb2 import UPDATE_STATUS_COMMITTED
from unit.update.releases import SIGNER, MadeRelease, make_desired

#: Bar of both together (bytes).
LIMIT = 150 << 20
#: Libraries that a process of the agent does without; each was 1 to 20 MB of it.
UNWANTED = {
    "skerry_agent.control.process": (
        "numpy", "grpc", "onnxruntime", "typer", "rich", "click", "requests", "tuf", "prometheus_client", "uvicorn",
        "starlette", "pydantic", "flwr", "asyncio",
    ),
    "skerry_agent.serving.process": (
        "prometheus_client", "typer", "rich", "requests", "tuf", "paho", "pydantic", "fastapi", "flwr", "onnx", "scipy",
        "torch", "jtop", "grpc",
    ),
}  # fmt: skip


@pytest.mark.parametrize("module", UNWANTED)
def test_a_process_imports_nothing_that_it_does_without(module: str) -> None:
    code = f"import sys, {module}; print(*sorted(m for m in {UNWANTED[module]} if m in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.split() == []


def resident(pid: int) -> int:
    """Resident bytes of a process."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def start(stack: ExitStack, root: Path, name: str) -> int:
    """A process as the supervisor starts it, without the supervisor; its process id."""
    spec = next(spec for spec in agent_children(root) if spec.name == name)
    with (root / f"{name}.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, *spec.arguments], env=os.environ | dict(spec.environment), stdout=log, stderr=log
        )
    stack.callback(process.wait, 30)
    stack.callback(process.terminate)
    return process.pid


def made(release: TinyRelease, folder: Path) -> MadeRelease:
    """A release as the control plane hands it out."""
    manifest = release.write(folder)
    files = {entry.path: (folder / entry.path).read_bytes() for entry in manifest.files}
    return MadeRelease(files, manifest, SignedEnvelope.FromString((folder / MANIFEST).read_bytes()))


@pytest.mark.soak
def test_control_and_serving_hold_150_mb_after_an_update_and_a_thousand_requests(
    tmp_path: Path, wait_until: Callable[..., None]
) -> None:
    """Control has verified signed metadata and taken a release over MQTT; serving has answered on two doors."""
    release = made(TinyRelease(variants={"fp32": 0.0}, signer=SIGNER), tmp_path / "bundle")
    body = {"inputs": [{"name": "input", "datatype": "FP32", "shape": [1, 2, 3], "data": [0.5] * 6}]}
    with ExitStack() as stack:
        broker = Broker(tmp_path / "broker")
        stack.callback(broker.stop)
        broker.start()
        plane = ControlPlane(broker.port, release.by_digest)
        plane.start()
        stack.callback(plane.stop)
        short = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="sk-")))
        layout = enrolled(short / "d", broker)
        pids = [start(stack, layout.root, name) for name in ("serving", "control")]
        wait_until(plane.online, what="presence", seconds=60.0)
        plane.desire(make_desired(1, release))
        wait_until(
            lambda: plane.reported().update_status == UPDATE_STATUS_COMMITTED,
            what="the release is committed",
            seconds=300.0,
        )
        ports = json.loads(layout.serving_file.read_text())
        with closing(http.client.HTTPConnection("127.0.0.1", ports["http_port"], timeout=30)) as web:
            for method, path, sent in [("POST", "/v2/models/tiny/infer", json.dumps(body))] * 500 + [
                ("GET", "/metrics", None)
            ]:
                web.request(method, path, sent)
                reply = web.getresponse()
                assert (reply.status, len(reply.read()) > 0) == (200, True)
        client = tritonclient.grpc.InferenceServerClient(f"127.0.0.1:{ports['grpc_port']}")
        tensor = tritonclient.grpc.InferInput("input", [1, 2, 3], "FP32")
        tensor.set_data_from_numpy(np.full((1, 2, 3), 0.5, dtype=np.float32))
        with closing(client):
            for _ in range(500):
                client.infer("tiny", [tensor])
        held = [resident(pid) for pid in pids]
    assert sum(held) <= LIMIT, held
