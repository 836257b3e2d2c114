"""Inference graphs: one torch export, two files.

The export depends on the network and not on its parameters, so it is kept (:mod:`skerry_models.export_cache`) and the
parameters of the next model are put into it; either way both files are held against torch before they are used.

``infer.onnx`` has folded parameters; ``evaluate.onnx`` takes them as required inputs under their fully qualified
names, so that a device can judge any set of parameters. Data input "input" float32 [batch, *shape], batch 1 to 64;
outputs "scores" float32 [batch, classes] and (infer only) "features" float32 [batch, F].
"""
# mypy: allow-subclassing-any
# torch is untyped here (pyproject.toml): its Module is Any.

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx
import torch
from google.protobuf.message import DecodeError
from onnx import numpy_helper

from skerry_contract.tensors import Array
from skerry_models import export_cache
from skerry_models.errors import ExportError
from skerry_models.joint_graph import first_lines, quiet_export
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
from skerry_models.parameters import create_loaded
from skerry_models.runtime import open_session
from skerry_models.task import Float32, Task

logger = logging.getLogger(__name__)

INPUT = "input"
SCORES = "scores"
FEATURES = "features"
#: Largest batch that inference graphs promise to accept.
MAXIMUM_BATCH = 64
INFER = "infer.onnx"
EVALUATE = "evaluate.onnx"
#: Largest difference from torch, as a share of the largest absolute output.
PARITY_LIMIT = 1e-4
_PREFIX = "network."


class ServingModule(torch.nn.Module):
    """What a device runs: ``forward(x)`` is (scores, features), both from raw units."""

    def __init__(self, network: torch.nn.Module, features: torch.nn.Module) -> None:
        super().__init__()
        self.network = network
        self.features = features

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """float32 [batch, *input] -> float32 [batch, classes], float32 [batch, F]."""
        return self.network(x), self.features(x)


@dataclass(frozen=True)
class InferenceGraphs:
    """The exported files and how far they are from torch.

    Attributes:
        infer: Bytes of infer.onnx.
        evaluate: Bytes of evaluate.onnx.
        parity: Largest difference of either graph from torch, as a share of the largest absolute output.
    """

    infer: bytes
    evaluate: bytes
    parity: float


def export_inference(task: Task, state: Mapping[str, Array], rows: Float32) -> InferenceGraphs:
    """Export both inference graphs and compare them with torch.

    Args:
        task: What is learned.
        state: Parameters.
        rows: float32 [N, *input], raw rows for the comparison, at least 3.

    Raises:
        ExportError: The network or the features do not export, or a graph disagrees with torch.
        ParameterError: The state does not fit.
    """
    network = create_loaded(task, state)
    module = ServingModule(network, task.create_features().eval()).eval()
    if list(module.features.state_dict()):
        raise ExportError(INFER, f"drift features must have no state, found {list(module.features.state_dict())}")
    graphs = _finish_kept(module, task, state, rows)
    if graphs is not None:
        return graphs
    with export_cache.one_at_a_time(task, export_cache.INFERENCE):
        graphs = _finish_kept(module, task, state, rows)  # somebody else may have made it meanwhile
        if graphs is None:
            unfolded = _export(module, task.input.shape)
            exported = serialise(unfolded)
            graphs = _finish(module, task, state, rows, unfolded)
            export_cache.write(task, export_cache.INFERENCE, exported)
    return graphs


def _finish_kept(
    module: ServingModule, task: Task, state: Mapping[str, Array], rows: Float32
) -> InferenceGraphs | None:
    """Both files from the cache; None without an entry that stands the comparison with torch."""
    kept = export_cache.read(task, export_cache.INFERENCE)
    if kept is None:
        return None
    try:
        return _finish(module, task, state, rows, _with_parameters(kept[0], state))
    except Exception as error:
        # A damaged graph fails wherever it is looked at: in onnx, in the optimiser, in onnxruntime.
        logger.info("the kept export of %s is not used: %s", task.name, error)
        return None


def _finish(
    module: ServingModule, task: Task, state: Mapping[str, Array], rows: Float32, unfolded: onnx.ModelProto
) -> InferenceGraphs:
    """Both files of an exported graph, which is changed; raises ExportError when one disagrees with torch."""
    infer = onnx.ModelProto()
    infer.CopyFrom(unfolded)
    infer_bytes = _finish_infer(infer)
    evaluate_bytes = _finish_evaluate(unfolded, list(state))
    parity = _parity(module, task, state, infer_bytes, evaluate_bytes, rows)
    if not parity <= PARITY_LIMIT:
        raise ExportError(INFER, f"differs from torch by {parity:.2e} of the output, more than {PARITY_LIMIT:.0e}")
    return InferenceGraphs(infer_bytes, evaluate_bytes, parity)


