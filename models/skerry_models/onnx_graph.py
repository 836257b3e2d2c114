"""Small edits and checks on ONNX graphs that every export shares."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import onnx

from skerry_models.errors import ExportError

OPSET = 20


def rename_values(graph: onnx.GraphProto, names: Mapping[str, str]) -> None:
    """Rename values of a graph without subgraphs, everywhere they occur.

    Raises:
        ValueError: A new name is already taken by another value.
    """
    taken = {v.name for v in [*graph.input, *graph.initializer]} | {o for node in graph.node for o in node.output}
    clashes = (set(names.values()) & taken) - set(names)
    if clashes:
        raise ValueError(f"names already taken: {', '.join(sorted(clashes))}")
    for value in [*graph.input, *graph.output, *graph.initializer, *graph.value_info]:
        value.name = names.get(value.name, value.name)
    for node in graph.node:
        for ports in (node.input, node.output):
            for index, name in enumerate(ports):
                if name in names:
                    ports[index] = names[name]


def strip_origin(model: onnx.ModelProto) -> None:
    """Remove stack traces, file paths and version marks, so that equal graphs are equal bytes."""
    model.producer_name, model.producer_version, model.doc_string = "skerry", "", ""
    model.graph.name, model.graph.doc_string = "skerry", ""
    del model.metadata_props[:]
    del model.graph.metadata_props[:]
    for element in [*model.graph.node, *model.graph.value_info, *model.graph.initializer]:
        del element.metadata_props[:]
        element.doc_string = ""
    for value in [*model.graph.input, *model.graph.output]:
        del value.metadata_props[:]
        value.doc_string = ""


def remove_unused(graph: onnx.GraphProto) -> None:
    """Drop nodes, initializers and value infos that no output needs; inputs stay."""
    needed = {output.name for output in graph.output}
    kept = []
    for node in reversed(graph.node):
        if needed & set(node.output):
            kept.append(node)
            needed |= set(node.input)
    kept.reverse()
    nodes = list(kept)
    del graph.node[:]
    graph.node.extend(nodes)
    initializers = [tensor for tensor in graph.initializer if tensor.name in needed]
    del graph.initializer[:]
    graph.initializer.extend(initializers)
    del graph.value_info[:]


def initializers_to_inputs(graph: onnx.GraphProto, names: Collection[str]) -> list[str]:
    """Make initializers required inputs, in the order of ``names``; returns the names that are no initializers."""
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    missing = []
    for name in names:
        tensor = tensors.get(name)
        if tensor is None:
            missing.append(name)
            continue
        graph.initializer.remove(tensor)
        graph.input.append(onnx.helper.make_tensor_value_info(name, tensor.data_type, list(tensor.dims)))
    return missing


def check_plain(model: onnx.ModelProto, artifact: str, *, opset: int = OPSET) -> None:
    """Accept only graphs that any ONNX runtime can load.

    Raises:
        ExportError: No nodes, another domain or opset, local functions, subgraphs, or an invalid graph.
    """
    foreign = sorted({node.domain for node in model.graph.node if node.domain not in ("", "ai.onnx")})
    if foreign:
        raise ExportError(artifact, f"operators outside the default domain: {', '.join(foreign)}")
    if model.functions:
        raise ExportError(artifact, f"local functions: {', '.join(function.name for function in model.functions)}")
    if not model.graph.node:
        raise ExportError(artifact, "the graph is empty")
    versions = [entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")]
    if versions != [opset]:
        raise ExportError(artifact, f"expected opset {opset}, got {versions}")
    graphs = {onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS}
    nested = [node.op_type for node in model.graph.node if any(a.type in graphs for a in node.attribute)]
    if nested:
        raise ExportError(artifact, f"control flow: {', '.join(nested)}")
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ExportError(artifact, f"invalid ONNX: {str(error)[:300]}") from error


def keep_default_domain(model: onnx.ModelProto) -> None:
    """Drop opset imports of domains that no node uses."""
    used = {node.domain for node in model.graph.node} | {""}
    kept = [entry for entry in model.opset_import if entry.domain in used or entry.domain == "ai.onnx"]
    entries = [(entry.domain, entry.version) for entry in kept]
    del model.opset_import[:]
    model.opset_import.extend(onnx.helper.make_opsetid(domain, version) for domain, version in entries)


def serialise(model: onnx.ModelProto) -> bytes:
    """Deterministic bytes."""
    data: bytes = model.SerializeToString(deterministic=True)
    return data


def name_batch(graph: onnx.GraphProto, inputs: Collection[str]) -> None:
    """Call every symbolic dimension of inputs and outputs "batch".

    Raises:
        ExportError: One of the data ``inputs`` has no symbolic first dimension: its batch was traced as a constant.
    """
    for value in [*graph.input, *graph.output]:
        for position, dimension in enumerate(value.type.tensor_type.shape.dim):
            if dimension.HasField("dim_param"):
                dimension.dim_param = "batch"
            elif value.name in inputs and position == 0:
                raise ExportError(graph.name, f"the batch dimension of {value.name} is fixed to {dimension.dim_value}")


def ancestors(graph: onnx.GraphProto, output: str) -> list[onnx.NodeProto]:
    """Nodes that ``output`` depends on, in graph order."""
    needed, found = {output}, []
    for node in reversed(graph.node):
        if needed & set(node.output):
            found.append(node)
            needed |= set(node.input)
    found.reverse()
    return found
