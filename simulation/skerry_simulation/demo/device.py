"""An application on a device: asks the agent through its doors, as any application would, and knows the truth.

Inference goes through Open Inference Protocol v2 over gRPC, labels through HTTP. The agent may be killed and come back
on other ports at any moment: :meth:`DeviceApplication.infer` reads them again and repeats until its deadline, unless
it is told to count every failure.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path

import grpc
import httpx
import numpy as np
import numpy.typing as npt

from skerry_contract.oip import open_inference_pb2 as oip
from skerry_simulation.errors import StepError

Floats = npt.NDArray[np.float32]
Labels = npt.NDArray[np.int64]
_INFER = "/inference.GRPCInferenceService/ModelInfer"
_LARGEST_BATCH = 32


@dataclass(frozen=True)
class Answers:
    """What the agent said.

    Attributes:
        scores: float32 [N, classes].
        latencies_us: One per request, at the client.
        errors: Requests that failed.
    """

    scores: Floats
    latencies_us: list[float]
    errors: int

    def accuracy(self, truth: Labels) -> float:
        """Share of rows whose highest score is the true class."""
        return float((self.scores.argmax(axis=1) == truth).mean())


class DeviceApplication:
    """One application beside one agent."""

    def __init__(self, device_id: str, task: str, agent_folder: Path) -> None:
        self.device_id = device_id
        self.task = task
        self.agent_folder = agent_folder
        self._channel: grpc.Channel | None = None
        self._http: httpx.Client | None = None
        self._requests = 0

    def close(self) -> None:
        """Give the connections back."""
        if self._channel is not None:
            self._channel.close()
            self._channel = None
        if self._http is not None:
            self._http.close()
            self._http = None

    def ask(
        self,
        x: Floats,
        *,
        truth: Labels | None = None,
        batch: int = 1,
        patience_s: float = 60.0,
        count_errors: bool = False,
    ) -> Answers:
        """Ask for every row of ``x`` in requests of ``batch`` rows, and post the truth where it is known.

        Args:
            x: float32 [N, ...] in the task's raw units.
            truth: int64 [N]; posted as labels after each request.
            batch: Rows of a request, 1 to 32.
            patience_s: How long one request is repeated while the agent is away.
            count_errors: Never repeat; count what fails.

        Raises:
            StepError: The agent did not answer within ``patience_s``.
        """
        if not 1 <= batch <= _LARGEST_BATCH:
            raise ValueError(f"batch must be 1 to {_LARGEST_BATCH}, got {batch}")
        scores: list[Floats] = []
        latencies: list[float] = []
        errors = 0
        for start in range(0, len(x), batch):
            rows = x[start : start + batch]
            self._requests += 1
            identifier = f"{self.device_id}-{self._requests}-{time.monotonic_ns()}"
            try:
                answer, microseconds = self._infer(rows, identifier, 0.0 if count_errors else patience_s)
            except StepError:
                if not count_errors:
                    raise
                errors += 1
                continue
            scores.append(answer)
            latencies.append(microseconds)
            if truth is not None:
                self._label(identifier, truth[start : start + batch], patience_s)
        joined = np.concatenate(scores) if scores else np.zeros((0, 0), np.float32)
        return Answers(joined, latencies, errors)

    def _infer(self, rows: Floats, identifier: str, patience_s: float) -> tuple[Floats, float]:
        request = oip.ModelInferRequest(model_name=self.task, id=identifier)
        tensor = request.inputs.add(name="input", datatype="FP32")
        tensor.shape.extend(rows.shape)
        request.outputs.add(name="scores")
        request.raw_input_contents.append(np.ascontiguousarray(rows, dtype="<f4").tobytes())
        deadline = time.monotonic() + patience_s
        while True:
            try:
                call = self._connect().unary_unary(
                    _INFER,
                    request_serializer=oip.ModelInferRequest.SerializeToString,
                    response_deserializer=oip.ModelInferResponse.FromString,
                )
                started = time.perf_counter_ns()
                response = call(request, timeout=10.0)
                microseconds = (time.perf_counter_ns() - started) / 1000
            except (grpc.RpcError, OSError, ValueError) as error:
                self.close()
                reason = error.details() if isinstance(error, grpc.Call) else str(error)
                if time.monotonic() >= deadline:
                    raise StepError(f"inference on {self.device_id}", str(reason)) from error
                time.sleep(0.1)
                continue
            shape = tuple(response.outputs[0].shape)
            return np.frombuffer(response.raw_output_contents[0], dtype="<f4").reshape(shape), microseconds

    def _label(self, identifier: str, truth: Labels, patience_s: float) -> None:
        body = {"labels": [{"id": identifier, "row": row, "label": int(label)} for row, label in enumerate(truth)]}
        deadline = time.monotonic() + patience_s
        while True:
            try:
                self._connect()
                assert self._http is not None
                self._http.post(f"/v2/models/{self.task}/labels", json=body).raise_for_status()
            except (httpx.HTTPError, OSError, ValueError) as error:
                self.close()
                if time.monotonic() >= deadline:
                    raise StepError(f"labels on {self.device_id}", str(error)) from error
                time.sleep(0.1)
                continue
            return

    def _connect(self) -> grpc.Channel:
        if self._channel is None:
            doors = json.loads((self.agent_folder / "run" / "serving.json").read_text())
            self._channel = grpc.insecure_channel(f"127.0.0.1:{doors['grpc_port']}")
            self._http = httpx.Client(base_url=f"http://127.0.0.1:{doors['http_port']}", timeout=10.0, trust_env=False)
        return self._channel
