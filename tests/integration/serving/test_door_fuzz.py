"""Thousands of bad requests through every door, beside a good client of each: no crash, right answers, right counts."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tritonclient.grpc
import tritonclient.http

from integration.engine.tiny_bundle import enrol, install, some_input
from integration.serving.door_fuzz import Fuzzer, Target
from integration.serving.doors_rig import RELEASE, open_doors
from integration.serving.serving_process import ServingProcess
from skerry_agent.client import SharedMemoryClient


class GoodClients:
    """One client per door, which ask in turns until they are told to stop.

    Attributes:
        answered: Right answers.
        failures: Everything else.
    """

    def __init__(self, target: Target) -> None:
        self._target = target
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.answered = 0
        self.failures: list[BaseException] = []

    def _run(self) -> None:
        target = self._target
        http = tritonclient.http.InferenceServerClient(f"127.0.0.1:{target.http_port}")
        grpc_client = tritonclient.grpc.InferenceServerClient(f"127.0.0.1:{target.grpc_port}")
        with SharedMemoryClient.connect(target.socket.parent.parent) as memory:
            while not self._stop.wait(0.005):
                x = some_input(1, seed=self.answered % 50)
                wanted = RELEASE.compute(x)[0]
                try:
                    np.testing.assert_allclose(memory.infer(x).scores, wanted, atol=1e-5)
                    self.answered += 1
                    for module, client in ((tritonclient.http, http), (tritonclient.grpc, grpc_client)):
                        tensor = module.InferInput("input", [1, 2, 3], "FP32")
                        tensor.set_data_from_numpy(x)
                        scores = client.infer("tiny", [tensor]).as_numpy("scores")
                        np.testing.assert_allclose(scores, wanted, atol=1e-5)
                        self.answered += 1
                except Exception as error:
                    self.failures.append(error)
        http.close()
        grpc_client.close()

    def __enter__(self) -> GoodClients:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(60)


def fuzz(target: Target, seed: int, requests: int, counters: Callable[[], tuple[int, int]]) -> int:
    """Send bad requests beside good clients; returns how many the good ones had answered."""
    answered_before, errors_before = counters()
    fuzzer = Fuzzer(target, seed)
    with GoodClients(target) as good:
        answered = sum(fuzzer.attack() for _ in range(requests))
    fuzzer.close()
    assert not good.failures
    assert good.answered > 0
    answered_after, errors_after = counters()
    assert errors_after == errors_before
    assert answered_after - answered_before == answered + good.answered
    return good.answered


def test_a_few_hundred_bad_requests(tmp_path: Path) -> None:
    with open_doors(tmp_path) as doors:
        target = Target(doors.http.port, doors.grpc.port, doors.layout.shared_memory_socket)

        def counters() -> tuple[int, int]:
            values = doors.engine.status().counters
            return values.requests, values.errors

        fuzz(target, 1, 300, counters)


@pytest.mark.soak
@pytest.mark.timeout(1800)
def test_ten_thousand_bad_requests(tmp_path: Path, record_property: Callable[[str, object], None]) -> None:
    layout = enrol(tmp_path)
    install(layout, RELEASE)
    with ServingProcess(layout) as process:
        target = Target(process.http_port, process.grpc_port, layout.shared_memory_socket)

        def counters() -> tuple[int, int]:
            status = process.status()
            return int(status["requests"]), int(status["errors"])

        good = fuzz(target, 2, 10_000, counters)
        assert process.process.poll() is None
        assert "Traceback" not in process.log()
    record_property("summary", f"doors: 10,000 bad requests; beside them {good} good ones were answered")
