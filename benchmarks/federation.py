"""Seconds per federated round over a real SuperLink: ours beside stock Flower and beside a bare gRPC stream.

``python benchmarks/federation.py [--json FILE] [--rounds N] [--nodes N] [--no-stock] [--fleet N]``

Devices add one to every parameter (ours 0.5 and 1.5, so that no answer is the next model), so that a round is nothing
but transport, waiting and averaging. *Ours*: the SuperLink as ``skerry up`` starts it (TLS, registered node keys, the
lane), the agent's long-lived node, the server's round loop and streaming mean. *Stock*: ``flower-superlink``,
``flower-supernode`` and Flower's FedAvg as an app, all without TLS. *Bare stream*: the same bytes both ways for every
node, in pieces of 1 MB over gRPC, the same addition on the nodes, the sum taken as it arrives, nothing checked and
nothing kept: the limit, with TLS, which ours has, and without. Ours besides computes seven SHA-256 digests of the model
a round (one where it is made, one a node on the way down, two on the way up), writes what it acknowledges to disk,
looks whether every update is finite and how far it lies from the model. The first round of each is left out. Processor
seconds of the SuperLink are given because they count on a busy machine, where waiting does not: ours hands a model
through four processes. *Fleet*: so many long-lived nodes in four processes, and half as many: what a node more costs
must not grow with their number.
Before a figure counts, the averaged model must equal the round's number.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import signal
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"
os.environ["FLWR_TELEMETRY_ENABLED"] = "0"
os.environ["FLWR_DISABLE_UPDATE_CHECK"] = "1"

import numpy as np

from federation_peers import running, stock, stream, stream_node, wait_for
from skerry_agent.config import AgentLayout
from skerry_agent.identity.node_key import node_public_key
from skerry_contract.campaign import TRAIN, Scalar, TrainInstruction, TrainReply
from skerry_contract.tensors import decode_bundle, encode_bundle
from skerry_server import superlink
from skerry_server.config import ServerConfig, ServerLayout
from skerry_server.fleet.authority import CertificateAuthority, utc_now
from skerry_server.ports import free_ports
from skerry_server.superlink import SuperLinkAccess
from skerry_server.supervision.child import http_ready

SIZES = {"1 thousand floats": 1_000, "5 million floats (20 MB)": 5_000_000}
#: A fleet's nodes live in so many processes.
FLEET_PROCESSES = 4


class AddsOne:
    """The device of the benchmark: a worker of the agent's node."""

    def __init__(self, name: str, adds: float) -> None:
        self._name, self._adds = name, np.float32(adds)

    def handle(self, kind: str, fields: Mapping[str, object]) -> Mapping[str, Scalar]:
        """The model plus about one."""
        instruction = TrainInstruction.from_fields(fields)
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
            parameters=encode_bundle({"w": model + self._adds}),
        ).to_fields()


def node_main(address: str, folders: list[str]) -> None:
    """A process of nodes: ``federation.py --node ADDRESS FOLDER...``; the authority's certificate lies above."""
    from skerry_agent.identity.node_key import load_node_key
    from skerry_agent.identity.tls import server_context
    from skerry_agent.training.node import TrainingNode
    from skerry_agent.training.node_hint import NodeHint

    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda number, frame: stop.set())
    authority = (Path(folders[0]).parent / "pki" / "ca.pem").read_bytes()
    threads = []
    for path in map(Path, folders):

        def joined(node_id: int, detail: str, path: Path = path) -> None:
            (path / "node.json").write_text(json.dumps({"node_id": str(node_id)}))

        node = TrainingNode(
            address,
            load_node_key(AgentLayout(path)),
            NodeHint(path / "hint.json"),
            AddsOne(path.name, float((path / "adds").read_text())),
            tls=lambda: server_context(authority, lambda: 0),
            on_link=joined,
        )
        threads.append(threading.Thread(target=node.run, args=(stop,)))
        threads[-1].start()
    for thread in threads:
        thread.join()


@dataclass
class Figures:
    """What a contender took.

    Attributes:
        seconds: Per round, median.
        superlink_cpu_s: Processor seconds of the SuperLink per round.
        superlink_mb: Its resident memory at the end.
        server_mb: Resident memory of the process that runs the rounds.
    """

    seconds: float
    superlink_cpu_s: float
    superlink_mb: float
    server_mb: float


