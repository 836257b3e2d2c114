"""Federated calibration on the device: which values the activations of a model take on its labelled samples.

calibrate.onnx of the installed release takes the parameters as inputs and gives the smallest and largest value of each
activation over a batch; only those leave the device, and not even those when one is far beyond what the control plane
knows. Batches are small, and before each of them the device asks whether it must wait, as before a training step.
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Protocol

import numpy as np

from skerry_agent.errors import ArtifactError, InputError
from skerry_agent.training.bundle import TrainingBundle
from skerry_agent.training.onnx_trainer import PAUSE_POLL_S, open_session
from skerry_agent.training.trainer import Array, Inputs, ShouldPause
from skerry_agent.training.worker import RefusedError, Runner, SampleSource
from skerry_contract.calibration import TensorRanges, decode_ranges, encode_ranges, merge_ranges, ranges_from_outputs
from skerry_contract.calibration import within as first_beyond
from skerry_contract.campaign import CALIBRATION_FACTOR, CalibrateInstruction, CalibrateReply, Scalar
from skerry_contract.tensors import decode_bundle

logger = logging.getLogger(__name__)

#: Rows per run, and bytes of input that a run of more than one row may have.
BATCH_ROWS = 32
BATCH_BYTES = 4 << 20
_INPUT = "input"


class Host(Protocol):
    """The part of :class:`~skerry_agent.training.worker.CampaignWorker` that is used here."""

    def working(self, detail: str, deadline_ms: int) -> AbstractContextManager[ShouldPause]:
        """Tells that the device is busy, gives the question whether to pause, and turns errors into refusals."""
        ...

    def open_bundle(self, train_step_sha256: str, task: str) -> TrainingBundle:
        """Raises RefusedError."""
        ...


class CalibrationWorker:
    """Answers ``query.calibrate``; called by the thread of the worker."""

    def __init__(self, device_id: str, host: Host, samples: SampleSource, *, run: Runner) -> None:
        """``run`` does the computing, perhaps on another thread."""
        self._device_id = device_id
        self._host = host
        self._samples = samples
        self._run = run

    def handle(self, fields: Mapping[str, object]) -> Mapping[str, Scalar]:
        """A :data:`~skerry_agent.training.worker.Handler`; raises RefusedError and WireError."""
        return self.calibrate(CalibrateInstruction.from_fields(fields)).to_fields()

    def calibrate(self, instruction: CalibrateInstruction) -> CalibrateReply:
        """Measure the ranges of activations.

        Raises:
            RefusedError: Another network, too few samples, bad parameters, an activation far beyond the reference,
                interrupted, or stopped.
        """
        with self._host.working(f"campaign {instruction.campaign_id} calibration", instruction.deadline_ms) as pause:
            bundle = self._host.open_bundle(instruction.train_step_sha256, instruction.task)
            if hashlib.sha256(bundle.calibrate).hexdigest() != instruction.graph_sha256:
                raise RefusedError(
                    f"{bundle.release_id} has another calibrate.onnx" if bundle.calibrate else "no calibrate.onnx here",
                    code="other-release",
                )
            reference = decode_ranges(instruction.reference)
            rows = self._rows(instruction)
            state = decode_bundle(instruction.parameters)
            bundle.trainer.check_state(state)
            digest = hashlib.sha256(instruction.parameters).digest()
            ranges = self._run(lambda: measure(bundle.calibrate, state, rows, digest, pause))
            if name := first_beyond(ranges, reference, factor=CALIBRATION_FACTOR):
                raise RefusedError(f"on its samples {name} is beyond {CALIBRATION_FACTOR:g} times the reference")
        logger.info("campaign %s: ranges of %d samples", instruction.campaign_id, ranges.rows)
        return CalibrateReply(device_id=self._device_id, ranges=encode_ranges(ranges))

    def _rows(self, instruction: CalibrateInstruction) -> Inputs:
        x, _ = self._samples.load()
        if len(x) < instruction.minimum_samples:
            raise RefusedError(
                f"{len(x)} labelled samples are fewer than {instruction.minimum_samples}", code="few-samples"
            )
        return x[:: -(-len(x) // instruction.maximum_rows)]


def measure(
    model: bytes, state: Mapping[str, Array], rows: Inputs, parameters_sha256: bytes, should_pause: ShouldPause
) -> TensorRanges:
    """Run calibrate.onnx over rows.

    Args:
        model: calibrate.onnx.
        state: Its parameters; it may take fewer.
        rows: float32 [N, ...], N >= 1.
        parameters_sha256: Digest of the wire form of ``state``.
        should_pause: Asked before each batch.

    Raises:
        ArtifactError: The graph cannot be loaded, wants what there is not, or cannot be run.
        InputError: Rows that do not fit, or are not finite.
        WireError: A range is not finite.
        TrainingInterruptedError: ``should_pause`` said so.
    """
    session = open_session(model, "calibrate.onnx")
    inputs = {value.name: tuple(value.shape) for value in session.get_inputs()}
    outputs = [value.name for value in session.get_outputs()]
    if _INPUT not in inputs or (missing := sorted(inputs.keys() - {_INPUT} - state.keys())):
        wanted = "the input 'input'" if _INPUT not in inputs else ", ".join(missing[:8])
        raise ArtifactError("", f"calibrate.onnx and the model disagree about {wanted}")
    row = inputs[_INPUT][1:]
    if len(row) != rows.ndim - 1 or any(d not in (n, None) for d, n in zip(row, rows.shape[1:], strict=True)):
        raise InputError("samples", expected=f"inputs of shape [N, {', '.join(map(str, row))}]", got=rows.shape)
    if not np.isfinite(rows).all():
        raise InputError("samples", expected="finite values", got="NaN or infinity")
    graph_sha256 = hashlib.sha256(model).digest()
    parameters = {name: np.asarray(state[name]) for name in inputs if name != _INPUT}
    batch = max(1, min(BATCH_ROWS, BATCH_BYTES // max(1, rows[:1].nbytes)))
    parts: list[TensorRanges] = []
    for start in range(0, len(rows), batch):
        while should_pause():
            time.sleep(PAUSE_POLL_S)
        x = np.ascontiguousarray(rows[start : start + batch])
        try:
            values = session.run(outputs, {_INPUT: x, **parameters})
        except Exception as error:  # onnxruntime's exceptions share no base class of their own
            raise ArtifactError("", f"calibrate.onnx cannot be run: {error}") from error
        told = dict(zip(outputs, values, strict=True))
        parts.append(
            ranges_from_outputs(told, rows=len(x), graph_sha256=graph_sha256, parameters_sha256=parameters_sha256)
        )
    return TensorRanges(graph_sha256, parameters_sha256, merge_ranges(parts).ranges, rows=len(rows))
