"""Seconds per federated round over a real SuperLink: ours beside stock Flower and beside the bare bytes.

``python benchmarks/federation.py [--json FILE] [--rounds N] [--nodes N] [--no-stock]``

Both run two devices that add one to every parameter, so that a round is nothing but transport, waiting and averaging.
*Ours*: the SuperLink as ``skerry up`` starts it (TLS, registered node keys), the agent's long-lived node, the server's
round loop and streaming mean. *Stock*: ``flower-superlink``, ``flower-supernode`` and Flower's FedAvg as an app, all
without TLS. *Bytes*: the same payload over one loopback TCP connection, in as many directions as a round moves it: the
limit. The first round of each is left out.
Before a figure counts, the averaged model must equal the round's number.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"
os.environ["FLWR_TELEMETRY_ENABLED"] = "0"
os.environ["FLWR_DISABLE_UPDATE_CHECK"] = "1"

import numpy as np

from skerry_agent.config import AgentLayout
from skerry_agent.identity.node_key import node_public_key
from skerry_contract.campaign import TRAIN, EvaluateInstruction, EvaluateReply, TrainInstruction, TrainReply
from skerry_contract.tensors import decode_bundle, encode_bundle
from skerry_server import superlink
from skerry_server.config import ServerConfig, ServerLayout
from skerry_server.fleet.authority import CertificateAuthority, utc_now
from skerry_server.superlink import SuperLinkAccess
from skerry_server.supervision.child import http_ready

SIZES = {"1 thousand floats": 1_000, "5 million floats (20 MB)": 5_000_000}
STARTUP_S = 120.0

STOCK_PROJECT = b"""[project]
name = "stock"
version = "1.0.0"
[tool.flwr.app]
publisher = "benchmark"
[tool.flwr.app.components]
serverapp = "stock.server:app"
clientapp = "stock.client:app"
[tool.flwr.app.config]
size = 1000
rounds = 3
nodes = 2
moments = ""
"""
STOCK_SERVER = b'''"""Flower's FedAvg; writes a moment and the model's mean per round."""
import json, time
import numpy as np
from flwr.app import Array, ArrayRecord
from flwr.serverapp import ServerApp
from flwr.serverapp.strategy import FedAvg

app = ServerApp()


@app.main()
def main(grid, context):
    config = context.run_config
    def note(number, arrays):
        with open(config["moments"], "a") as stream:
            stream.write(json.dumps([number, time.time(), float(arrays["w"].numpy().mean())]) + "\\n")
    nodes = int(config["nodes"])
    strategy = FedAvg(fraction_evaluate=0.0, min_train_nodes=nodes, min_available_nodes=nodes)
    start = ArrayRecord({"w": Array(np.zeros(int(config["size"]), np.float32))})
    strategy.start(grid=grid, initial_arrays=start, num_rounds=int(config["rounds"]), evaluate_fn=note)
'''
STOCK_CLIENT = b'''"""Adds one."""
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

app = ClientApp()


@app.train()
def train(message, context):
    w = message.content["arrays"]["w"].numpy() + 1
    content = {"arrays": ArrayRecord({"w": Array(w)}), "metrics": MetricRecord({"num-examples": 1})}
    return Message(RecordDict(content), reply_to=message)
'''


class AddsOne:
    """The device of the benchmark: a worker of the agent's node."""

    def __init__(self, name: str) -> None:
        self._name = name

    def train(self, instruction: TrainInstruction) -> TrainReply:
        """The model plus one."""
        model = np.asarray(decode_bundle(instruction.parameters)["w"], dtype=np.float32)
        return TrainReply(
            device_id=self._name,
            examples=1,
            steps=1,
            seconds=0.0,
            loss=0.0,
            validation_examples=0,
            validation_accuracy=0.0,
            validation_loss=0.0,
            parameters=encode_bundle({"w": model + np.float32(1)}),
        )

    def evaluate(self, instruction: EvaluateInstruction) -> EvaluateReply:
        """Not asked for here."""
        raise NotImplementedError


def node_main(address: str, folder: str) -> None:
    """A node process: ``federation.py --node ADDRESS FOLDER``, with the authority's certificate in the folder above."""
    from skerry_agent.identity.node_key import load_node_key
    from skerry_agent.identity.tls import server_context
    from skerry_agent.training.flower_node import FlowerNode
    from skerry_agent.training.node_hint import NodeHint

    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda number, frame: stop.set())
    path = Path(folder)
    authority = (path.parent / "pki" / "ca.pem").read_bytes()
    FlowerNode(
        address,
        load_node_key(AgentLayout(path)),
        NodeHint(path / "node.json"),
        AddsOne(path.name),
        tls=lambda: server_context(authority, lambda: 0),
    ).run(stop)


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def program(name: str) -> str:
    """A console script beside this Python."""
    return str(Path(sys.executable).with_name(name))


