"""<form>-ort: onnxruntime's flat form of a graph, rewritten once and loaded without rewriting: it starts faster.

Rewritten at level "extended": what the level above it adds depends on the processor that does it. So an .ort runs on
every processor, may be a little slower there than its ONNX form, and is tied to onnxruntime (an older release does not
read the file of a newer one). A device can make it from the ONNX form with the onnxruntime that it has; so no bundle
carries it.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from skerry_models.errors import BundleError
from skerry_models.runtime import save_optimised


def flatten(model: bytes) -> bytes:
    """Bytes of the .ort form of an ONNX model.

    Raises:
        BundleError: onnxruntime does not accept the model.
    """
    with tempfile.TemporaryDirectory(prefix="skerry-ort-") as folder:
        target = Path(folder) / "model.ort"
        save_optimised(model, target)
        if not target.is_file():
            raise BundleError(target.name, "onnxruntime wrote no file")
        return target.read_bytes()
