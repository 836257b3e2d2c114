"""1,000 hot swaps under load: no failed request, memory flat after warm-up, the worst request.

Two releases take turns in the slots of a serving process while clients of shared memory and of gRPC ask without a
pause, and every answer is checked.
"""

from __future__ import annotations

import json
import multiprocessing
import statistics
import sys
import time
from contextlib import ExitStack
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.synchronize import Event
from pathlib import Path

import numpy as np

from inference_rig import Call, Floats, anonymous_mb, cnn, grpc_call, install, serving, write_slot
from skerry_agent.client import SharedMemoryClient
from skerry_agent.config import AgentLayout
from skerry_agent.control.serving_client import ServingClient

#: Swaps before memory is looked at.
WARM_UP = 200
#: Who asks meanwhile, each from a process of its own: neither waits for the other's interpreter.
DOORS = ("gRPC", "shared memory")


@dataclass
class SwapResult:
    """What came of it.

    Attributes:
        swaps: How many.
        requests: Answered meanwhile.
        failed: Not answered, or answered wrongly.
        worst_us: Longest request.
        p99_us: 99th percentile.
        warm_mb: Anonymous memory after the warm-up; the pages of libraries come and go with each swap.
        end_mb: At the end.
        swap_ms: Median time of a swap, as whoever asks for it sees it.
    """

    swaps: int
    requests: int
    failed: int
    worst_us: float
    p99_us: float
    warm_mb: float
    end_mb: float
    swap_ms: float


def _ask(door: str, root: Path, x: Floats, wanted: Floats, stop: Event, results: Connection) -> None:
    """A client, in a process of its own: asks until it is told to stop, then sends its times (us) and failures."""
    layout = AgentLayout(root)
    with ExitStack() as stack:
        if door == "gRPC":
            call: Call = grpc_call(json.loads(layout.serving_file.read_text())["grpc_port"], "ModelInfer", x)
        else:
            memory = stack.enter_context(SharedMemoryClient.connect(root))
            call = lambda: memory.infer(x).scores  # noqa: E731
        times, failed = [], 0
        while not stop.is_set():
            started = time.perf_counter()
            try:
                scores = call()
                right = scores is not None and np.allclose(scores, wanted, atol=1e-5)
            except Exception:
                right = False
            times.append((time.perf_counter() - started) * 1e6)
            failed += not right
    results.send((times, failed))


def swap_under_load(root: Path, swaps: int) -> SwapResult:
    """Run it in a folder."""
    network = cnn()
    layout = install(network, root)
    write_slot(layout, network, "b", "bench-2")
    x = np.random.default_rng(0).normal(size=(1, *network.shape)).astype(np.float32)
    command = [sys.executable, "-m", "skerry_agent.serving", str(layout.root)]
    processes = multiprocessing.get_context("spawn")
    with serving(command, layout) as process:
        with SharedMemoryClient.connect(layout.root) as memory:
            wanted = memory.infer(x).scores
        stop = processes.Event()
        pipes = [processes.Pipe(duplex=False) for _ in DOORS]
        clients = [
            processes.Process(target=_ask, args=(door, layout.root, x, wanted, stop, pipe[1]), daemon=True)
            for door, pipe in zip(DOORS, pipes, strict=True)
        ]
        control = ServingClient(layout)
        for client in clients:
            client.start()
        swap_times, memories = [], []
        try:
            for number in range(swaps):
                started = time.perf_counter()
                _activate(control, number)
                swap_times.append(time.perf_counter() - started)
                if number >= min(WARM_UP, swaps // 2) and number % 10 == 0:
                    memories.append(anonymous_mb(process.pid))
        finally:
            stop.set()
            control.close()
        results = [pipe[0].recv() if pipe[0].poll(60) else ([], 1) for pipe in pipes]
        for client in clients:
            client.join(10)
    times = np.concatenate([times for times, _ in results])
    tenth = max(1, len(memories) // 10)
    return SwapResult(
        swaps=swaps,
        requests=len(times),
        failed=sum(failed for _, failed in results),
        worst_us=float(times.max()),
        p99_us=float(np.percentile(times, 99)),
        warm_mb=statistics.median(memories[:tenth]),
        end_mb=statistics.median(memories[-tenth:]),
        swap_ms=statistics.median(swap_times) * 1000,
    )


def _activate(control: ServingClient, number: int) -> None:
    """Have the release of the other slot answer, as the control process does it."""
    if number % 2:
        control.activate("a", "bench-1")
    else:
        control.activate("b", "bench-2")
    deadline = time.monotonic() + 60
    while (outcome := control.activation()) is None:
        if time.monotonic() > deadline:
            raise SystemExit(f"swap {number} did not come to an end")
        time.sleep(0.002)
    if not outcome.activated:
        raise SystemExit(f"swap {number}: {outcome.detail}")