def _with_parameters(exported: bytes, state: Mapping[str, Array]) -> onnx.ModelProto:
    """A kept export with the parameters of ``state``; raises ExportError when they do not fit."""
    try:
        model = onnx.load_from_string(exported)
    except DecodeError as error:
        raise ExportError(INFER, f"the kept export does not parse: {error}") from error
    for tensor in model.graph.initializer:
        if tensor.name not in state:
            continue
        array = state[tensor.name]
        if tuple(tensor.dims) != array.shape or onnx.helper.np_dtype_to_tensor_dtype(array.dtype) != tensor.data_type:
            raise ExportError(INFER, f"parameter {tensor.name} of the kept export has another shape or type")
        tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    return model


def _export(module: ServingModule, shape: tuple[int, ...]) -> onnx.ModelProto:
    batch = torch.export.Dim("batch", min=1, max=MAXIMUM_BATCH)
    with quiet_export():
        try:
            exported = torch.onnx.export(
                module,
                (torch.zeros(2, *shape),),
                dynamo=True,
                verbose=False,
                input_names=[INPUT],
                output_names=[SCORES, FEATURES],
                dynamic_shapes=({0: batch},),
                opset_version=OPSET,
                external_data=False,
                optimize=False,
            )
        except Exception as error:
            # The exporter's exceptions wrap each other by version; what they share is the operator in the text.
            raise ExportError(INFER, f"the network does not export: {first_lines(error)}") from error
    model: onnx.ModelProto = exported.model_proto
    names = [tensor.name for tensor in model.graph.initializer if tensor.name.startswith(_PREFIX)]
    rename_values(model.graph, {name: name.removeprefix(_PREFIX) for name in names})
    return model


def _finish_infer(model: onnx.ModelProto) -> bytes:
    from onnxscript import optimizer

    with quiet_export():
        optimised: onnx.ModelProto = optimizer.optimize(model)
    _clean(optimised)
    for index, node in enumerate(optimised.graph.node):
        node.name = f"{node.op_type}_{index}"
    check_plain(optimised, INFER)
    return serialise(optimised)


def _finish_evaluate(model: onnx.ModelProto, names: list[str]) -> bytes:
    from onnxscript import optimizer

    for output in [output for output in model.graph.output if output.name != SCORES]:
        model.graph.output.remove(output)
    remove_unused(model.graph)
    # A buffer that inference does not read (BatchNorm's num_batches_tracked) is an input that nothing uses: devices
    # feed every tensor of the state.
    tensors = {tensor.name for tensor in model.graph.initializer}
    missing = initializers_to_inputs(model.graph, [name for name in names if name in tensors])
    if missing:
        raise ExportError(EVALUATE, f"parameters lost their names: {', '.join(missing)}")
    with quiet_export():
        optimised: onnx.ModelProto = optimizer.optimize(model)
    _clean(optimised)
    check_plain(optimised, EVALUATE)
    return serialise(optimised)


def _clean(model: onnx.ModelProto) -> None:
    keep_default_domain(model)
    strip_origin(model)
    remove_unused(model.graph)
    name_batch(model.graph, {INPUT})


def _parity(
    module: ServingModule,
    task: Task,
    state: Mapping[str, Array],
    infer: bytes,
    evaluate: bytes,
    rows: Float32,
) -> float:
    """Largest relative difference over batches of 1, 2 and all (at most 64) rows."""
    inference, evaluation = open_session(infer), open_session(evaluate)
    wanted = {value.name for value in onnx.load_from_string(evaluate).graph.input}
    parameters = {name: array for name, array in state.items() if name in wanted}
    worst = 0.0
    for size in sorted({1, 2, min(len(rows), MAXIMUM_BATCH)}):
        x = np.ascontiguousarray(rows[:size])
        with torch.no_grad():
            expected = [tensor.numpy() for tensor in module(torch.from_numpy(x.copy()))]
        if [array.shape for array in expected] != [(size, len(task.classes)), (size, len(task.feature_names))]:
            raise ExportError(INFER, f"scores and features have shapes {[array.shape for array in expected]}")
        scores, features = inference.run([SCORES, FEATURES], {INPUT: x})
        (evaluated,) = evaluation.run([SCORES], {INPUT: x, **parameters})
        for got, want in ((scores, expected[0]), (features, expected[1]), (evaluated, expected[0])):
            worst = max(worst, float(np.abs(got - want).max() / max(1.0, np.abs(want).max())))
    return worst
