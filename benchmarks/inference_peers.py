"""Peers of the serving process: the same ONNX file and the same rows through other servers.

``python benchmarks/inference.py --peers`` prints them beside our doors. Each peer is a process of its own with its
documented way of serving an ONNX model and the engine's session settings. FastAPI and MLflow come with the development
install; LitServe has a virtual environment of its own, which is made on demand in a cache folder
(``SKERRY_CACHE_DIR``, otherwise the user's cache) under our constraints. A peer that cannot be installed or started is
named with the reason, never left out in silence.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from inference_rig import Call, Floats, Network, poster

ROOT = Path(__file__).resolve().parents[1]
START_SECONDS = 120.0
INSTALL_SECONDS = 900.0

_SESSION = """
import numpy as np, onnxruntime, os
_o = onnxruntime.SessionOptions()
_o.intra_op_num_threads = _o.inter_op_num_threads = 1
_o.add_session_config_entry("session.intra_op.allow_spinning", "0")
session = onnxruntime.InferenceSession(os.environ["MODEL"], sess_options=_o, providers=["CPUExecutionProvider"])
shape = tuple(int(n) for n in os.environ["SHAPE"].split(","))
port = int(os.environ["PORT"])
"""
_FASTAPI = (
    _SESSION
    + """
import uvicorn
from fastapi import FastAPI, Request, Response
from pydantic import BaseModel

class Rows(BaseModel):
    inputs: list

app = FastAPI()

@app.post("/json")
def infer_json(rows: Rows):
    scores = session.run(["scores"], {"input": np.array(rows.inputs, dtype=np.float32).reshape(-1, *shape)})[0]
    return {"scores": scores.tolist()}

@app.post("/binary")
async def infer_binary(request: Request):
    x = np.frombuffer(await request.body(), dtype=np.float32).reshape(-1, *shape)
    return Response(session.run(["scores"], {"input": x})[0].tobytes(), media_type="application/octet-stream")

uvicorn.run(app, host="127.0.0.1", port=port, log_level="error", access_log=False)
"""
)
_LITSERVE = """
import litserve
class Api(litserve.LitAPI):
    def setup(self, device):
        scope = {}
        exec(SESSION, scope)
        self.session, self.shape, self.np = scope["session"], scope["shape"], scope["np"]
    def decode_request(self, request):
        return self.np.array(request["inputs"], dtype=self.np.float32).reshape(-1, *self.shape)
    def predict(self, x):
        return self.session.run(["scores"], {"input": x})[0]
    def encode_response(self, scores):
        return {"scores": scores.tolist()}
if __name__ == "__main__":
    import os
    server = litserve.LitServer(Api(), accelerator="cpu", workers_per_device=1)
    server.run(host="127.0.0.1", port=int(os.environ["PORT"]), log_level="error", generate_client_file=False)
