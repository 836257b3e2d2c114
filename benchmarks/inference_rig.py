"""What ``inference.py`` and its parts share: networks, a device that serves them, clients of each door, bare echoes."""

from __future__ import annotations

import hashlib
import http.client
import json
import mmap
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
from typing import Any, Literal

import grpc
import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from onnx import TensorProto, helper, numpy_helper

from skerry_agent.config import AgentLayout
from skerry_agent.update.slots import MANIFEST, Pointer, slot_folder, write_pointer
from skerry_contract.histogram import build_edges
from skerry_contract.manifest import bundle_digest, describe_folder
from skerry_contract.oip import open_inference_pb2 as oip
from skerry_contract.signing import RELEASE, Ed25519Signer
from skerry_contract.tensors import encode_tensor
from skerry_contract.v1.common_pb2 import TensorSpec
from skerry_contract.v1.release_pb2 import GoldenOutputs, GoldenSet, ReleaseManifest, Variant
from skerry_contract.v1.telemetry_pb2 import HistogramEdges

Floats = npt.NDArray[np.float32]
Call = Callable[[], Floats | None]
FEATURES = 10
CLASSES = tuple(f"class-{index}" for index in range(6))
HERE = Path(__file__).resolve().parent
_SIGNER = Ed25519Signer(Ed25519PrivateKey.generate())


@dataclass(frozen=True)
class Network:
    """A network to serve.

    Attributes:
        name: In the table.
        shape: Of one input row.
        onnx: The graph: scores [B, 6] and features [B, 10].
    """

    name: str
    shape: tuple[int, ...]
    onnx: bytes


def session_of(network: Network) -> Any:
    """onnxruntime alone, with the engine's settings."""
    options: Any = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return onnxruntime.InferenceSession(network.onnx, sess_options=options, providers=["CPUExecutionProvider"])


def grpc_call(port: int, method: str, x: Floats) -> Callable[[], Floats | None]:
    """A client of a gRPC door, or of the echo."""
    request = oip.ModelInferRequest(model_name="bench", raw_input_contents=[x.tobytes()])
    request.inputs.add(name="input", datatype="FP32", shape=x.shape)
    channel = grpc.insecure_channel(f"127.0.0.1:{port}")
    stub = channel.unary_unary(f"/inference.GRPCInferenceService/{method}")

    def call() -> Floats | None:
        reply = stub(request.SerializeToString(), timeout=20)
        if method == "Echo":
            return None
        return np.frombuffer(oip.ModelInferResponse.FromString(reply).raw_output_contents[0], dtype=np.float32)[None]

    return call


class CClient:
    """``shared_memory_client.c``: the shared-memory door as a C application sees it.

    Raises:
        OSError, subprocess.CalledProcessError: There is no compiler, or it refuses the program.
    """

    def __init__(self, folder: Path, data_dir: Path, x: Floats) -> None:
        agent, program, row = HERE.parent / "edge_agent" / "include", folder / "shared-memory-client", folder / "row"
        sources = [HERE / "shared_memory_client.c", agent / "skerry.c"]
        command: list[str | Path] = ["gcc", "-O2", "-std=c99", "-I", agent, "-o", program, *sources]
        subprocess.run(command, check=True, capture_output=True)
        row.write_bytes(x.tobytes())
        pipe = subprocess.PIPE
        self._process = subprocess.Popen([program, data_dir, row], stdin=pipe, stdout=pipe, text=True)
        self.scores = np.array(self._line(), dtype=np.float32)[np.newaxis]

    def turn(self, requests: int) -> list[float]:
        """Microseconds of each of so many requests, the copy of the input included."""
        return self._turn(f"{requests}\n")

    def turn_in_place(self, requests: int) -> list[float]:
        """The same for an input that lies in the shared memory already."""
        return self._turn(f"{requests} in place\n")

    def _turn(self, line: str) -> list[float]:
        assert self._process.stdin is not None
        self._process.stdin.write(line)
        self._process.stdin.flush()
        return [nanoseconds / 1000 for nanoseconds in self._line()]

    def _line(self) -> list[float]:
        assert self._process.stdout is not None
        return [float(word) for word in self._process.stdout.readline().split()]

    def __enter__(self) -> CClient:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()


