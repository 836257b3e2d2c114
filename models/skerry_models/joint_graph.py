"""Forward, loss and backward of a network as one plain graph of aten operators, then as ONNX.

``torch.export.experimental._export_forward_backward`` is not a stable interface: torch is pinned and this file is the
only one that uses it. Invariants of the result: every trainable parameter has a gradient, every operator is in the
default ONNX domain, and names are the network's fully qualified names.
"""
# mypy: allow-subclassing-any
# torch is untyped here (pyproject.toml): its Module is Any.

from __future__ import annotations

import contextlib
import copy
import io
import logging
import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import onnx
import torch
from torch.nn import functional

from skerry_models.decompositions import UnsupportedGradientError, decomposition_table
from skerry_models.errors import ExportError
from skerry_models.onnx_graph import OPSET, rename_values

ARTIFACT = "train_step.onnx"
_PREFIX = "network."
#: Terminal colours in exporter messages.
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")


class LossModule(torch.nn.Module):
    """Mean cross-entropy of a network's logits; ``forward(x, y)`` is the scalar loss."""

    def __init__(self, network: torch.nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """float32 [batch, *input], int64 [batch] -> float32 []."""
        return functional.cross_entropy(self.network(x), y)


@dataclass(frozen=True)
class JointGraph:
    """An ONNX graph and what its outputs are.

    Attributes:
        model: Default domain; parameters are still initializers.
        loss: Output name of the scalar loss.
        gradients: Parameter name to output name, in graph order.
        buffers: Buffer name to output name of its new value (BatchNorm statistics).
    """

    model: onnx.ModelProto
    loss: str
    gradients: dict[str, str]
    buffers: dict[str, str]


@contextlib.contextmanager
def quiet_export() -> Iterator[None]:
    """Keep the exporter's progress lines and deprecation warnings away from the caller's terminal."""
    previous = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(previous)


def build_joint_graph(network: torch.nn.Module, x: torch.Tensor, y: torch.Tensor) -> JointGraph:
    """Export forward + loss + backward.

    Args:
        network: Logits from raw rows; is put into training mode.
        x: float32 [batch, *input], batch >= 2; its batch dimension becomes dynamic.
        y: int64 [batch].

    Raises:
        ExportError: The network does not export, or a gradient is missing or has no plain ONNX form.
    """
    _check_gradients(network, x, y)
    module = LossModule(network.train())
    with quiet_export():
        program = _joint_program(module, x, y)
        outputs = _expose_outputs(program)
        model = _to_onnx(program)
    names = [output.name for output in model.graph.output]
    if len(names) != len(outputs):
        raise ExportError(ARTIFACT, f"the graph has {len(names)} outputs, expected {len(outputs)}")
    by_kind: dict[str, dict[str, str]] = {"LOSS_OUTPUT": {}, "GRADIENT_TO_PARAMETER": {}, "BUFFER_MUTATION": {}}
    for (kind, target), name in zip(outputs, names, strict=True):
        if kind not in by_kind:
            raise ExportError(ARTIFACT, f"the network has an output of kind {kind} that a training step cannot have")
        by_kind[kind][target.removeprefix(_PREFIX)] = name
    gradients = by_kind["GRADIENT_TO_PARAMETER"]
    missing = [n for n, p in network.named_parameters() if p.requires_grad and n not in gradients]
    if missing or not gradients:
        raise ExportError(ARTIFACT, f"no gradient for {', '.join(missing) or 'any parameter'}")
    if len(by_kind["LOSS_OUTPUT"]) != 1:
        raise ExportError(ARTIFACT, f"expected one loss, found {len(by_kind['LOSS_OUTPUT'])}")
    return JointGraph(model, next(iter(by_kind["LOSS_OUTPUT"].values())), gradients, by_kind["BUFFER_MUTATION"])


def _check_gradients(network: torch.nn.Module, x: torch.Tensor, y: torch.Tensor) -> None:
    """Run one eager backward pass on a copy: the exporter does not name a parameter that the loss does not reach."""
    try:
        trial = copy.deepcopy(network).train()
        functional.cross_entropy(trial(x), y).backward()
    except (RuntimeError, TypeError, ValueError, IndexError) as error:
        raise ExportError(ARTIFACT, f"the network does not run on {list(x.shape)}: {first_lines(error)}") from error
    missing = [
        name for name, parameter in trial.named_parameters() if parameter.requires_grad and parameter.grad is None
    ]
    if missing:
        raise ExportError(ARTIFACT, f"no gradient for {', '.join(missing)}")


def _joint_program(module: LossModule, x: torch.Tensor, y: torch.Tensor) -> Any:
    from torch.export.experimental import _export_forward_backward

    batch = torch.export.Dim("batch", min=2, max=4096)
    try:
        with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
            program = torch.export.export(module, (x, y), dynamic_shapes=({0: batch}, {0: batch}))
            joint = _export_forward_backward(program, joint_loss_index=0)
        return joint.run_decompositions(decomposition_table())
    except UnsupportedGradientError as error:
        raise ExportError(ARTIFACT, str(error)) from error
    except Exception as error:
        # torch.export has no common exception class: any failure here means that the network cannot be traced.
        raise ExportError(ARTIFACT, f"the network cannot be traced: {first_lines(error)}") from error


def _expose_outputs(program: Any) -> list[tuple[str, str]]:
    """Make loss, gradients and mutated buffers plain outputs; returns (kind, target) of each, in order.

    Without the first change an exported MLP has no nodes and raises no error; without the second export fails.
    """
    from torch.export.graph_signature import OutputKind
    from torch.utils import _pytree

    specs = program.graph_signature.output_specs
    described = [(spec.kind.name, spec.target or "") for spec in specs]
    for spec in specs:
        spec.kind = OutputKind.USER_OUTPUT
    program.module_call_graph[0].signature.out_spec = _pytree.tree_structure(tuple(range(len(described))))
    return described


def _to_onnx(program: Any) -> onnx.ModelProto:
    try:
        exported = torch.onnx.export(program, dynamo=True, verbose=False, optimize=False, opset_version=OPSET)
    except Exception as error:
        # The exporter's exceptions wrap each other by version; what they have in common is the operator in the text.
        raise ExportError(ARTIFACT, f"an operator has no ONNX form: {first_lines(error)}") from error
    model: onnx.ModelProto = exported.model_proto
    stripped = {
        tensor.name: tensor.name.removeprefix(_PREFIX)
        for tensor in model.graph.initializer
        if tensor.name.startswith(_PREFIX)
    }
    rename_values(model.graph, stripped)
    return model


def first_lines(error: BaseException) -> str:
    """What the exception at the bottom of a chain says, in one line: exporters bury the cause under general advice."""
    cause = error
    while cause.__cause__ is not None:
        cause = cause.__cause__
    lines = [_COLOUR.sub("", line).strip() for line in str(cause).splitlines()]
    return f"{type(cause).__name__}: {next((line for line in lines if line), 'no message')[:400]}"
