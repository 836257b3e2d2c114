"""The vision network at its real size: exported, quantised, in every form, and a step of its head; takes a minute."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from skerry_models.canonical_lint import lint_canonical
from skerry_models.errors import BundleError
from skerry_models.export import export_inference
from skerry_models.golden import golden_rows
from skerry_models.network_forms import make_forms
from skerry_models.parameters import initial_parameters
from skerry_models.quantise import quantise
from skerry_models.tasks.vision import VisionTask
from skerry_models.train_step import check_golden_step, export_train_step, golden_step

pytestmark = pytest.mark.soak


def test_every_form_and_the_head_of_the_real_network(data_dir: Path) -> None:
    assert data_dir
    task = VisionTask()
    state, rows = initial_parameters(task, 0), task.source("client/store-01")
    graphs = export_inference(task, state, rows.x[:4])
    assert not {node.op_type for node in onnx.load_from_string(graphs.infer).graph.node} & {"BatchNormalization"}
    quantised = quantise(graphs.infer, rows.x)
    assert lint_canonical(onnx.load_from_string(quantised.canonical)) == []
    golden = golden_rows(rows)
    assert golden.shape == (3, 3, 224, 224)
    try:
        forms = make_forms(graphs.infer, quantised, golden, rows)
    except BundleError as error:  # pragma: no cover - says which form
        pytest.fail(str(error))
    # Accuracy of an untrained network is chance, so only forms that are exact enough by construction must be there.
    assert {"fp32", "int8-qdq", "int8-x86", "fp16"} <= set(forms.models)
    sizes = {name: len(model) / len(graphs.infer) for name, model in forms.models.items()}
    assert sizes["int8-qdq"] < 0.3
    assert sizes["fp16"] < 0.52
    assert sum(sizes.values()) <= 2.5
    step, spec = export_train_step(task)
    assert [parameter.name for parameter in spec.parameters if parameter.trainable] == ["head.weight", "head.bias"]
    check_golden_step(step, golden_step(task, state, step, spec, rows))
    assert len(step) < 1 << 20
    assert np.isfinite(graphs.parity)
