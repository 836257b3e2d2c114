"""Training with onnxruntime and no deep-learning framework: one ONNX graph is one SGD step.

``train_step.onnx`` takes (parameters, velocities, global parameters, x, y, learning rate, mu) and gives (new
parameters, new velocities, loss); ``train_step.pb`` says which graph name is which. Values stay inside onnxruntime
between the steps, so nothing is copied but the batch.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime

from skerry_agent.errors import ArtifactError, InputError
from skerry_agent.training.trainer import (
    Array,
    EvaluationResult,
    Inputs,
    Labels,
    ShouldPause,
    State,
    TrainingDivergedError,
    TrainingInterruptedError,
    TrainOptions,
    TrainResult,
)
from skerry_contract.tensors import decode_tensor
from skerry_contract.v1.release_pb2 import GoldenStep, ParameterSpec, TrainStepSpec

Floats = npt.NDArray[np.float32]
#: Rows per call of the evaluation graph; its batch dimension goes up to 64.
EVALUATION_BATCH = 64
#: Seconds between two questions whether a pause is over.
PAUSE_POLL_S = 0.05


def open_session(model: bytes, name: str) -> Any:
    """A session on one thread that sleeps between calls; raises ArtifactError when the graph cannot be loaded."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3
    try:
        return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's exceptions share no base class of their own
        raise ArtifactError("", f"{name} cannot be loaded: {error}") from error


def _names(values: list[Any]) -> set[str]:
    return {str(value.name) for value in values}


