"""1,000 hot swaps under load: no failed request, memory flat after warm-up, the worst request.

Two releases take turns in the slots of a serving process while clients of shared memory and of gRPC ask without a
pause, and every answer is checked.
"""

from __future__ import annotations

import json
import statistics
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from inference_rig import Call, Floats, cnn, grpc_call, install, resident_mb, serving, write_slot
from skerry_agent.client import SharedMemoryClient
from skerry_agent.control.serving_client import ServingClient

#: Swaps before memory is looked at.
WARM_UP = 200
#: Two clients share this process: neither waits for the interpreter's lock longer than a door would (s).
SWITCH_SECONDS = 0.001


@dataclass
class SwapResult:
    """What came of it.

    Attributes:
        swaps: How many.
        requests: Answered meanwhile.
        failed: Not answered, or answered wrongly.
        worst_us: Longest request.
        p99_us: 99th percentile.
        warm_mb: Resident memory after the warm-up.
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


@dataclass
class _Client:
    """Asks until it is told to stop."""

    call: Call
    wanted: Floats
    stop: threading.Event
    times: list[float] = field(default_factory=list)
    failed: int = 0

    def run(self) -> None:
        while not self.stop.is_set():
            started = time.perf_counter()
            try:
                scores = self.call()
                right = scores is not None and np.allclose(scores, self.wanted, atol=1e-5)
            except Exception:
                right = False
            self.times.append((time.perf_counter() - started) * 1e6)
            self.failed += not right


def swap_under_load(root: Path, swaps: int) -> SwapResult:
    """Run it in a folder."""
    network = cnn()
    layout = install(network, root)
    write_slot(layout, network, "b", "bench-2")
    x = np.random.default_rng(0).normal(size=(1, *network.shape)).astype(np.float32)
    command = [sys.executable, "-m", "skerry_agent.serving", str(layout.root)]
    sys.setswitchinterval(SWITCH_SECONDS)
    with serving(command, layout) as process, SharedMemoryClient.connect(layout.root) as memory:
        port = json.loads(layout.serving_file.read_text())["grpc_port"]
        wanted = memory.infer(x).scores
        stop = threading.Event()
        clients = [
            _Client(lambda: memory.infer(x).scores, wanted, stop),
            _Client(grpc_call(port, "ModelInfer", x), wanted, stop),
        ]
        threads = [threading.Thread(target=client.run) for client in clients]
        control = ServingClient(layout)
        for thread in threads:
            thread.start()
        swap_times, memories = [], []
        try:
            for number in range(swaps):
                started = time.perf_counter()
                _activate(control, number)
                swap_times.append(time.perf_counter() - started)
                if number >= min(WARM_UP, swaps // 2) and number % 10 == 0:
                    memories.append(resident_mb(process.pid))
        finally:
            stop.set()
            for thread in threads:
                thread.join(60)
            control.close()
    times = np.array(clients[0].times + clients[1].times)
    tenth = max(1, len(memories) // 10)
    return SwapResult(
        swaps=swaps,
        requests=len(times),
        failed=sum(client.failed for client in clients),
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
