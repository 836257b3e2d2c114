"""Peers of the serving process: the same ONNX file and the same rows through other servers.

``python benchmarks/inference.py --peers`` prints them beside our doors. Each peer is a process of its own with its
documented way of serving an ONNX model and the engine's session settings. FastAPI and MLflow come with the development
install; LitServe, BentoML and MLServer have virtual environments of their own, which are made on demand in a cache
folder (``SKERRY_CACHE_DIR``, otherwise the user's cache). A peer that cannot be installed or started is
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

from inference_rig import Call, Floats, Network, json_call, poster
from skerry_server.ports import free_ports

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
_BENTOML = (
    _SESSION
    + """
import bentoml

@bentoml.service(workers=1)
class Bench:
    @bentoml.api
    def predict(self, inputs: np.ndarray) -> np.ndarray:
        return session.run(["scores"], {"input": inputs.astype(np.float32).reshape(-1, *shape)})[0]
"""
)
_MLSERVER = (
    _SESSION
    + """
from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceResponse

class Bench(MLModel):
    async def load(self):
        return True

    async def predict(self, payload):
        x = NumpyCodec.decode_input(payload.inputs[0]).astype(np.float32).reshape(-1, *shape)
        scores = session.run(["scores"], {"input": x})[0]
        return InferenceResponse(model_name=self.name, outputs=[NumpyCodec.encode_output("scores", scores)])
"""
)


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
    python = _environment("litserve", ["litserve", "onnxruntime", "numpy"], constrained=True)
    with _running([str(python), str(script)], network, folder) as port:
        yield [Peer("LitServe, JSON", _json_call(port, "/predict", x, "scores"), "JSON")]


@contextmanager
def bentoml(network: Network, x: Floats, folder: Path) -> Iterator[list[Peer]]:
    """``bentoml serve`` of a service with one worker."""
    (folder / "service.py").write_text(_BENTOML)
    python = _environment("bentoml", ["bentoml", "onnxruntime", "numpy"])
    command = [str(python), "-m", "bentoml", "serve", "service:Bench", "--host", "127.0.0.1"]
    with _running(command, network, folder, port_option="--port") as port:
        yield [Peer("BentoML, JSON", _json_call(port, "/predict", x, ""), "JSON")]


@contextmanager
def mlserver(network: Network, x: Floats, folder: Path) -> Iterator[list[Peer]]:
    """``mlserver start`` of a runtime of its own, as MLServer's guide to custom runtimes has it."""
    (folder / "runtime.py").write_text(_MLSERVER)
    # No worker processes: its own do not start with a new uvloop, and without them a request is faster.
    grpc_port, metrics_port = free_ports("127.0.0.1", 2)
    settings = {"host": "127.0.0.1", "parallel_workers": 0, "grpc_port": grpc_port, "metrics_port": metrics_port}
    (folder / "settings.json").write_text(json.dumps(settings))
    (folder / "model-settings.json").write_text(json.dumps({"name": "bench", "implementation": "runtime.Bench"}))
    python = _environment("mlserver", ["mlserver", "onnxruntime", "numpy"])
    command = [str(python.with_name("mlserver")), "start", "."]
    with _running(command, network, folder, port_variable="MLSERVER_HTTP_PORT") as port:
        yield [Peer("MLServer, JSON", _eventually(json_call(port, x)), "JSON")]


#: All peers by name.
PEERS: Mapping[str, Callable[[Network, Floats, Path], Any]] = {
    "FastAPI": fastapi,
    "MLflow": mlflow,
    "LitServe": litserve,
    "BentoML": bentoml,
    "MLServer": mlserver,
}


def _environment(name: str, packages: list[str], *, constrained: bool = False) -> Path:
    """The Python of a virtual environment with the packages, made if it is not there; raises PeerMissing.

    Args:
        name: Of the environment.
        packages: What to install.
        constrained: Whether in our versions; a peer that needs other ones gets those it asks for.
    """
    base = (
        os.environ.get("SKERRY_CACHE_DIR") or Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "skerry"
    )
    folder = Path(base) / "peers" / name
    python, done = folder / "bin" / "python", folder / ".installed"
    if done.exists():
        return python
    command = [str(python), "-m", "pip", "install", "-q", "--disable-pip-version-check", *packages]
    if constrained:
        command += ["-c", str(ROOT / "constraints.txt")]
    try:
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True, capture_output=True)
        subprocess.run(
            command,
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
def _running(
    command: list[str], network: Network, folder: Path, *, port_option: str = "", port_variable: str = "PORT"
) -> Iterator[int]:
    """A server in a process group of its own; gives its port once it listens."""
    (folder / "model.onnx").write_bytes(network.onnx)
    (port,) = free_ports("127.0.0.1", 1)
    environment = {
        **os.environ,
        "PATH": os.pathsep.join([str(Path(command[0]).parent), os.environ["PATH"]]),
        "MODEL": str(folder / "model.onnx"),
        "SHAPE": ",".join(map(str, network.shape)),
        "PORT": str(port),
        "DO_NOT_TRACK": "1",
        "BENTOML_DO_NOT_TRACK": "True",
        port_variable: str(port),
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
        answer = json.loads(post(path, body, headers)[1])
        found = answer[key] if key else answer
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
