"""One local training step of a device as one plain ONNX graph.

    (parameters, velocities, global parameters, x, y, lr, mu) -> (loss, new parameters, new velocities)

    gradient = d loss / d parameter + mu * (parameter - global)          FedProx (Li et al., MLSys 2020)
    velocity' = momentum * velocity + gradient                           momentum SGD as in torch.optim.SGD
    parameter' = parameter - lr * velocity'

With mu = 0 and equal parameters it is FedAvg's local SGD. Buffers (BatchNorm statistics) go in and come out updated.
The graph does not depend on any parameter value, so that every release of a task carries the same bytes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import onnx
import torch
from onnx import helper, numpy_helper
from torch.nn import functional

from skerry_contract.tensors import Array, decode_tensor, encode_tensor
from skerry_contract.v1.release_pb2 import GoldenStep, ParameterSpec, TrainStepSpec
from skerry_models.errors import ExportError, ParameterError
from skerry_models.joint_graph import ARTIFACT, JointGraph, build_joint_graph, quiet_export
from skerry_models.onnx_graph import (
    OPSET,
    check_plain,
    initializers_to_inputs,
    keep_default_domain,
    name_batch,
    remove_unused,
    rename_values,
    serialise,
    strip_origin,
)
from skerry_models.parameters import State, from_network, load_into
from skerry_models.runtime import open_session
from skerry_models.task import Dataset, Task, create_device_network

Float64 = npt.NDArray[np.float64]

DATA_INPUT = "x"
LABEL_INPUT = "y"
LEARNING_RATE_INPUT = "lr"
PROXIMAL_INPUT = "mu"
LOSS_OUTPUT = "loss"
#: Most rows of the golden step, and bytes that they may take when there are more than two; step size, proximal weight.
_GOLDEN_ROWS = 8
_GOLDEN_BYTES = 2 << 20
_GOLDEN_RATE = 0.05
_GOLDEN_MU = 0.1


def export_train_step(task: Task, batch: int = 8) -> tuple[bytes, TrainStepSpec]:
    """Export the training step of a task.

    Args:
        task: Its network and momentum.
        batch: Rows of the traced example, at least 2; the graph takes any number from 1.

    Returns:
        The ONNX file, and how to feed it.

    Raises:
        ExportError: The network has no plain training step; the text names the operator.
    """
    model, spec = _exported(task, batch)
    return model, TrainStepSpec.FromString(spec)


@lru_cache(maxsize=8)
def _exported(task: Task, batch: int) -> tuple[bytes, bytes]:
    """Export takes seconds and depends on nothing but the task: once per process is enough."""
    network, momentum = create_device_network(task, 0), task.default_training.momentum
    model, spec = export_network_step(network, task.input.shape, len(task.classes), momentum, batch=batch)
    return model, spec.SerializeToString(deterministic=True)


def export_network_step(
    network: torch.nn.Module, input_shape: tuple[int, ...], classes: int, momentum: float, *, batch: int = 8
) -> tuple[bytes, TrainStepSpec]:
    """Export the training step of any classifier; see :func:`export_train_step`.

    Raises:
        ExportError: The network has no plain training step.
        ValueError: ``batch`` is below 2, or ``momentum`` is outside 0 to 1.
    """
    if batch < 2 or not 0.0 <= momentum < 1.0:
        raise ValueError(f"expected batch >= 2 and 0 <= momentum < 1, got {batch} and {momentum}")
    state = from_network(network)
    trainable = {name for name, parameter in network.named_parameters() if parameter.requires_grad}
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(batch, *input_shape, generator=generator)
    y = torch.arange(batch) % classes
    joint = build_joint_graph(network, x, y)
    spec = TrainStepSpec(
        parameters=[_describe(name, array, trainable=name in trainable) for name, array in state.items()],
        data_input=DATA_INPUT,
        label_input=LABEL_INPUT,
        learning_rate_input=LEARNING_RATE_INPUT,
        proximal_input=PROXIMAL_INPUT,
        loss_output=LOSS_OUTPUT,
        momentum=momentum,
        opset=OPSET,
    )
    model = _add_descent(joint, spec)
    with quiet_export():
        model = _optimise(model)
    keep_default_domain(model)
    strip_origin(model)
    remove_unused(model.graph)
    name_batch(model.graph, {DATA_INPUT, LABEL_INPUT})
    _check_interface(model, spec)
    check_plain(model, ARTIFACT)
    return serialise(model), spec


def _optimise(model: onnx.ModelProto) -> onnx.ModelProto:
    from onnxscript import optimizer

    optimised: onnx.ModelProto = optimizer.optimize(model)
    return optimised


def _describe(name: str, array: Array, *, trainable: bool) -> ParameterSpec:
    spec = ParameterSpec(
        name=name, dtype=array.dtype.name, shape=array.shape, trainable=trainable, new_output=f"new/{name}"
    )
    if trainable:
        spec.velocity_input = f"velocity/{name}"
        spec.global_input = f"global/{name}"
        spec.new_velocity_output = f"new_velocity/{name}"
    return spec


def _add_descent(joint: JointGraph, spec: TrainStepSpec) -> onnx.ModelProto:
    """Turn gradients into new parameters: FedProx term, momentum, step; parameters become inputs."""
    model, graph = joint.model, joint.model.graph
    if len(graph.input) != 2:
        raise ExportError(ARTIFACT, f"expected inputs x and y, got {[value.name for value in graph.input]}")
    rename_values(graph, {graph.input[0].name: DATA_INPUT, graph.input[1].name: LABEL_INPUT})
    element_types = {tensor.name: tensor.data_type for tensor in graph.initializer}
    unused = initializers_to_inputs(graph, [parameter.name for parameter in spec.parameters])
    if unused:
        raise ExportError(ARTIFACT, f"the network does not use {', '.join(unused)}")
    scalar = [
        helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [])
        for name in (LEARNING_RATE_INPUT, PROXIMAL_INPUT)
    ]
    graph.input.extend(scalar)
    graph.initializer.append(numpy_helper.from_array(np.array(spec.momentum, dtype=np.float32), "momentum"))
    outputs = [helper.make_tensor_value_info(LOSS_OUTPUT, onnx.TensorProto.FLOAT, [])]
    graph.node.append(helper.make_node("Identity", [joint.loss], [LOSS_OUTPUT]))
    for parameter in spec.parameters:
        kind, shape = element_types[parameter.name], list(parameter.shape)
        outputs.append(helper.make_tensor_value_info(parameter.new_output, kind, shape))
        if not parameter.trainable:
            source = joint.buffers.get(parameter.name, parameter.name)
            graph.node.append(helper.make_node("Identity", [source], [parameter.new_output]))
            continue
        graph.input.extend(
            helper.make_tensor_value_info(name, kind, shape)
            for name in (parameter.velocity_input, parameter.global_input)
        )
        graph.node.extend(_descent_nodes(parameter, joint.gradients[parameter.name]))
        outputs.append(helper.make_tensor_value_info(parameter.new_velocity_output, kind, shape))
    del graph.output[:]
    graph.output.extend(outputs)
    return model


def _descent_nodes(parameter: ParameterSpec, gradient: str) -> list[onnx.NodeProto]:
    name = parameter.name
    return [
        helper.make_node("Sub", [name, parameter.global_input], [f"distance/{name}"]),
        helper.make_node("Mul", [f"distance/{name}", PROXIMAL_INPUT], [f"proximal/{name}"]),
        helper.make_node("Add", [gradient, f"proximal/{name}"], [f"gradient/{name}"]),
        helper.make_node("Mul", [parameter.velocity_input, "momentum"], [f"kept/{name}"]),
        helper.make_node("Add", [f"kept/{name}", f"gradient/{name}"], [parameter.new_velocity_output]),
        helper.make_node("Mul", [parameter.new_velocity_output, LEARNING_RATE_INPUT], [f"step/{name}"]),
        helper.make_node("Sub", [name, f"step/{name}"], [parameter.new_output]),
    ]


def _check_interface(model: onnx.ModelProto, spec: TrainStepSpec) -> None:
    """Every name of the spec is in the graph; inputs are what the graph computes from, nothing is folded away."""
    inputs = {value.name for value in model.graph.input}
    outputs = {value.name for value in model.graph.output}
    read = {name for node in model.graph.node for name in node.input}
    expected_inputs = {DATA_INPUT, LABEL_INPUT, LEARNING_RATE_INPUT, PROXIMAL_INPUT}
    expected_outputs = {LOSS_OUTPUT}
    for parameter in spec.parameters:
        expected_outputs.add(parameter.new_output)
        expected_inputs.add(parameter.name)
        if parameter.trainable:
            expected_inputs |= {parameter.velocity_input, parameter.global_input}
            expected_outputs.add(parameter.new_velocity_output)
    if inputs != expected_inputs or outputs != expected_outputs:
        wrong = sorted(inputs ^ expected_inputs | outputs ^ expected_outputs)
        raise ExportError(ARTIFACT, f"graph and specification differ in {', '.join(wrong)}")
    if not expected_inputs <= read:
        raise ExportError(ARTIFACT, f"inputs that nothing reads: {', '.join(sorted(expected_inputs - read))}")


def golden_step(task: Task, state: Mapping[str, Array], step: bytes, spec: TrainStepSpec, rows: Dataset) -> GoldenStep:
    """Compute one step for a device to repeat, after checking it against torch in float64.

    Args:
        task: What is learned.
        state: Parameters to start from.
        step: The exported graph.
        spec: Its description.
        rows: At least one raw row; the first eight are used, or fewer large ones.

    Raises:
        ExportError: onnxruntime and torch disagree about the step.
        ParameterError: The state does not fit.
    """
    fitting = max(2, min(_GOLDEN_ROWS, _GOLDEN_BYTES // max(1, rows.x[:1].nbytes)))
    chosen = rows.take(np.arange(min(fitting, len(rows))))
    feed = _golden_feed(state, spec, chosen)
    names = [LOSS_OUTPUT, *(n for p in spec.parameters for n in (p.new_output, p.new_velocity_output) if n)]
    results = dict(zip(names, open_session(step).run(names, feed), strict=True))
    expected = _torch_step(task, state, spec, feed)
    scale = max(1.0, max(float(np.abs(array).max()) for array in results.values() if array.size))
    tolerance = 1e-3 * scale
    for name, array in results.items():
        difference = float(np.abs(array.astype(np.float64) - expected[name]).max()) if array.size else 0.0
        if not math.isfinite(difference) or difference > tolerance / 4:
            raise ExportError(ARTIFACT, f"{name} differs from torch by {difference:.3g}, more than {tolerance / 4:.3g}")
    return GoldenStep(
        inputs=[encode_tensor(name, array) for name, array in feed.items()],
        outputs=[encode_tensor(name, array) for name, array in results.items()],
        tolerance=tolerance,
    )


def _golden_feed(state: Mapping[str, Array], spec: TrainStepSpec, rows: Dataset) -> dict[str, Array]:
    """Inputs that make every term of the step matter: velocities and distance to the global model are not zero."""
    generator = np.random.default_rng(0)
    feed: dict[str, Array] = {
        spec.data_input: rows.x,
        spec.label_input: rows.y,
        spec.learning_rate_input: np.array(_GOLDEN_RATE, dtype=np.float32),
        spec.proximal_input: np.array(_GOLDEN_MU, dtype=np.float32),
    }
    for parameter in spec.parameters:
        if parameter.name not in state:
            raise ParameterError(parameter.name, expected="a tensor of the state", got="nothing")
        array = state[parameter.name]
        feed[parameter.name] = array
        if parameter.trainable:
            noise = generator.standard_normal((2, *array.shape)).astype(np.float32)
            feed[parameter.velocity_input] = np.float32(0.01) * noise[0]
            feed[parameter.global_input] = (array + np.float32(0.01) * noise[1]).astype(np.float32)
    return feed


def _torch_step(
    task: Task, state: Mapping[str, Array], spec: TrainStepSpec, feed: Mapping[str, Array]
) -> dict[str, Float64]:
    """The same step by torch's autograd in float64, by graph output name."""
    network = create_device_network(task, 0)
    load_into(network, state)
    network = network.double().train()
    x = torch.from_numpy(np.array(feed[spec.data_input], dtype=np.float64))
    loss = functional.cross_entropy(network(x), torch.from_numpy(np.array(feed[spec.label_input])))
    loss.backward()
    outputs: dict[str, Float64] = {spec.loss_output: np.array(loss.item())}
    live = dict(network.named_parameters()) | dict(network.named_buffers())
    rate, mu = float(feed[spec.learning_rate_input]), float(feed[spec.proximal_input])
    for parameter in spec.parameters:
        tensor = live[parameter.name]
        value = tensor.detach().numpy().astype(np.float64)
        if not parameter.trainable:
            outputs[parameter.new_output] = value
            continue
        pull = mu * (value - feed[parameter.global_input].astype(np.float64))
        velocity = spec.momentum * feed[parameter.velocity_input].astype(np.float64) + tensor.grad.numpy() + pull
        outputs[parameter.new_velocity_output] = velocity
        outputs[parameter.new_output] = value - rate * velocity
    return outputs


def check_golden_step(step: bytes, golden: GoldenStep) -> None:
    """Repeat a golden step.

    Raises:
        ExportError: A result differs by more than the tolerance.
    """
    feed = {tensor.name: decode_tensor(tensor) for tensor in golden.inputs}
    names = [tensor.name for tensor in golden.outputs]
    for tensor, array in zip(golden.outputs, open_session(step).run(names, feed), strict=True):
        expected = decode_tensor(tensor)
        difference = float(np.abs(array.astype(np.float64) - expected.astype(np.float64)).max()) if array.size else 0.0
        if not difference <= golden.tolerance:
            raise ExportError(ARTIFACT, f"{tensor.name} differs by {difference:.3g}, more than {golden.tolerance:.3g}")


def step_feed(
    spec: TrainStepSpec, state: State, velocities: Mapping[str, Array], reference: Mapping[str, Array]
) -> dict[str, Array]:
    """Feed of a step without data and scalars: parameters, velocities and global parameters under graph names."""
    feed: dict[str, Array] = {}
    for parameter in spec.parameters:
        feed[parameter.name] = state[parameter.name]
        if parameter.trainable:
            feed[parameter.velocity_input] = velocities[parameter.name]
            feed[parameter.global_input] = reference[parameter.name]
    return feed
