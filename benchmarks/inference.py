"""What the engine and its doors cost over the bare runtime, on this machine, beside other servers.

``python benchmarks/inference.py [--json FILE] [--rounds N] [--peers] [--swaps N]``

Every contender answers the same requests in turns (interleaved), so that a busy machine hurts all alike. Contenders:

- ``session.run``: onnxruntime alone, with the engine's session settings: the limit;
- the engine in process; the shared-memory, gRPC and HTTP doors of a real serving process; tritonclient on gRPC;
- bare servers in processes of their own that send the answer's bytes back, over shared memory, gRPC and ASGI: what the
  ways in cost by themselves, without a model; and one over shared memory with ``session.run`` and nothing else, no copy
  and no check: the limit of a model in another process;
- with ``--peers``: other model servers with the same ONNX file (see ``inference_peers.py``).

Then hot swaps under load (see ``inference_swaps.py``), and what counting for drift costs.

Correctness first: before anything is timed, every contender's scores must equal those of ``session.run``.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import grpc
import numpy as np
import onnxruntime

from inference_peers import PEERS, Peer, PeerMissing
from inference_rig import (
    CLASSES,
    FEATURES,
    Call,
    CClient,
    Network,
    cnn,
    echo,
    edges_of,
    grpc_call,
    http_call,
    install,
    json_call,
    large,
    memory_echo_call,
    resident_mb,
    serving,
    session_of,
    triton_call,
)
from inference_swaps import swap_under_load
from skerry_agent import Engine
from skerry_agent.client import SharedMemoryClient
from skerry_agent.drift.accumulator import DriftAccumulator, WindowLimits, WindowNumbers
from skerry_contract.v1.telemetry_pb2 import DriftReport, UplinkMessage

Turn = Callable[[int], list[float]]
WARM_UP = 50
PER_TURN = 50
#: Larger inputs are not sent as JSON: a request would take a second, and the others wait (bytes).
JSON_BYTES = 64 << 10
#: Most microseconds over ``session.run`` through the shared-memory door, by network.
MEMORY_GOALS = {"1-D CNN 4.6 kB": 60, "3x224x224 602 kB": 120}


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
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", type=Path, help="write the result here")
    parser.add_argument("--rounds", type=int, default=20, help="turns of 50 requests per contender")
    parser.add_argument("--peers", action="store_true", help="beside other model servers")
    parser.add_argument("--swaps", type=int, default=1000, help="hot swaps under load; 0: none")
    arguments = parser.parse_args()
    rows: list[Row] = []
    skipped: dict[str, str] = {}
    with tempfile.TemporaryDirectory(prefix="skerry-bench-") as folder:
        for index, network in enumerate((cnn(), large())):
            peers = arguments.peers and index == 0
            rows += _bench_network(network, Path(folder) / str(index), arguments.rounds, skipped if peers else None)
        if arguments.swaps:
            rows += _bench_swaps(Path(folder) / "swaps", arguments.swaps)
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
        "skipped": skipped,
    }
    _print_table(result, rows)
    for name, reason in skipped.items():
        print(f"not run: {name}: {reason}")
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=2) + "\n")


def _bench_network(network: Network, root: Path, rounds: int, skipped: dict[str, str] | None) -> list[Row]:
    """All contenders on one network; peers too if there is a place for those that cannot be run."""
    layout = install(network, root)
    x = np.random.default_rng(0).normal(size=(1, *network.shape)).astype(np.float32)
    session = session_of(network)
    bare = root / "network.onnx"
    bare.write_bytes(network.onnx)
    with ExitStack() as stack:
        engine = stack.enter_context(Engine.open(root / "in-process"))
        command = [sys.executable, "-m", "skerry_agent.serving", str(layout.root)]
        doors = stack.enter_context(serving(command, layout))
        memory = stack.enter_context(SharedMemoryClient.connect(layout.root))
        ports = json.loads(layout.serving_file.read_text())
        contenders: dict[str, Call] = {
            "session.run": lambda: session.run(["scores", "features"], {"input": x})[0],
            "engine": lambda: engine.infer(x).scores,
            "shared memory": lambda: memory.infer(x).scores,
            "memory echo": memory_echo_call(stack.enter_context(echo("memory")), x),
            "bare server": memory_echo_call(stack.enter_context(echo("memory", bare)), x),
            "gRPC door": grpc_call(ports["grpc_port"], "ModelInfer", x),
            "gRPC echo": grpc_call(stack.enter_context(echo("grpc")), "Echo", x),
            "HTTP door": http_call(ports["http_port"], x),
            "HTTP echo": http_call(stack.enter_context(echo("http")), x, echo=True),
            "tritonclient gRPC": triton_call(ports["grpc_port"], x),
        }
        if x.nbytes < JSON_BYTES:
            contenders["HTTP door, JSON"] = json_call(ports["http_port"], x)
        c_client = stack.enter_context(CClient(root, layout.root, x))
        peers = [] if skipped is None else _open_peers(stack, network, x, root, skipped)
        contenders |= {peer.name: peer.call for peer in peers}
        wanted = session.run(["scores"], {"input": x})[0]
        answers = {name: call() for name, call in contenders.items()} | {"shared memory, C": c_client.scores}
        for name, got in answers.items():
            if got is not None and not np.allclose(got, wanted, atol=1e-4):
                raise SystemExit(f"{network.name}: {name} gives other scores than session.run")
        turns = {name: _timer(call) for name, call in contenders.items()}
        turns |= {"shared memory, C": c_client.turn, "shared memory, C, in place": c_client.turn_in_place}
        times = _interleave(turns, rounds)
        rss = resident_mb(doors.pid)
    return _network_rows(network.name, times, rss) + _peer_rows(network.name, times, peers)


def _open_peers(stack: ExitStack, network: Network, x: Any, root: Path, skipped: dict[str, str]) -> list[Peer]:
    peers: list[Peer] = []
    for name, open_peer in PEERS.items():
        folder = root / name
        folder.mkdir()
        try:
            peers += stack.enter_context(open_peer(network, x, folder))
        except PeerMissing as error:
            skipped[name] = str(error)
    return peers


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

    def row(what: str, name: str, goal: float | None, *limits: str) -> Row:
        beside = {limit: p50[limit] for limit in limits}
        details = {"over session.run": over[name], "p99": p99[name], "spread of p50": spread[name]}
        text = "none" if goal is None else f"<= {goal} us over session.run"
        holds = None if goal is None else over[name] <= goal
        return Row(f"{network}: {what}", "us p50", p50[name], beside, p50[name] / run, text, holds, details)

    rows = [
        # The check of 602 kB is bound by memory: the goal is for a request whose own cost is what is seen.
        row("engine in process", "engine", 5 if "CNN" in network else None, "session.run"),
        *(
            row(what, name, MEMORY_GOALS[network], "session.run", "memory echo", "bare server")
            for what, name in (
                ("shared-memory door", "shared memory"),
                ("shared-memory door, from C", "shared memory, C"),
                ("the same, input made in place", "shared memory, C, in place"),
            )
        ),
        row("bare server over shared memory", "bare server", None, "session.run", "memory echo"),
        row("gRPC door", "gRPC door", 500, "session.run", "gRPC echo"),
        row("HTTP door, binary", "HTTP door", None, "session.run", "HTTP echo"),
        row("tritonclient, gRPC door", "tritonclient gRPC", None, "session.run", "gRPC echo"),
    ]
    if "HTTP door, JSON" in times:
        rows.append(row("HTTP door, JSON", "HTTP door, JSON", None, "session.run"))
    if "CNN" in network:
        ratio = p50["engine"] / run
        what = f"{network}: engine in process, as a ratio"
        rows.insert(1, Row(what, "us p50", p50["engine"], {"session.run": run}, ratio, "<= 1.10x", ratio <= 1.10))
    # Control is not started here, so this row can only show that the budget is missed, not that it is kept.
    holds = False if rss > 150 else None
    rows.append(Row(f"{network}: serving process alone", "MB RSS", rss, {}, None, "<= 150 with control", holds))
    return rows


def _peer_rows(network: str, times: dict[str, list[list[float]]], peers: list[Peer]) -> list[Row]:
    """Each peer beside our HTTP door in the same form: the same client, the same protocol."""
    rows = []
    for peer in peers:
        ours = times["HTTP door, JSON" if peer.form == "JSON" else "HTTP door"]
        for percentile in (50, 99):
            mine, theirs = (
                float(np.percentile(np.concatenate(turns), percentile)) for turns in (ours, times[peer.name])
            )
            what = f"{network}: HTTP door, {peer.form}, beside {peer.name}"
            rows.append(
                Row(
                    what, f"us p{percentile}", mine, {peer.name: theirs}, mine / theirs, "below the peer", mine < theirs
                )
            )
    return rows


def _bench_swaps(root: Path, swaps: int) -> list[Row]:
    result = swap_under_load(root, swaps)
    details = {"requests": result.requests, "p99 us": result.p99_us, "median swap ms": result.swap_ms}
    growth = result.end_mb - result.warm_mb
    return [
        Row(f"{swaps} hot swaps under load", "failed", result.failed, {}, None, "0", result.failed == 0, details),
        Row(
            f"{swaps} hot swaps: memory after warm-up",
            "MB gained",
            growth,
            {"after warm-up": result.warm_mb},
            result.end_mb / result.warm_mb,
            "<= 1.02 x",
            result.end_mb <= 1.02 * result.warm_mb,
        ),
        Row(f"{swaps} hot swaps: worst request", "us", result.worst_us, {}, None, "none", None),
    ]


def _bench_drift() -> list[Row]:
    """Cost of counting a request of ten features, and the size of a report of a full window."""
    rng = np.random.default_rng(2)
    reports: list[DriftReport] = []
    accumulator = DriftAccumulator(
        release_id="release-0123456789ab",
        edges=edges_of(rng.normal(size=(5000, FEATURES))),
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


def _timer(call: Call) -> Turn:
    """Microseconds of each of so many calls."""

    def turn(requests: int) -> list[float]:
        times = []
        for _ in range(requests):
            started = time.perf_counter_ns()
            call()
            times.append((time.perf_counter_ns() - started) / 1000)
        return times

    return turn


def _interleave(turns: Mapping[str, Turn], rounds: int) -> dict[str, list[list[float]]]:
    """Microseconds per call, by turn."""
    for turn in turns.values():
        turn(WARM_UP)
    times: dict[str, list[list[float]]] = {name: [] for name in turns}
    for _ in range(rounds):
        for name, turn in turns.items():
            times[name].append(turn(PER_TURN))
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


if __name__ == "__main__":
    main()