@contextmanager
def running(command: list[str], log: Path, home: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process group that ends with the block."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = {**os.environ, "FLWR_HOME": str(home), "PATH": path}
    with log.open("ab") as stream:
        process = subprocess.Popen(command, stdout=stream, stderr=stream, env=environment, start_new_session=True)
    try:
        yield process
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def wait_for(condition: Callable[[], object], what: str, seconds: float = STARTUP_S) -> None:
    """Poll with a deadline."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what}: not within {seconds:g} s")
        time.sleep(0.05)


def answers(port: int) -> bool:
    """Whether a SuperLink without TLS answers."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=1) as response:
            return bool(response.status == 200)
    except OSError:
        return False


@contextmanager
def stock_superlink(folder: Path) -> Iterator[int]:
    """Flower's own SuperLink with its database on disk; yields its port."""
    port = free_port()
    command = [program("flower-superlink"), "--insecure", "--host", "127.0.0.1", "--port", str(port)]
    command += ["--database", str(folder / "state.db"), "--disable-runtime-dependency-installation"]
    with running(command, folder / "superlink.log", folder / "home"):
        wait_for(lambda: answers(port), "the SuperLink")
        yield port


@contextmanager
def our_superlink(folder: Path) -> Iterator[SuperLinkAccess]:
    """The SuperLink of a control plane in ``folder``; yields how to reach it."""
    layout = ServerLayout(folder)
    authority = CertificateAuthority.create(now=utc_now())
    authority.save(layout.pki)
    server = authority.issue_server(["127.0.0.1"], now=utc_now())
    layout.server_certificate.write_bytes(server.certificate_pem)
    layout.server_key.write_bytes(server.key_pem)
    layout.superlink.mkdir()
    unused = dict.fromkeys(("api_port", "grpc_port", "broker_port", "broker_tls_port", "broker_data_port"), 1)
    config = ServerConfig(**unused, device_port=1, superlink_port=free_port())
    access = superlink.access(config, layout)
    ready = http_ready(f"https://{access.address}{superlink.HEALTH_PATH}", authority=access.authority)
    with running(superlink.command(config, layout), folder / "superlink.log", folder / "home"):
        wait_for(lambda: ready(0), "the SuperLink")
        yield access


def ours(folder: Path, size: int, rounds: int, nodes: int) -> list[float]:
    """Seconds of each round after the first."""
    from skerry_server.federation.aggregation import StreamingMean
    from skerry_server.federation.exchange import Broadcast
    from skerry_server.federation.flower import FlowerRun
    from skerry_server.federation.flower_nodes import FlowerNodes
    from skerry_server.federation.round_loop import RoundCollector, RoundRules
    from skerry_server.federation.updates import read_update

    with ExitStack() as stack:
        access = stack.enter_context(our_superlink(folder))
        registry = FlowerNodes(access)
        stack.callback(registry.close)
        identities: dict[str, Path] = {}
        for number in range(nodes):
            home = folder / f"device-{number}"
            home.mkdir()
            identities[home.name] = home / "node.json"
            registry.register(home.name, node_public_key(AgentLayout(home)))
            command = [sys.executable, __file__, "--node", access.address, str(home)]
            stack.enter_context(running(command, folder / f"{home.name}.log", folder / "home"))
        run = stack.enter_context(FlowerRun(access, lock=folder / "submit.lock"))
        wait_for(lambda: len(run.nodes()) == nodes, "the nodes")
        devices = {name: int(json.loads(path.read_text())["node_id"]) for name, path in identities.items()}
        collector = RoundCollector(run, lambda: devices)
        model: dict[str, Any] = {"w": np.zeros(size, np.float32)}
        seconds: list[float] = []
        for number in range(1, rounds + 2):
            started = time.perf_counter()
            mean = StreamingMean(model)

            def accept(device: str, fields: Any, model: Any = model, mean: StreamingMean = mean) -> None:
                update = read_update(fields, device_id=device, model=model)
                mean.add(update.state, update.examples)

            instruction = TrainInstruction(
                campaign_id="benchmark",
                round=number,
                task="benchmark",
                train_step_sha256="0" * 64,
                local_epochs=1,
                batch_size=1,
                learning_rate=1.0,
                proximal_mu=0.0,
                minimum_samples=0,
                deadline_ms=60_000,
                seed=0,
                parameters=encode_bundle(model),
            )
            broadcast = Broadcast(TRAIN, str(number), instruction.to_fields(), 60.0)
            collector.collect(broadcast, RoundRules(quorum=nodes, deadline_s=60.0), accept)
            model = dict(mean.result())
            seconds.append(time.perf_counter() - started)
            if abs(float(model["w"].mean()) - number) > 1e-3:
                raise AssertionError(f"round {number}: the mean of the model is {model['w'].mean()}")
        run.complete()
    return seconds[1:]


def stock(folder: Path, size: int, rounds: int, nodes: int) -> list[float]:
    """The same with Flower as it comes."""
    from flwr.cli.build import build_fab_from_files
    from flwr.common.serde import user_config_to_proto
    from flwr.proto.control_pb2 import StartRunRequest
    from flwr.proto.fab_pb2 import Fab
    from flwr.supercore.control.control_http_client import ControlHttpClient
    from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor

    moments = folder / "moments.jsonl"
    moments.touch()
    with ExitStack() as stack:
        port = stack.enter_context(stock_superlink(folder))
        for number in range(nodes):
            command = [program("flower-supernode"), "--insecure", "--superlink", f"127.0.0.1:{port}"]
            command += ["--port", str(free_port()), "--node-config", f"partition-id={number}"]
            stack.enter_context(running(command, folder / f"supernode-{number}.log", folder / "home"))
        fab, _ = build_fab_from_files(
            {
                "pyproject.toml": STOCK_PROJECT,
                "stock/__init__.py": b'"""The benchmark\'s app."""\n',
                "stock/server.py": STOCK_SERVER,
                "stock/client.py": STOCK_CLIENT,
            }
        )
        config = {"size": size, "rounds": rounds + 1, "nodes": nodes, "moments": str(moments)}
        version_header = RuntimeVersionHttpInterceptor(component_name="flwr-serverapp")
        with ControlHttpClient.from_server_address(
            f"127.0.0.1:{port}", True, None, interceptors=[version_header]
        ) as control:
            control.StartRun(StartRunRequest(fab=Fab(content=fab), override_config=user_config_to_proto(config)))
        wait_for(
            lambda: len(moments.read_text().splitlines()) == rounds + 2, "stock Flower", STARTUP_S + 60.0 * (rounds + 1)
        )
    entries = [json.loads(line) for line in moments.read_text().splitlines()]
    for number, _, mean in entries:
        if abs(mean - number) > 1e-3:
            raise AssertionError(f"stock Flower, round {number}: the mean of the model is {mean}")
    at = [moment for _, moment, _ in entries]
    return [later - earlier for earlier, later in itertools.pairwise(at[1:])]


def bare_bytes(size: int, nodes: int) -> float:
    """Seconds to move a round's payload over loopback TCP: to each node and back."""
    payload = np.zeros(size, np.float32).tobytes()
    total = len(payload) * nodes * 2
    received = 0
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]

        def push() -> None:
            with socket.create_connection(("127.0.0.1", port)) as sender:
                for _ in range(nodes * 2):
                    sender.sendall(payload)

        pusher = threading.Thread(target=push)
        started = time.perf_counter()
        pusher.start()
        connection, _ = listener.accept()
        with connection:
            while received < total:
                received += len(connection.recv(1 << 20))
        elapsed = time.perf_counter() - started
        pusher.join()
    return elapsed


