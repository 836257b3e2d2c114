"""What ``federation.py`` is compared with: stock Flower, and a bare gRPC stream of the same bytes."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from skerry_server.fleet.authority import CertificateAuthority, utc_now
from skerry_server.ports import free_ports

STARTUP_S = 120.0
#: Bytes of one message of the bare stream.
CHUNK = 1 << 20

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
    (port,) = free_ports("127.0.0.1", 1)
    command = [program("flower-superlink"), "--insecure", "--host", "127.0.0.1", "--port", str(port)]
    command += ["--database", str(folder / "state.db"), "--disable-runtime-dependency-installation"]
    with running(command, folder / "superlink.log", folder / "home"):
        wait_for(lambda: answers(port), "the SuperLink")
        yield port


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
            command += ["--port", str(free_ports("127.0.0.1", 1)[0]), "--node-config", f"partition-id={number}"]
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


class StreamServer:
    """The bare stream: hands a model to nodes in pieces and adds what they send back as it arrives."""

    def __init__(self, size: int, nodes: int, identity: tuple[bytes, bytes] | None = None) -> None:
        """Listen on a port of loopback; ``identity``: key and certificate (PEM), with TLS."""
        import grpc

        self._nodes = nodes
        self._changed = threading.Condition()
        self._round, self._answered = 0, 0
        self.model = np.zeros(size, np.float32)
        self._sum = np.zeros(size, np.float32)
        self._server = grpc.server(ThreadPoolExecutor(2 * nodes))
        self._server.add_generic_rpc_handlers(
            (
                grpc.method_handlers_generic_handler(
                    "bench",
                    {
                        "Pull": grpc.unary_stream_rpc_method_handler(self._pull),
                        "Push": grpc.stream_unary_rpc_method_handler(self._push),
                    },
                ),
            )
        )
        if identity is None:
            self.port = self._server.add_insecure_port("127.0.0.1:0")
        else:
            self.port = self._server.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials([identity]))
        self._server.start()

    def round(self) -> None:
        """Give the model out, wait for every node, make the mean the model."""
        with self._changed:
            self._sum[:] = 0
            self._answered = 0
            self._round += 1
            self._changed.notify_all()
            if not self._changed.wait_for(lambda: self._answered == self._nodes, STARTUP_S):
                raise TimeoutError("the bare stream: a node is missing")
        self.model = self._sum / np.float32(self._nodes)

    def close(self) -> None:
        """Stop."""
        self._server.stop(0).wait()

    def _pull(self, request: bytes, context: Any) -> Iterator[bytes]:
        wanted = int(request)
        with self._changed:
            self._changed.wait_for(lambda: self._round >= wanted, STARTUP_S)
            data = self.model.view(np.uint8).data
        for start in range(0, len(data), CHUNK):
            yield bytes(data[start : start + CHUNK])

    def _push(self, pieces: Iterator[bytes], context: Any) -> bytes:
        position = 0
        for piece in pieces:
            values = np.frombuffer(piece, np.float32)
            part = self._sum[position : position + len(values)]
            with self._changed:
                part += values
            position += len(values)
        with self._changed:
            self._answered += 1
            self._changed.notify_all()
        return b""


def stream_node(port: int, authority: Path | None = None) -> None:
    """A node of the bare stream: ``federation.py --stream-node PORT [AUTHORITY]``; with an authority it speaks TLS."""
    import grpc

    address = f"127.0.0.1:{port}"
    with (
        grpc.insecure_channel(address)
        if authority is None
        else grpc.secure_channel(address, grpc.ssl_channel_credentials(authority.read_bytes()))
    ) as channel:
        pull, push = channel.unary_stream("/bench/Pull"), channel.stream_unary("/bench/Push")
        for number in itertools.count(1):
            try:
                received = b"".join(pull(str(number).encode()))
                data = (np.frombuffer(received, np.float32) + np.float32(1)).view(np.uint8).data
                push(bytes(data[start : start + CHUNK]) for start in range(0, len(data), CHUNK))
            except grpc.RpcError:
                return


def stream(folder: Path, size: int, rounds: int, nodes: int, *, program_file: str, tls: bool = False) -> list[float]:
    """Seconds of each round after the first of the bare stream, the training of the nodes included."""
    identity, trusted = None, []
    if tls:
        authority = CertificateAuthority.create(now=utc_now())
        authority.save(folder / "pki")
        issued = authority.issue_server(["127.0.0.1"], now=utc_now())
        identity, trusted = (issued.key_pem, issued.certificate_pem), [str(folder / "pki" / "ca.pem")]
    server = StreamServer(size, nodes, identity)
    seconds: list[float] = []
    with ExitStack() as stack:
        stack.callback(server.close)
        for number in range(nodes):
            command = [sys.executable, program_file, "--stream-node", str(server.port), *trusted]
            stack.enter_context(running(command, folder / f"stream-{number}.log", folder))
        for number in range(1, rounds + 2):
            started = time.perf_counter()
            server.round()
            seconds.append(time.perf_counter() - started)
            if abs(float(server.model.mean()) - number) > 1e-3:
                raise AssertionError(f"the bare stream, round {number}: the mean of the model is {server.model.mean()}")
    return seconds[1:]