class OnnxTrainer:
    """A :class:`~skerry_agent.training.trainer.Trainer` for the network of one bundle."""

    def __init__(self, step_model: bytes, spec: TrainStepSpec, evaluate_model: bytes) -> None:
        """Load both graphs.

        Args:
            step_model: train_step.onnx.
            spec: train_step.pb.
            evaluate_model: evaluate.onnx.

        Raises:
            ArtifactError: A graph cannot be loaded, or does not have the inputs and outputs that the spec names.
        """
        self._spec = spec
        self._step = open_session(step_model, "train_step.onnx")
        self._evaluate = open_session(evaluate_model, "evaluate.onnx")
        self._parameters: dict[str, ParameterSpec] = {item.name: item for item in spec.parameters}
        self._trainable = [item for item in spec.parameters if item.trainable]
        self._outputs = [spec.loss_output]
        #: Graph output to the graph input that takes it in the next step.
        self._carried: dict[str, str] = {}
        for item in spec.parameters:
            if item.new_output:
                self._carried[item.new_output] = item.name
            if item.new_velocity_output:
                self._carried[item.new_velocity_output] = item.velocity_input
        self._outputs += list(self._carried)
        self._check_graphs()

    def _check_graphs(self) -> None:
        spec = self._spec
        given = _names(self._step.get_inputs())
        wanted = {spec.data_input, spec.label_input, spec.learning_rate_input}
        wanted |= {spec.proximal_input} - {""}
        wanted |= set(self._parameters)
        wanted |= {name for item in self._trainable for name in (item.velocity_input, item.global_input) if name}
        if given != wanted:
            difference = sorted(given ^ wanted)
            raise ArtifactError("", f"train_step.onnx and train_step.pb disagree about the inputs {difference[:8]}")
        if missing := sorted(set(self._outputs) - _names(self._step.get_outputs())):
            raise ArtifactError("", f"train_step.onnx lacks the outputs {missing[:8]} of train_step.pb")
        self._evaluate_parameters = _names(self._evaluate.get_inputs()) - {"input"}
        if "input" not in _names(self._evaluate.get_inputs()) or "scores" not in _names(self._evaluate.get_outputs()):
            raise ArtifactError("", "evaluate.onnx must have the input 'input' and the output 'scores'")
        if unknown := sorted(self._evaluate_parameters - set(self._parameters)):
            raise ArtifactError("", f"evaluate.onnx asks for {unknown[:8]}, which train_step.pb does not name")

    @property
    def trainable(self) -> frozenset[str]:
        """See :class:`~skerry_agent.training.trainer.Trainer`."""
        return frozenset(item.name for item in self._trainable)

    @property
    def momentum(self) -> float:
        """See :class:`~skerry_agent.training.trainer.Trainer`."""
        return float(self._spec.momentum)

    def check_golden_step(self, golden: GoldenStep) -> None:
        """Run the golden step and compare.

        A value fits when it is within ``golden.tolerance`` (absolute; the exporter scales it) of the expected one.

        Raises:
            ArtifactError: An output is missing, has another shape, or differs.
        """
        feeds = {tensor.name: decode_tensor(tensor) for tensor in golden.inputs}
        names = [tensor.name for tensor in golden.outputs]
        if not names:
            raise ArtifactError("", "golden_step.pb has no outputs")
        try:
            results = dict(zip(names, self._step.run(names, feeds), strict=True))
        except Exception as error:  # see open_session
            raise ArtifactError("", f"the golden step cannot be run: {error}") from error
        for tensor in golden.outputs:
            expected = np.asarray(decode_tensor(tensor), dtype=np.float64)
            got = np.asarray(results[tensor.name], dtype=np.float64)
            if got.shape != expected.shape:
                raise ArtifactError("", f"golden step: {tensor.name} has shape {got.shape}, not {expected.shape}")
            difference = float(np.abs(got - expected).max(initial=0.0))
            if not difference <= golden.tolerance:
                raise ArtifactError(
                    "", f"golden step: {tensor.name} is off by {difference:.3g} > {golden.tolerance:.3g}"
                )

    def check_state(self, state: Mapping[str, Array]) -> None:
        """See :class:`~skerry_agent.training.trainer.Trainer`."""
        if set(state) != set(self._parameters):
            difference = sorted(set(state) ^ set(self._parameters))
            raise InputError("parameters", expected=f"{len(self._parameters)} tensors of the network", got=difference)
        for name, item in self._parameters.items():
            array, shape = state[name], tuple(item.shape)
            if array.shape != shape or array.dtype.name != item.dtype:
                raise InputError(
                    f"parameters[{name}]", expected=f"{item.dtype} {shape}", got=f"{array.dtype} {array.shape}"
                )
            if array.dtype.kind == "f" and not np.isfinite(array).all():
                raise InputError(f"parameters[{name}]", expected="finite values", got="NaN or infinity")

    def _check_samples(self, x: Inputs, y: Labels) -> None:
        if len(x) == 0 or len(x) != len(y):
            raise InputError("samples", expected="as many labels as inputs, at least one", got=f"{len(x)}, {len(y)}")
        declared = next(value for value in self._step.get_inputs() if value.name == self._spec.data_input).shape
        row = tuple(declared[1:])
        if x.ndim != len(declared) or any(isinstance(d, int) and d != n for d, n in zip(row, x.shape[1:], strict=True)):
            raise InputError("samples", expected=f"inputs of shape [N, {', '.join(map(str, row))}]", got=x.shape)

    def train(
        self, state: Mapping[str, Array], x: Inputs, y: Labels, options: TrainOptions, should_pause: ShouldPause
    ) -> TrainResult:
        """See :class:`~skerry_agent.training.trainer.Trainer`."""
        self.check_state(state)
        self._check_samples(x, y)
        started = time.monotonic()
        order = np.random.default_rng(options.seed)
        feeds = self._initial_feeds(state, options)
        corrections = self._corrections(options)
        carried = self._moving(options)
        steps, losses = 0, 0.0
        for _ in range(options.local_epochs):
            rows = order.permutation(len(x))
            losses = 0.0
            for start in range(0, len(rows), options.batch_size):
                _wait_while(should_pause)
                batch = rows[start : start + options.batch_size]
                loss = self._run_step(feeds, carried, x[batch], y[batch])
                for value, velocity, correction, move in corrections:
                    _add(feeds[value], move)
                    if velocity:
                        _add(feeds[velocity], correction)
                if not math.isfinite(loss):
                    raise TrainingDivergedError(f"the loss is {loss} at step {steps + 1}")
                losses += loss * len(batch)
                steps += 1
        trained: State = {name: np.array(feeds[name].numpy()) for name in self._parameters}
        for name, array in trained.items():
            if array.dtype.kind == "f" and not np.isfinite(array).all():
                raise TrainingDivergedError(f"parameter {name} is not finite after {steps} steps")
        return TrainResult(trained, len(x), steps, time.monotonic() - started, losses / len(x))

    def _initial_feeds(self, state: Mapping[str, Array], options: TrainOptions) -> dict[str, Any]:
        def value(array: npt.ArrayLike) -> Any:
            return onnxruntime.OrtValue.ortvalue_from_numpy(np.array(array, order="C"))

        feeds = {name: value(state[name]) for name in self._parameters}
        for item in self._trainable:
            if item.velocity_input:
                feeds[item.velocity_input] = value(np.zeros(tuple(item.shape), dtype=item.dtype))
            if item.global_input:
                feeds[item.global_input] = value(state[item.name])
        feeds[self._spec.learning_rate_input] = value(np.array(options.learning_rate, dtype=np.float32))
        if self._spec.proximal_input:
            feeds[self._spec.proximal_input] = value(np.array(options.proximal_mu, dtype=np.float32))
        elif options.proximal_mu:
            raise InputError("proximal_mu", expected="0: this train step has no FedProx term", got=options.proximal_mu)
        return feeds

    def _corrections(self, options: TrainOptions) -> list[tuple[str, str, Floats, Floats]]:
        """(parameter, its velocity, c, -learning rate * c) for each corrected parameter.

        A step of the graph is v' = m v + g, w' = w - lr v'. With the gradient g + c it would be v' + c and w' - lr c,
        so adding both after the step is the corrected step exactly, with and without momentum.
        """
        found: list[tuple[str, str, Floats, Floats]] = []
        for name, array in options.correction.items():
            item = self._parameters.get(name)
            if item is None or not item.trainable or array.shape != tuple(item.shape):
                raise InputError("correction", expected="tensors of trainable parameters", got=name)
            if item.dtype != "float32" or array.dtype != np.float32:
                raise InputError(f"correction[{name}]", expected="float32 for a float32 parameter", got=array.dtype)
            correction = np.asarray(array, dtype=np.float32)
            if not np.isfinite(correction).all():
                raise InputError(f"correction[{name}]", expected="finite values", got="NaN or infinity")
            if correction.any():
                move = (np.float32(-options.learning_rate) * correction).astype(np.float32)
                found.append((name, item.velocity_input, correction, move))
        return found

    def _moving(self, options: TrainOptions) -> dict[str, str]:
        """What a step hands on to the next, graph output to graph input: nothing of what is frozen."""
        if unknown := sorted(options.frozen - set(self._parameters)):
            raise InputError("frozen", expected="parameters of the network", got=", ".join(unknown[:8]))
        still = {value for name in options.frozen for value in (name, self._parameters[name].velocity_input)}
        return {output: value for output, value in self._carried.items() if value not in still}

    def _run_step(self, feeds: dict[str, Any], carried: Mapping[str, str], x: Inputs, y: Labels) -> float:
        """Take one step and put its results into ``feeds`` for the next; returns the loss before the step."""
        feeds[self._spec.data_input] = onnxruntime.OrtValue.ortvalue_from_numpy(x)
        feeds[self._spec.label_input] = onnxruntime.OrtValue.ortvalue_from_numpy(y)
        outputs = [self._outputs[0], *carried]
        loss, *values = self._step.run_with_ort_values(outputs, feeds)
        for output, produced in zip(carried, values, strict=True):
            feeds[carried[output]] = produced
        return float(loss.numpy())

    def evaluate(self, state: Mapping[str, Array], x: Inputs, y: Labels, should_pause: ShouldPause) -> EvaluationResult:
        """See :class:`~skerry_agent.training.trainer.Trainer`."""
        self.check_state(state)
        self._check_samples(x, y)
        parameters = {name: np.asarray(state[name]) for name in self._evaluate_parameters}
        right, loss, squared = 0, 0.0, 0.0
        for start in range(0, len(x), EVALUATION_BATCH):
            _wait_while(should_pause)
            labels = y[start : start + EVALUATION_BATCH]
            feeds = {"input": np.ascontiguousarray(x[start : start + EVALUATION_BATCH]), **parameters}
            scores = np.asarray(self._evaluate.run(["scores"], feeds)[0], dtype=np.float64)
            if labels.min() < 0 or labels.max() >= scores.shape[1]:
                raise InputError("samples", expected=f"labels from 0 to {scores.shape[1] - 1}", got=labels.max())
            right += int((scores.argmax(axis=1) == labels).sum())
            shifted = scores - scores.max(axis=1, keepdims=True)
            log_sum = np.log(np.exp(shifted).sum(axis=1))
            losses = log_sum - shifted[np.arange(len(labels)), labels]
            loss += float(losses.sum())
            squared += float(losses @ losses)
        if not math.isfinite(loss):
            raise TrainingDivergedError(f"the evaluation loss is {loss}")
        return EvaluationResult(len(x), right / len(x), loss / len(x), squared / len(x))


def _add(value: Any, summand: Floats) -> None:
    """Add to a tensor where it lies: onnxruntime's view of a tensor on the CPU is its memory."""
    view: Floats = value.numpy()
    view += summand


def _wait_while(should_pause: ShouldPause) -> None:
    """Sleep while ``should_pause`` says so; it bounds the wait by raising TrainingInterruptedError."""
    while should_pause():
        time.sleep(PAUSE_POLL_S)


__all__ = ["OnnxTrainer", "TrainingInterruptedError"]