def in_folder(contender: Callable[[Path, int, int, int], list[float]], size: int, rounds: int, nodes: int) -> float:
    """Median seconds per round of a contender in a folder of its own."""
    folder = Path(tempfile.mkdtemp(prefix="federation-"))
    try:
        return statistics.median(contender(folder, size, rounds, nodes))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--nodes", type=int, default=2)
    parser.add_argument("--no-stock", action="store_true")
    parser.add_argument("--node", nargs=2, metavar=("ADDRESS", "FOLDER"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.node:
        node_main(*arguments.node)
        return
    rows: list[dict[str, Any]] = []
    skipped = ["stock Flower: left out by --no-stock"] if arguments.no_stock else []
    for label, size in SIZES.items():
        limit = statistics.median(bare_bytes(size, arguments.nodes) for _ in range(5))
        mine = in_folder(ours, size, arguments.rounds, arguments.nodes)
        rows.append(
            {
                "what": f"round, {arguments.nodes} nodes, {label}: over the bare bytes",
                "unit": "s",
                "ours": mine,
                "beside": {"bare bytes": limit},
                "ratio": mine / limit,
                "goal": "<= 2x the transfer + 0.05 s",
                "holds": mine <= 2 * limit + 0.05,
            }
        )
        if not arguments.no_stock:
            theirs = in_folder(stock, size, arguments.rounds, arguments.nodes)
            rows.append(
                {
                    "what": f"round, {arguments.nodes} nodes, {label}: faster than stock Flower",
                    "unit": "s",
                    "ours": mine,
                    "beside": {"stock Flower": theirs},
                    "ratio": theirs / mine,
                    "goal": ">= 20x",
                    "holds": theirs / mine >= 20,
                }
            )
    for item in rows:
        beside = ", ".join(f"{name} {value:.4f}" for name, value in item["beside"].items())
        verdict = "holds" if item["holds"] else "MISSED"
        print(f"{item['what']:<72} {item['ours']:7.3f} s {item['ratio']:8.2f}x  {item['goal']:27} {verdict:6} {beside}")
    report = {
        "name": "federation",
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {platform.platform()}",
        "versions": {name: version(name) for name in ("numpy", "flwr", "httpx")},
        "load": os.getloadavg()[0],
        "rows": rows,
        "skipped": skipped,
    }
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