def cpu_s(pid: int) -> float:
    """Processor seconds of a process so far."""
    after = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(after[11]) + int(after[12])) / os.sysconf("SC_CLK_TCK")


def resident_mb(pid: int) -> float:
    """Its resident memory."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


@contextmanager
def our_superlink(folder: Path) -> Iterator[tuple[SuperLinkAccess, int]]:
    """The SuperLink of a control plane in ``folder``; yields how to reach it, and its process."""
    layout = ServerLayout(folder)
    authority = CertificateAuthority.create(now=utc_now())
    authority.save(layout.pki)
    server = authority.issue_server(["127.0.0.1"], now=utc_now())
    layout.server_certificate.write_bytes(server.certificate_pem)
    layout.server_key.write_bytes(server.key_pem)
    layout.superlink.mkdir()
    unused = dict.fromkeys(("api_port", "grpc_port", "broker_port", "broker_tls_port", "broker_data_port"), 1)
    config = ServerConfig(**unused, device_port=1, superlink_port=free_ports("127.0.0.1", 1)[0])
    access = superlink.access(config, layout)
    ready = http_ready(f"https://{access.address}{superlink.HEALTH_PATH}", authority=access.authority)
    with running(superlink.command(config, layout), folder / "superlink.log", folder / "home") as process:
        wait_for(lambda: ready(0), "the SuperLink")
        yield access, process.pid


def ours(folder: Path, size: int, rounds: int, nodes: int, *, processes: int = 0) -> Figures:
    """Rounds of our own; every node in a process of its own unless ``processes`` says how many share them."""
    from skerry_server.federation.flower.nodes import FlowerNodes
    from skerry_server.federation.flower.run import FlowerRun
    from skerry_server.federation.rounds.round_loop import RoundCollector

    with ExitStack() as stack:
        access, pid = stack.enter_context(our_superlink(folder))
        registry = FlowerNodes(access)
        stack.callback(registry.close)
        homes = [folder / f"device-{number}" for number in range(nodes)]
        for number, home in enumerate(homes):
            home.mkdir()
            # No answer equals the next model, which would be there already; the mean of pairs is 1.
            alone = nodes % 2 == 1 and number == nodes - 1
            (home / "adds").write_text("1" if alone else str(0.5 + number % 2))
            registry.register(home.name, node_public_key(AgentLayout(home)))
        many = processes or nodes
        for number in range(many):
            command = [sys.executable, __file__, "--node", access.address, *map(str, homes[number::many])]
            stack.enter_context(running(command, folder / f"nodes-{number}.log", folder / "home"))
        run = stack.enter_context(FlowerRun(access, lock=folder / "submit.lock"))
        wait_for(lambda: len(run.nodes()) == nodes, "the nodes")
        devices = {home.name: int(json.loads((home / "node.json").read_text())["node_id"]) for home in homes}
        collector = RoundCollector(run, lambda: devices if run.nodes() else {})
        model: dict[str, Any] = {"w": np.zeros(size, np.float32)}
        seconds: list[float] = []
        before = 0.0
        for number in range(1, rounds + 2):
            started = time.perf_counter()
            model = one_round(collector, model, number, nodes)
            seconds.append(time.perf_counter() - started)
            if abs(float(model["w"].mean()) - number) > 1e-3:
                raise AssertionError(f"round {number}: the mean of the model is {model['w'].mean()}")
            if number == 1:
                before = cpu_s(pid)
        figures = Figures(
            statistics.median(seconds[1:]), (cpu_s(pid) - before) / rounds, resident_mb(pid), resident_mb(os.getpid())
        )
        run.complete()
    return figures


def one_round(collector: Any, model: dict[str, Any], number: int, nodes: int) -> dict[str, Any]:
    """Ask every node and average."""
    from skerry_server.federation.aggregation import StreamingMean
    from skerry_server.federation.exchange import Broadcast
    from skerry_server.federation.rounds.round_loop import RoundRules
    from skerry_server.federation.rounds.updates import read_update

    mean = StreamingMean(model)

    def accept(device: str, fields: Any) -> None:
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
    return dict(mean.result())


def in_folder(contender: Callable[[Path], Any]) -> Any:
    """What a contender says, in a folder of its own."""
    folder = Path(tempfile.mkdtemp(prefix="federation-"))
    try:
        return contender(folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def row(what: str, mine: float, beside: dict[str, float], goal: str, ratio: float, holds: bool) -> dict[str, Any]:
    """A line of the report."""
    return {"what": what, "unit": "s", "ours": mine, "beside": beside, "ratio": ratio, "goal": goal, "holds": holds}


def compare(label: str, size: int, rounds: int, nodes: int, *, with_stock: bool) -> Iterator[dict[str, Any]]:
    """The rows of one model."""
    bare = partial(stream, size=size, rounds=rounds, nodes=nodes, program_file=__file__)
    plain = statistics.median(in_folder(bare))
    secure = statistics.median(in_folder(partial(bare, tls=True)))
    mine: Figures = in_folder(partial(ours, size=size, rounds=rounds, nodes=nodes))
    title = f"round, {nodes} nodes, {label}"
    for peer, limit in (("with TLS", secure), ("without TLS", plain)):
        beside = {"bare gRPC stream": limit, "SuperLink CPU": mine.superlink_cpu_s}
        ratio, holds = mine.seconds / limit, mine.seconds <= 2 * limit + 0.05
        yield row(f"{title}: over the bare stream {peer}", mine.seconds, beside, "<= 2x + 0.05 s", ratio, holds)
    if with_stock:
        theirs = statistics.median(in_folder(partial(stock, size=size, rounds=rounds, nodes=nodes)))
        ratio = theirs / mine.seconds
        yield row(f"{title}: than stock Flower", mine.seconds, {"stock Flower": theirs}, ">= 20x", ratio, ratio >= 20)


def fleet(nodes: int, rounds: int) -> dict[str, Any]:
    """Rounds with many nodes, and with half as many: twice the nodes may cost 2.6 times the processor time."""
    half: Figures = in_folder(partial(ours, size=1_000, rounds=rounds, nodes=nodes // 2, processes=FLEET_PROCESSES))
    full: Figures = in_folder(partial(ours, size=1_000, rounds=rounds, nodes=nodes, processes=FLEET_PROCESSES))
    growth = full.superlink_cpu_s / max(half.superlink_cpu_s, 1e-9)
    beside = {
        f"{nodes // 2} nodes": half.seconds,
        "SuperLink CPU": full.superlink_cpu_s,
        "SuperLink MB": full.superlink_mb,
        f"SuperLink MB at {nodes // 2}": half.superlink_mb,
        "server MB": full.server_mb,
    }
    title = f"round, {nodes} connected nodes, 1 thousand floats: CPU growth"
    return row(title, full.seconds, beside, "<= 2.6x for 2x", growth, growth <= 2.6)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--nodes", type=int, default=2)
    parser.add_argument("--no-stock", action="store_true")
    parser.add_argument("--fleet", type=int, default=500, help="how many connected nodes; 0: leave that out")
    parser.add_argument("--node", nargs="+", help=argparse.SUPPRESS)
    parser.add_argument("--stream-node", nargs="+", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.node:
        node_main(arguments.node[0], arguments.node[1:])
        return
    if arguments.stream_node:
        stream_node(int(arguments.stream_node[0]), *map(Path, arguments.stream_node[1:]))
        return
    rows: list[dict[str, Any]] = []
    for label, size in SIZES.items():
        rows += compare(label, size, arguments.rounds, arguments.nodes, with_stock=not arguments.no_stock)
    skipped = ["stock Flower: left out by --no-stock"] if arguments.no_stock else []
    if arguments.fleet:
        rows.append(fleet(arguments.fleet, arguments.rounds))
    for item in rows:
        beside = ", ".join(f"{name} {value:.4g}" for name, value in item["beside"].items())
        verdict = "holds" if item["holds"] else "MISSED"
        print(f"{item['what']:<80} {item['ours']:7.3f} s {item['ratio']:8.2f}x  {item['goal']:15} {verdict:6} {beside}")
    report = {
        "name": "federation",
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {platform.platform()}",
        "versions": {name: version(name) for name in ("numpy", "flwr", "httpx", "grpcio")},
        "load": os.getloadavg()[0],
        "rows": rows,
        "skipped": skipped,
    }
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