"""


class PeerMissing(Exception):
    """A peer that cannot be run here; says why."""


@dataclass(frozen=True)
class Peer:
    """A peer that runs.

    Attributes:
        name: In the table.
        call: Asks for one row; gives scores [1, classes].
        form: "JSON" or "binary": compared with our HTTP door in the same form.
    """

    name: str
    call: Call
    form: str


@contextmanager
def fastapi(network: Network, x: Floats, folder: Path) -> Iterator[list[Peer]]:
    """Bare FastAPI on uvicorn: a JSON route as its documentation has it, and a route for raw bytes."""
    script = folder / "fastapi_peer.py"
    script.write_text(_FASTAPI)
    with _running([sys.executable, str(script)], network, folder) as port:
        yield [
            Peer("FastAPI, JSON", _json_call(port, "/json", x, "scores"), "JSON"),
            Peer("FastAPI, raw bytes", _binary_call(port, "/binary", x), "binary"),
        ]


@contextmanager
def mlflow(network: Network, x: Floats, folder: Path) -> Iterator[list[Peer]]:
    """``mlflow models serve`` of an ONNX model."""
    import mlflow.onnx
    import onnx

    model = folder / "mlflow-model"
    mlflow.onnx.save_model(onnx.load_from_string(network.onnx), str(model), pip_requirements=[])
    program = str(Path(sys.executable).with_name("mlflow"))
    command = [
        program,
        "models",
        "serve",
        "-m",
        str(model),
        "-h",
        "127.0.0.1",
        "--env-manager",
        "local",
        "--workers",
        "1",
    ]
    with _running(command, network, folder, port_option="-p") as port:
        yield [Peer("mlflow models serve, JSON", _json_call(port, "/invocations", x, "predictions"), "JSON")]


@contextmanager
def litserve(network: Network, x: Floats, folder: Path) -> Iterator[list[Peer]]:
    """LitServe with one worker."""
    script = folder / "litserve_peer.py"
    script.write_text(f"SESSION = {_SESSION!r}\n{_LITSERVE}")
    python = _environment("litserve", ["litserve", "onnxruntime", "numpy"])
    with _running([str(python), str(script)], network, folder) as port:
        yield [Peer("LitServe, JSON", _json_call(port, "/predict", x, "scores"), "JSON")]


#: All peers by name.
PEERS: Mapping[str, Callable[[Network, Floats, Path], Any]] = {
    "FastAPI": fastapi,
    "MLflow": mlflow,
    "LitServe": litserve,
}


def _environment(name: str, packages: list[str]) -> Path:
    """The Python of a virtual environment with the packages, made if it is not there; raises PeerMissing."""
    base = (
        os.environ.get("SKERRY_CACHE_DIR") or Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "skerry"
    )
    folder = Path(base) / "peers" / name
    python, done = folder / "bin" / "python", folder / ".installed"
    if done.exists():
        return python
    command = [str(python), "-m", "pip", "install", "-q", "--disable-pip-version-check"]
    try:
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True, capture_output=True)
        subprocess.run(
            [*command, "-c", str(ROOT / "constraints.txt"), *packages],
            check=True,
            capture_output=True,
            timeout=INSTALL_SECONDS,
        )
    except subprocess.CalledProcessError as error:
        raise PeerMissing(f"pip: {error.stderr.decode()[-200:].strip()}") from error
    except subprocess.TimeoutExpired as error:
        raise PeerMissing(f"pip did not come to an end within {INSTALL_SECONDS:g} s") from error
    done.touch()
    return python


@contextmanager
def _running(command: list[str], network: Network, folder: Path, *, port_option: str = "") -> Iterator[int]:
    """A server in a process group of its own; gives its port once it listens."""
    (folder / "model.onnx").write_bytes(network.onnx)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
    environment = {
        **os.environ,
        "PATH": os.pathsep.join([str(Path(command[0]).parent), os.environ["PATH"]]),
        "MODEL": str(folder / "model.onnx"),
        "SHAPE": ",".join(map(str, network.shape)),
        "PORT": str(port),
    }
    command = [*command, port_option, str(port)] if port_option else command
    log = folder / f"peer-{port}.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=output, env=environment, cwd=folder, start_new_session=True
        )
    try:
        deadline = time.monotonic() + START_SECONDS
        while not _listens(port):
            if process.poll() is not None or time.monotonic() > deadline:
                raise PeerMissing(f"did not start: {log.read_text(errors='replace')[-300:].strip()}")
            time.sleep(0.1)
        yield port
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _json_call(port: int, path: str, x: Floats, key: str) -> Call:
    post = poster(port)
    headers = {"Content-Type": "application/json"}

    def call() -> Floats:
        body = json.dumps({"inputs": x.tolist()})  # what a client has is an array
        found = json.loads(post(path, body, headers)[1])[key]
        return np.array(found["scores"] if isinstance(found, dict) else found, dtype=np.float32)

    return _eventually(call)


def _binary_call(port: int, path: str, x: Floats) -> Call:
    post = poster(port)

    def call() -> Floats:
        return np.frombuffer(post(path, x.tobytes(), {})[1], dtype=np.float32)[np.newaxis]

    return _eventually(call)


def _eventually(call: Callable[[], Floats]) -> Callable[[], Floats]:
    """The call, once it has worked: a server that listens may still load its model."""
    deadline = time.monotonic() + START_SECONDS
    while True:
        try:
            call()
        except (OSError, http.client.HTTPException, ValueError, KeyError) as error:
            if time.monotonic() > deadline:
                raise PeerMissing(f"does not answer: {error!r}") from error
            time.sleep(0.2)
            continue
        return call
