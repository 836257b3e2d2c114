"""onnxruntime sessions as devices open them: one thread, sequential, no spinning. Imported in this file only."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, cast

from skerry_contract.tensors import Array
from skerry_models.errors import BundleError


class Session(Protocol):
    """The part of ``onnxruntime.InferenceSession`` that is used."""

    def run(self, outputs: list[str] | None, feed: Mapping[str, Array]) -> list[Array]:
        """Run the graph; None asks for every output."""
        ...


def open_session(model: Path | bytes, *, optimise: bool = True) -> Session:
    """Open a graph on the CPU.

    Args:
        model: File, or its bytes.
        optimise: Whether onnxruntime may rewrite the graph.

    Raises:
        BundleError: onnxruntime does not accept it.
    """
    import onnxruntime

    options = _options()
    if not optimise:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return _create(model, options)


def save_optimised(model: bytes, target: Path) -> None:
    """Write what onnxruntime makes of a graph at level "extended"; a name that ends in ``.ort`` gives its flat form.

    Raises:
        BundleError: onnxruntime does not accept it.
    """
    import onnxruntime

    options = _options()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = str(target)
    _create(model, options)


def _options() -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return options


def _create(model: Path | bytes, options: Any) -> Session:
    import onnxruntime

    name = model.name if isinstance(model, Path) else "graph"
    source = str(model) if isinstance(model, Path) else model
    try:
        session = onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    except Exception as error:
        # onnxruntime raises its own unrelated classes (Fail, InvalidGraph, NoSuchFile), all direct Exceptions.
        raise BundleError(name, f"onnxruntime does not load it: {str(error)[:300]}") from error
    return cast("Session", session)
