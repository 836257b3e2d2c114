"""What the engine and its doors cost over the bare runtime, on this machine.

``python benchmarks/inference.py [--json FILE] [--rounds N]``

Every contender answers the same requests in turns (interleaved), so that a busy machine hurts all alike. Contenders:

- ``session.run``: onnxruntime alone, with the engine's session settings: the limit;
- the engine in process; the gRPC and the HTTP door of a real serving process; tritonclient on the gRPC door;
- a bare gRPC server and a bare ASGI application in processes of their own that send the answer's bytes back: what the
  protocols cost by themselves.

Correctness first: before anything is timed, every contender's scores must equal those of ``session.run``.
"""

from __future__ import annotations

import argparse
import hashlib
import http.client
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import grpc
import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from onnx import TensorProto, helper, numpy_helper

from skerry_agent import Engine
from skerry_agent.config import AgentLayout
from skerry_agent.drift.accumulator import DriftAccumulator, WindowLimits, WindowNumbers
from skerry_agent.update.slots import MANIFEST, Pointer, slot_folder, write_pointer
from skerry_contract.histogram import build_edges
from skerry_contract.manifest import bundle_digest, describe_folder
from skerry_contract.oip import open_inference_pb2 as oip
from skerry_contract.signing import RELEASE, Ed25519Signer
from skerry_contract.tensors import encode_tensor
from skerry_contract.v1.common_pb2 import TensorSpec
from skerry_contract.v1.release_pb2 import GoldenOutputs, GoldenSet, ReleaseManifest, Variant
from skerry_contract.v1.telemetry_pb2 import DriftReport, HistogramEdges, UplinkMessage

Floats = npt.NDArray[np.float32]
FEATURES = 10
CLASSES = tuple(f"class-{index}" for index in range(6))
WARM_UP = 50
PER_TURN = 50


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


@dataclass
class Row:
    """One line of the result."""

    what: str
    unit: str
    ours: float
    beside: dict[str, float]
    ratio: float | None
    goal: str
    holds: bool | None
    details: dict[str, float] = field(default_factory=dict)


