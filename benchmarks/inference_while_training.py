"""Inference on a busy device: its latencies while it trains, and while it trains and downloads.

``python benchmarks/inference_while_training.py [--json FILE] [--tasks NAME ...] [--turns N] [--seconds S]``

Two real serving processes answer single requests through their gRPC and shared-memory doors, so many a second as
``--rate`` says: one is set apart from other work as the agent does it (a core of its own, the class SCHED_RR, locked
memory, as far as that is permitted here), the other is like any process (``isolation: off``). Turns alternate, in one
run: nobody works; ours trains; ours trains and downloads beside serving that is set apart; the same work, without
priorities, pauses or cores of its own, beside serving that is not. Before anything is timed, the doors' scores must be
the golden scores of a form of the release.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from importlib.metadata import version
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"
os.environ["OPENBLAS_NUM_THREADS"] = "1"

import grpc
import numpy as np
import numpy.typing as npt

import busy_device
from busy_device import Worker, child, install, set_up
from skerry_agent.client import SharedMemoryClient
from skerry_agent.config import AgentLayout
from skerry_agent.engine.golden import parse_golden
from skerry_contract.oip import open_inference_pb2 as oip

Floats = npt.NDArray[np.float32]
Call = Callable[[], Floats]
#: Goals: times the latency at rest while training, and milliseconds while training and downloading.
GOAL = 1.5
GOAL_MS = {"vision": 10.0}
#: Requests a second that a device of the task answers.
RATES = {"vision": 30.0}
#: Beginning of a turn that is not counted (seconds): the other worker's step ends, caches fill.
SETTLE_S = 0.5
#: Share of the largest score by which a door may differ from the golden scores of a form.
NEAR = 0.1
REST, TRAINING, BUSY, PLAIN = "at rest", "training", "training and downloading", "the same without isolation"
DOORS = ("gRPC", "shared memory")


def open_grpc(layout: AgentLayout, task: str, x: Floats) -> Call:
    """One request over the gRPC door."""
    port = json.loads(layout.serving_file.read_text())["grpc_port"]
    request = oip.ModelInferRequest(model_name=task, raw_input_contents=[x.tobytes()])
    request.inputs.add(name="input", datatype="FP32", shape=x.shape)
    data = request.SerializeToString()
    stub = grpc.insecure_channel(f"127.0.0.1:{port}").unary_unary("/inference.GRPCInferenceService/ModelInfer")

    def call() -> Floats:
        reply = oip.ModelInferResponse.FromString(stub(data, timeout=20))
        return np.frombuffer(reply.raw_output_contents[0], dtype=np.float32)[None]

    return call


def open_shared_memory(client: SharedMemoryClient, x: Floats) -> Call:
    """One request over the door of shared memory."""
    return lambda: client.infer(x).scores


def start_serving(stack: ExitStack, layout: AgentLayout) -> list[str]:
    """A serving process of a data directory; returns how it is set apart."""
    layout.serving_file.unlink(missing_ok=True)
    stack.enter_context(child([sys.executable, "-m", "skerry_agent.serving", str(layout.root)]))
    deadline = time.monotonic() + 120
    while not layout.serving_file.exists():
        if time.monotonic() > deadline:
            raise SystemExit("the serving process did not start")
        time.sleep(0.05)
    isolation: list[str] = json.loads(layout.serving_file.read_text())["isolation"]
    return isolation


def one_turn(call: Call, seconds: float, rate: float) -> list[float]:
    """Milliseconds of each request of a turn, the settling ones left out; sent at fixed times if the door keeps up."""
    times: list[float] = []
    began = due = time.perf_counter()
    while due < began + seconds:
        time.sleep(max(0.0, due - time.perf_counter()))
        started = time.perf_counter()
        call()
        if started - began > SETTLE_S:
            times.append((time.perf_counter() - started) * 1000)
        due = max(due + 1 / rate, time.perf_counter() - 1 / rate)
    return times


def measure(task: str, root: Path, turns: int, seconds: float, rate: float) -> tuple[list[dict[str, Any]], list[str]]:
    """The rows of one task, and how serving was set apart."""
    apart = install(task, root / "apart")
    shutil.copytree(apart.root, root / "shared")
    shared = AgentLayout(root / "shared")
    set_up(shared.root, isolation="off")
    x, wanted = some_input(apart)
    with ExitStack() as stack:
        isolation = start_serving(stack, apart)
        start_serving(stack, shared)
        calls: dict[tuple[AgentLayout, str], Call] = {}
        for layout in (apart, shared):
            client = stack.enter_context(SharedMemoryClient.connect(layout.root))
            calls[layout, DOORS[0]] = open_grpc(layout, task, x)
            calls[layout, DOORS[1]] = open_shared_memory(client, x)
        for (_, door), call in calls.items():
            scores = call()
            if not any(np.abs(scores - form).max() <= NEAR * np.abs(form).max() for form in wanted):
                raise SystemExit(f"{task}: the {door} door gives other scores than every form of the release")
        train, download, plain_train, plain_download = (
            Worker(stack.enter_context(child([sys.executable, busy_device.__file__, *arguments])))
            for arguments in (
                ("train", str(apart.root), str(apart.root), "policy"),
                ("download", str(apart.root), str(apart.root), "policy"),
                ("train", str(shared.root), str(shared.root), "plain"),
                ("download", str(shared.root), str(shared.root), "plain"),
            )
        )
        for worker in (train, download, plain_train, plain_download):
            worker.warm_up()
        kinds: dict[str, tuple[AgentLayout, tuple[Worker, ...]]] = {
            REST: (apart, ()),
            TRAINING: (apart, (train,)),
            BUSY: (apart, (train, download)),
            PLAIN: (shared, (plain_train, plain_download)),
        }
        times: dict[tuple[str, str], list[float]] = {(kind, door): [] for kind in kinds for door in DOORS}
        for turn in range(turns):
            for kind, (layout, workers) in kinds.items():
                with ExitStack() as working:
                    for worker in workers:
                        working.enter_context(worker.turn())
                    for door in DOORS if turn % 2 else DOORS[::-1]:
                        times[kind, door] += one_turn(calls[layout, door], seconds, rate)
        speed = {
            "steps/s ours": train.done / train.seconds,
            "steps/s without isolation": plain_train.done / plain_train.seconds,
        }
    return [row for door in DOORS for row in rows_of(task, door, times, speed)], isolation


def rows_of(
    task: str, door: str, times: dict[tuple[str, str], list[float]], speed: dict[str, float]
) -> list[dict[str, Any]]:
    """What is reported of a door."""
    of_door = {kind: values for (kind, name), values in times.items() if name == door}
    p99 = {kind: float(np.percentile(values, 99)) for kind, values in of_door.items()}
    details = {f"p50 {kind}": float(np.percentile(values, 50)) for kind, values in of_door.items()}
    details |= {**speed, "requests": float(sum(map(len, of_door.values())))}
    ratio = p99[TRAINING] / p99[REST]
    rows = [
        {
            "what": f"{task}, {door}: p99 while training",
            "unit": "ms",
            "ours": p99[TRAINING],
            "beside": {REST: p99[REST]},
            "ratio": ratio,
            "goal": f"<= {GOAL} x at rest",
            "holds": ratio <= GOAL,
            "details": details,
        }
    ]
    goal = GOAL_MS.get(task)
    rows.append(
        {
            "what": f"{task}, {door}: p99 while training and downloading",
            "unit": "ms",
            "ours": p99[BUSY],
            "beside": {REST: p99[REST], PLAIN: p99[PLAIN]},
            "ratio": p99[BUSY] / p99[PLAIN],
            "goal": "below that without isolation" if goal is None else f"< {goal:g} ms",
            "holds": p99[BUSY] < (p99[PLAIN] if goal is None else goal),
            "details": details,
        }
    )
    return rows


def some_input(layout: AgentLayout) -> tuple[Floats, list[Floats]]:
    """The first golden input, and the scores that each form of the release gives for it."""
    golden = parse_golden((layout.slots / "a" / "golden.pb").read_bytes(), input_name="input")
    return golden.x[:1], [outputs["scores"][:1] for outputs in golden.outputs.values()]


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", type=Path, help="write the result here")
    parser.add_argument("--tasks", nargs="*", default=["har", "fashion", "vision"])
    parser.add_argument("--turns", type=int, default=4, help="turns of each kind")
    parser.add_argument("--seconds", type=float, default=3.0, help="of one turn of a door")
    parser.add_argument("--rate", type=float, help="requests a second; 100, and 30 for vision")
    arguments = parser.parse_args()
    rows: list[dict[str, Any]] = []
    isolation: list[str] = []
    for task in arguments.tasks:
        rate = arguments.rate or RATES.get(task, 100.0)
        with tempfile.TemporaryDirectory(prefix="skerry-bench-") as folder:
            found, isolation = measure(task, Path(folder), arguments.turns, arguments.seconds, rate)
        rows += found
    print(f"serving is set apart by: {'; '.join(isolation)}")
    for row in rows:
        extra = {**row["beside"], **row["details"]}
        beside = ", ".join(f"{name} {value:.2f}" for name, value in extra.items())
        verdict = "holds" if row["holds"] else "MISSED"
        print(f"{row['what']:<56} {row['ours']:8.2f} ms  {row['ratio']:.2f}x  {row['goal']}  {verdict}  ({beside})")
    report = {
        "name": "inference_while_training",
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {platform.platform()}",
        "isolation": isolation,
        "versions": {name: version(name) for name in ("numpy", "onnxruntime", "grpcio")},
        "load": os.getloadavg()[0],
        "rows": rows,
        "skipped": [],
    }
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