def poster(port: int) -> Callable[[str, bytes | str, Mapping[str, str]], tuple[Mapping[str, str], bytes]]:
    """Posts over one connection, which is opened again if the server closed it while others were asked."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)

    def once(path: str, body: bytes | str, headers: Mapping[str, str]) -> tuple[Mapping[str, str], bytes]:
        connection.request("POST", path, body, headers)
        response = connection.getresponse()
        return {name.lower(): value for name, value in response.getheaders()}, response.read()

    def post(path: str, body: bytes | str, headers: Mapping[str, str]) -> tuple[Mapping[str, str], bytes]:
        try:
            return once(path, body, headers)
        except (ConnectionError, http.client.HTTPException):
            connection.close()
            return once(path, body, headers)

    return post


def json_call(port: int, x: Floats) -> Callable[[], Floats]:
    """A client of an HTTP door in JSON form."""
    post = poster(port)

    def call() -> Floats:
        entry = {"name": "input", "datatype": "FP32", "shape": x.shape, "data": x.ravel().tolist()}
        outputs = json.loads(post("/v2/models/bench/infer", json.dumps({"inputs": [entry]}), {})[1])["outputs"]
        return np.array(outputs[0]["data"], dtype=np.float32)[np.newaxis]

    return call


def http_call(port: int, x: Floats, *, echo: bool = False) -> Callable[[], Floats | None]:
    """A client of an HTTP door in binary form, or of the echo."""
    entry = {"name": "input", "datatype": "FP32", "shape": x.shape, "parameters": {"binary_data_size": x.nbytes}}
    header = json.dumps({"inputs": [entry], "parameters": {"binary_data_output": True}}).encode()
    post = poster(port)
    headers = {"Inference-Header-Content-Length": str(len(header))}
    body = header + x.tobytes()

    def call() -> Floats | None:
        answered, data = post("/v2/models/bench/infer", body, headers)
        if echo:
            return None
        start = int(answered["inference-header-content-length"])
        return np.frombuffer(data[start : start + 4 * len(CLASSES)], dtype=np.float32)[None]

    return call


def triton_call(port: int, x: Floats) -> Callable[[], Floats | None]:
    """``tritonclient`` on a gRPC door."""
    import tritonclient.grpc

    client: Any = tritonclient.grpc.InferenceServerClient(f"127.0.0.1:{port}")
    tensor: Any = tritonclient.grpc.InferInput("input", list(x.shape), "FP32")

    def call() -> Floats | None:
        tensor.set_data_from_numpy(x)
        scores: Floats = client.infer("bench", [tensor]).as_numpy("scores")
        return scores

    return call


@contextmanager
def serving(command: list[str], layout: AgentLayout) -> Iterator[subprocess.Popen[bytes]]:
    """A serving process whose doors are open."""
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
        try:
            deadline = time.monotonic() + 60
            while not layout.serving_file.exists():
                if process.poll() is not None or time.monotonic() > deadline:
                    raise SystemExit("the serving process did not start")
                time.sleep(0.02)
            yield process
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(20)


def memory_echo_call(number: int, x: Floats) -> Callable[[], Floats | None]:
    """A client of the memory echo: copies the input, rings, waits; gives the scores where it runs a network."""
    descriptor = os.memfd_create("echo")
    os.ftruncate(descriptor, x.nbytes + 4096)
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    connection.connect(f"\0skerry-bench-{number}")
    socket.send_fds(connection, [b"hello"], [descriptor])
    memory = mmap.mmap(descriptor, 0)
    room: Floats = np.ndarray(x.shape, dtype=np.float32, buffer=memory, offset=4096)

    def call() -> Floats | None:
        room[:] = x
        connection.send(b"12345678")
        if connection.recv(8) == b"12345678":
            return None
        return np.frombuffer(memory[: 4 * len(CLASSES)], dtype=np.float32)[None]

    return call


def _serve_memory_echo(network: Path | None) -> None:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listener.bind(f"\0skerry-bench-{os.getpid()}")
    listener.listen()
    print(os.getpid(), flush=True)
    connection, _ = listener.accept()
    _, descriptors, _, _ = socket.recv_fds(connection, 16, 1)
    memory = mmap.mmap(descriptors[0], 0)
    if network is None:
        while connection.recv(8):
            memory[:150] = bytes(150)
            connection.send(b"12345678")
        return
    # The least that a server with a model can do: no copy, no check, no header, no count.
    session = session_of(Network(network.stem, (), network.read_bytes()))
    shape = (1, *session.get_inputs()[0].shape[1:])
    x: Floats = np.ndarray(shape, dtype=np.float32, buffer=memory, offset=4096)
    scores: Floats = np.ndarray((len(CLASSES),), dtype=np.float32, buffer=memory)
    while connection.recv(8):
        scores[:] = session.run(["scores", "features"], {"input": x})[0][0]
        connection.send(b"answered")


@contextmanager
def echo(kind: str, network: Path | None = None) -> Iterator[int]:
    """A bare server; gives its port, or what the memory echo is called, which may run a network."""
    command = [sys.executable, __file__, kind, *([] if network is None else [str(network)])]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        try:
            assert process.stdout is not None
            yield int(process.stdout.readline())
        finally:
            process.kill()


def serve_echo(kind: str, network: Path | None = None) -> None:
    """A bare server that sends the answer's bytes back: what its protocol costs by itself."""
    answer = bytes(150)
    if kind == "grpc":
        from concurrent.futures import ThreadPoolExecutor

        server: Any = grpc.server(ThreadPoolExecutor(1))
        handler = grpc.unary_unary_rpc_method_handler(lambda _request, _context: answer)
        service = grpc.method_handlers_generic_handler("inference.GRPCInferenceService", {"Echo": handler})
        server.add_generic_rpc_handlers((service,))
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        print(port, flush=True)
        server.wait_for_termination()
        return
    if kind == "memory":
        _serve_memory_echo(network)
        return
    import uvicorn

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        while (await receive()).get("more_body"):
            pass
        headers = [(b"content-length", str(len(answer)).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": answer})

    listener = socket.create_server(("127.0.0.1", 0))
    print(listener.getsockname()[1], flush=True)
    server = uvicorn.Server(uvicorn.Config(app, log_level="error", access_log=False, lifespan="off"))
    server.run(sockets=[listener])


def resident_mb(pid: int) -> float:
    """Resident memory of a process (MB)."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def anonymous_mb(pid: int) -> float:
    """Resident memory of a process that is not of files (MB)."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) / 1024


def cnn() -> Network:
    """The 1-D CNN of the notes: 9 channels of 128 samples, 4.6 kB."""
    rng = np.random.default_rng(0)

    def weight(name: str, *shape: int) -> TensorProto:
        return numpy_helper.from_array((rng.normal(size=shape) / np.sqrt(shape[-1] * 8)).astype(np.float32), name)

    nodes = [
        helper.make_node("Conv", ["input", "w1", "b1"], ["c1"], kernel_shape=[5], pads=[2, 2]),
        helper.make_node("Relu", ["c1"], ["r1"]),
        helper.make_node("MaxPool", ["r1"], ["p1"], kernel_shape=[2], strides=[2]),
        helper.make_node("Conv", ["p1", "w2", "b2"], ["c2"], kernel_shape=[5], pads=[2, 2]),
        helper.make_node("Relu", ["c2"], ["r2"]),
        helper.make_node("GlobalAveragePool", ["r2"], ["g"]),
        helper.make_node("Flatten", ["g"], ["flat"]),
    ]
    weights = [weight("w1", 32, 9, 5), weight("b1", 32), weight("w2", 64, 32, 5), weight("b2", 64)]
    return _network("1-D CNN 4.6 kB", (9, 128), nodes, [*weights, weight("w", 64, 6)], 9)


def large() -> Network:
    """A large input with almost no arithmetic: 602 kB, so that moving it is what is measured."""
    nodes = [
        helper.make_node("AveragePool", ["input"], ["a"], kernel_shape=[32, 32], strides=[32, 32]),
        helper.make_node("GlobalAveragePool", ["a"], ["g"]),
        helper.make_node("Flatten", ["g"], ["flat"]),
    ]
    w = np.random.default_rng(0).normal(size=(3, 6)).astype(np.float32)
    return _network("3x224x224 602 kB", (3, 224, 224), nodes, [numpy_helper.from_array(w, "w")], 3)


def _network(name: str, shape: tuple[int, ...], nodes: list[Any], weights: list[Any], channels: int) -> Network:
    spread = np.random.default_rng(1).normal(size=(channels, FEATURES)).astype(np.float32)
    axes = np.arange(2, len(shape) + 1, dtype=np.int64)
    nodes = [
        *nodes,
        helper.make_node("MatMul", ["flat", "w"], ["scores"]),
        helper.make_node("ReduceMean", ["input", "axes"], ["means"], keepdims=0),
        helper.make_node("MatMul", ["means", "spread"], ["features"]),
    ]
    graph = helper.make_graph(
        nodes,
        "bench",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["batch", *shape])],
        [
            helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["batch", len(CLASSES)]),
            helper.make_tensor_value_info("features", TensorProto.FLOAT, ["batch", FEATURES]),
        ],
        [*weights, numpy_helper.from_array(spread, "spread"), numpy_helper.from_array(axes, "axes")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.checker.check_model(model)
    return Network(name, shape, model.SerializeToString())


def edges_of(features: npt.NDArray[np.float64]) -> HistogramEdges:
    """Edges of drift features."""
    return build_edges(
        {f"feature-{index}": features[:, index] for index in range(FEATURES)},
        cells=30,
        classes=CLASSES,
        confidence_edges=np.linspace(0.1, 0.95, 18).tolist(),
        latency_edges=np.geomspace(10, 1e6, 21).tolist(),
        predictions=np.full(len(CLASSES), 10),
    )


def install(network: Network, root: Path) -> AgentLayout:
    """Two enrolled devices with the network as their release; gives the one for the serving process."""
    layouts = [AgentLayout(root / name) for name in ("served", "in-process")]
    for layout in layouts:
        write_slot(layout, network, "a", "bench-1")
        write_pointer(layout, Pointer("a", "bench-1", committed=True))
        config = {
            "device_id": "bench",
            "broker_host": "127.0.0.1",
            "broker_port": 1,
            "broker_data_port": 1,
            "device_api": "https://127.0.0.1:1",
            "superlink_address": "127.0.0.1:1",
            "release_keys": [_SIGNER.public_key.hex()],
        }
        layout.config.write_text(json.dumps(config))
    return layouts[0]


def write_slot(layout: AgentLayout, network: Network, slot: Literal["a", "b"], release_id: str) -> None:
    """Put the network into a slot as a signed release."""
    session = session_of(network)
    x = np.random.default_rng(3).normal(size=(4, *network.shape)).astype(np.float32)
    folder = slot_folder(layout, slot)
    folder.mkdir(parents=True)
    scores, features = session.run(["scores", "features"], {"input": x})
    tensors = [encode_tensor("scores", scores), encode_tensor("features", features)]
    golden = GoldenSet(inputs=[encode_tensor("input", x)], outputs=[GoldenOutputs(variant="fp32", tensors=tensors)])
    edges = edges_of(np.random.default_rng(4).normal(size=(500, FEATURES))).SerializeToString()
    (folder / "infer.onnx").write_bytes(network.onnx)
    (folder / "golden.pb").write_bytes(golden.SerializeToString())
    (folder / "drift_edges.pb").write_bytes(edges)
    manifest = ReleaseManifest(
        release_id=release_id,
        sequence=1,
        task="bench",
        files=list(describe_folder(folder)),
        variants=[Variant(name="fp32", path="infer.onnx", golden_tolerance=1e-4)],
        inputs=[TensorSpec(name="input", dtype="float32", shape=(-1, *network.shape), minimum=-1e3, maximum=1e3)],
        outputs=[
            TensorSpec(name="scores", dtype="float32", shape=(-1, len(CLASSES)), labels=CLASSES),
            TensorSpec(name="features", dtype="float32", shape=(-1, FEATURES)),
        ],
        edges_sha256=hashlib.sha256(edges).digest(),
        scores_output="scores",
        features_output="features",
    )
    manifest.bundle_sha256 = bundle_digest(manifest.files)
    envelope = _SIGNER.sign(RELEASE, manifest.SerializeToString())
    (folder / MANIFEST).write_bytes(envelope.SerializeToString())


if __name__ == "__main__":
    serve_echo(sys.argv[1], *map(Path, sys.argv[2:]))