def main() -> None:
    """Run, print the table, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="write the result here")
    parser.add_argument("--rounds", type=int, default=20, help="turns of 50 requests per contender")
    parser.add_argument("--echo", choices=("grpc", "http"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.echo:
        _serve_echo(arguments.echo)
        return
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="skerry-bench-") as folder:
        for index, network in enumerate((_cnn(), _large())):
            rows += _bench_network(network, Path(folder) / str(index), arguments.rounds)
    rows += _bench_drift()
    result = {
        "name": "inference",
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {platform.system()} {platform.release()}",
        "versions": {
            "python": platform.python_version(),
            "onnxruntime": onnxruntime.__version__,
            "grpcio": grpc.__version__,
        },
        "load": os.getloadavg()[0],
        "rows": [row.__dict__ for row in rows],
    }
    _print_table(result, rows)
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=2) + "\n")


def _bench_network(network: Network, root: Path, rounds: int) -> list[Row]:
    layout = _install(network, root)
    x = np.random.default_rng(0).normal(size=(1, *network.shape)).astype(np.float32)
    session = _session(network)
    with ExitStack() as stack:
        engine = stack.enter_context(Engine.open(root / "in-process"))
        doors = stack.enter_context(_child([sys.executable, "-m", "skerry_agent.serving", str(layout.root)], layout))
        ports = json.loads(layout.serving_file.read_text())
        grpc_echo = stack.enter_context(_echo("grpc"))
        http_echo = stack.enter_context(_echo("http"))
        contenders: dict[str, Callable[[], Floats | None]] = {
            "session.run": lambda: session.run(["scores", "features"], {"input": x})[0],
            "engine": lambda: engine.infer(x).scores,
            "gRPC door": _grpc_call(ports["grpc_port"], "ModelInfer", x),
            "gRPC echo": _grpc_call(grpc_echo, "Echo", x),
            "HTTP door": _http_call(ports["http_port"], x),
            "HTTP echo": _http_call(http_echo, x, echo=True),
            "tritonclient gRPC": _triton_call(ports["grpc_port"], x),
        }
        wanted: Floats = session.run(["scores"], {"input": x})[0]
        for name, call in contenders.items():
            got = call()
            if got is not None and not np.allclose(got, wanted, atol=1e-5):
                raise SystemExit(f"{network.name}: {name} gives other scores than session.run")
        times = _interleave(contenders, rounds)
        rss = _resident(doors.pid)
    return _network_rows(network.name, times, rss)


def _network_rows(network: str, times: dict[str, list[list[float]]], rss: float) -> list[Row]:
    p50 = {name: statistics.median(_percentiles(turns, 50)) for name, turns in times.items()}
    p99 = {name: float(np.percentile(np.concatenate(turns), 99)) for name, turns in times.items()}
    run = p50["session.run"]
    base = _percentiles(times["session.run"], 50)
    # Median over the turns of the difference within a turn: what else the machine does cancels out.
    over = {
        name: statistics.median(np.subtract(_percentiles(turns, 50), base).tolist()) for name, turns in times.items()
    }
    spread = {name: float(np.ptp(_percentiles(turns, 50))) for name, turns in times.items()}

    def row(what: str, name: str, goal: str, holds: bool | None, *limits: str) -> Row:
        beside = {limit: p50[limit] for limit in limits}
        details = {"over session.run": over[name], "p99": p99[name], "spread of p50": spread[name]}
        return Row(f"{network}: {what}", "us p50", p50[name], beside, p50[name] / run, goal, holds, details)

    return [
        row("engine in process", "engine", "<= 5 us over session.run", over["engine"] <= 5, "session.run"),
        row(
            "gRPC door", "gRPC door", "<= 500 us over session.run", over["gRPC door"] <= 500, "session.run", "gRPC echo"
        ),
        row("HTTP door, binary", "HTTP door", "none", None, "session.run", "HTTP echo"),
        row("tritonclient, gRPC door", "tritonclient gRPC", "none", None, "session.run", "gRPC echo"),
        # Control is not started here, so this row can only show that the budget is missed, not that it is kept.
        Row(
            f"{network}: serving process alone",
            "MB RSS",
            rss,
            {},
            None,
            "<= 150 with control",
            False if rss > 150 else None,
        ),
    ]


def _bench_drift() -> list[Row]:
    """Cost of counting a request of ten features, and the size of a report of a full window."""
    rng = np.random.default_rng(2)
    reports: list[DriftReport] = []
    accumulator = DriftAccumulator(
        release_id="release-0123456789ab",
        edges=_edges(rng.normal(size=(5000, FEATURES))),
        edges_sha256=bytes(32),
        limits=WindowLimits(1000, 3600.0),
        numbers=WindowNumbers("0123456789abcdef"),
        emit=reports.append,
    )
    features = rng.normal(size=(1, FEATURES)).astype(np.float32)
    scores = rng.normal(size=(1, len(CLASSES))).astype(np.float32)
    block = np.empty((256, FEATURES), dtype=np.float32)

    def record() -> None:
        accumulator.record(features, scores, 100.0)

    def copy() -> None:
        block[0] = features[0]

    # Turns of 1,024 requests, so that every turn has its share of counting full blocks.
    turns = {name: [_mean_micros(call, 1024) for _ in range(20)] for name, call in (("ours", record), ("copy", copy))}
    micros, copy_micros = statistics.median(turns["ours"]), statistics.median(turns["copy"])
    spread = rng.normal(size=(1000, FEATURES)).astype(np.float32)
    reports.clear()
    for start in range(0, 1000, 50):
        part = spread[start : start + 50]
        accumulator.record(part, rng.normal(size=(50, len(CLASSES))).astype(np.float32), 100.0)
    size = UplinkMessage(
        device_id="device-0001", outbox_id="0123456789abcdef", sequence=1, drift=reports[-1]
    ).ByteSize()
    return [
        Row(
            "drift: one request of 10 features, all costs spread",
            "us",
            micros,
            {"copy of the features": copy_micros},
            micros / copy_micros,
            "<= 5 us",
            micros <= 5,
        ),
        Row("drift: report of 10 features", "bytes", size, {}, None, "<= 1024 bytes", size <= 1024),
    ]


def _mean_micros(call: Callable[[], None], times: int) -> float:
    started = time.perf_counter()
    for _ in range(times):
        call()
    return (time.perf_counter() - started) / times * 1e6


def _interleave(contenders: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, list[list[float]]]:
    """Microseconds per call, by turn."""
    times: dict[str, list[list[float]]] = {name: [] for name in contenders}
    for call in contenders.values():
        for _ in range(WARM_UP):
            call()
    for _ in range(rounds):
        for name, call in contenders.items():
            turn = []
            for _ in range(PER_TURN):
                started = time.perf_counter_ns()
                call()
                turn.append((time.perf_counter_ns() - started) / 1000)
            times[name].append(turn)
    return times


def _percentiles(turns: list[list[float]], percentile: float) -> list[float]:
    return [float(np.percentile(turn, percentile)) for turn in turns]


def _print_table(result: dict[str, Any], rows: list[Row]) -> None:
    print(f"inference on {result['machine']}, load {result['load']:.1f}")
    print(f"{'what':52} {'ours':>9} {'unit':7} {'ratio':>6}  {'goal':32} holds  beside")
    for row in rows:
        ratio = "" if row.ratio is None else f"{row.ratio:.2f}"
        holds = "" if row.holds is None else "yes" if row.holds else "NO"
        extra = {**row.beside, **row.details}
        beside = ", ".join(f"{name} {value:.1f}" for name, value in extra.items())
        print(f"{row.what:52} {row.ours:9.1f} {row.unit:7} {ratio:>6}  {row.goal:32} {holds:5}  {beside}")


def _session(network: Network) -> Any:
    options: Any = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return onnxruntime.InferenceSession(network.onnx, sess_options=options, providers=["CPUExecutionProvider"])


def _grpc_call(port: int, method: str, x: Floats) -> Callable[[], Floats | None]:
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


def _http_call(port: int, x: Floats, *, echo: bool = False) -> Callable[[], Floats | None]:
    entry = {"name": "input", "datatype": "FP32", "shape": x.shape, "parameters": {"binary_data_size": x.nbytes}}
    header = json.dumps({"inputs": [entry], "parameters": {"binary_data_output": True}}).encode()
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    headers = {"Inference-Header-Content-Length": str(len(header))}
    body = header + x.tobytes()

    def call() -> Floats | None:
        connection.request("POST", "/v2/models/bench/infer", body, headers)
        response = connection.getresponse()
        data = response.read()
        if echo:
            return None
        start = int(response.headers["Inference-Header-Content-Length"])
        return np.frombuffer(data[start : start + 4 * len(CLASSES)], dtype=np.float32)[None]

    return call


def _triton_call(port: int, x: Floats) -> Callable[[], Floats | None]:
    import tritonclient.grpc

    client: Any = tritonclient.grpc.InferenceServerClient(f"127.0.0.1:{port}")
    tensor: Any = tritonclient.grpc.InferInput("input", list(x.shape), "FP32")

    def call() -> Floats | None:
        tensor.set_data_from_numpy(x)
        scores: Floats = client.infer("bench", [tensor]).as_numpy("scores")
        return scores

    return call


@contextmanager
def _child(command: list[str], layout: AgentLayout) -> Iterator[subprocess.Popen[bytes]]:
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


@contextmanager
def _echo(kind: str) -> Iterator[int]:
    """A bare server; gives its port."""
    command = [sys.executable, __file__, "--echo", kind]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        try:
            assert process.stdout is not None
            yield int(process.stdout.readline())
        finally:
            process.kill()


def _serve_echo(kind: str) -> None:
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
    import socket

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


def _resident(pid: int) -> float:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def _cnn() -> Network:
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


def _large() -> Network:
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


def _edges(features: npt.NDArray[np.float64]) -> HistogramEdges:
    return build_edges(
        {f"feature-{index}": features[:, index] for index in range(FEATURES)},
        cells=30,
        classes=CLASSES,
        confidence_edges=np.linspace(0.1, 0.95, 18).tolist(),
        latency_edges=np.geomspace(10, 1e6, 21).tolist(),
        predictions=np.full(len(CLASSES), 10),
    )


def _install(network: Network, root: Path) -> AgentLayout:
    """Two enrolled devices with the network as their release; gives the one for the serving process."""
    signer = Ed25519Signer(Ed25519PrivateKey.generate())
    layouts = [AgentLayout(root / name) for name in ("served", "in-process")]
    session = _session(network)
    x = np.random.default_rng(3).normal(size=(4, *network.shape)).astype(np.float32)
    for layout in layouts:
        folder = slot_folder(layout, "a")
        folder.mkdir(parents=True)
        scores, features = session.run(["scores", "features"], {"input": x})
        golden = GoldenSet(
            inputs=[encode_tensor("input", x)],
            outputs=[
                GoldenOutputs(
                    variant="fp32", tensors=[encode_tensor("scores", scores), encode_tensor("features", features)]
                )
            ],
        )
        edges = _edges(np.random.default_rng(4).normal(size=(500, FEATURES))).SerializeToString()
        (folder / "infer.onnx").write_bytes(network.onnx)
        (folder / "golden.pb").write_bytes(golden.SerializeToString())
        (folder / "drift_edges.pb").write_bytes(edges)
        manifest = ReleaseManifest(
            release_id="bench-1",
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
        envelope = signer.sign(RELEASE, manifest.SerializeToString())
        (folder / MANIFEST).write_bytes(envelope.SerializeToString())
        write_pointer(layout, Pointer("a", "bench-1", committed=True))
        config = {
            "device_id": "bench",
            "broker_host": "127.0.0.1",
            "broker_port": 1,
            "broker_data_port": 1,
            "device_api": "https://127.0.0.1:1",
            "superlink_address": "127.0.0.1:1",
            "release_keys": [signer.public_key.hex()],
        }
        layout.config.write_text(json.dumps(config))
    return layouts[0]


if __name__ == "__main__":
    main()
