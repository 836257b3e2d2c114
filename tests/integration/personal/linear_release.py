"""A signed release that can be trained and served: softmax regression, and people whose answers are shifted.

Inputs [B, 2, 3]; scores = flatten(x) @ weight^T + bias; features = mean over the last axis. The weight is everybody's,
the bias may be the device's own. In ``infer.onnx`` the parameters have other names, as an optimiser would give them.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from integration.engine.tiny_bundle import CLASSES, SHAPE, SIGNER
from skerry_agent.config import AgentLayout
from skerry_agent.update.slots import MANIFEST, Pointer, SlotContent, SlotName, slot_folder, write_pointer
from skerry_contract.histogram import build_edges
from skerry_contract.manifest import bundle_digest, describe_folder
from skerry_contract.signing import RELEASE
from skerry_contract.tensors import Array, encode_bundle, encode_tensor
from skerry_contract.v1.common_pb2 import TensorSpec
from skerry_contract.v1.release_pb2 import GoldenOutputs, GoldenSet, ReleaseManifest, Variant
from unit.agent_training.linear_graphs import BIAS, WEIGHT, linear_graphs

Floats = npt.NDArray[np.float32]
Labels = npt.NDArray[np.int64]
TASK = "linear"
GRAPHS = linear_graphs(SHAPE, len(CLASSES))
#: What everybody's answers follow, and how far this device's people are from it.
TRUTH = np.random.default_rng(1).normal(size=(3, 6)).astype(np.float32)
SHIFT = np.array([2.5, -1.0, 0.0], np.float32)


@dataclass(frozen=True)
class LinearRelease:
    """What to build; tests change a field to break one thing.

    Attributes:
        release_id: Name.
        sequence: Number; also how far its weight is from the truth.
        files: Content that takes the place of a file, or None for a file that is missing.
        tolerance: Golden tolerance.
        golden_off: Added to the golden scores: nothing reproduces them then.
    """

    release_id: str = "linear-1"
    sequence: int = 1
    files: Mapping[str, bytes | None] = field(default_factory=dict)
    tolerance: float = 1e-5
    golden_off: float = 0.0

    @property
    def state(self) -> dict[str, Array]:
        """Its parameters."""
        noise = np.random.default_rng(self.sequence).normal(scale=0.05, size=TRUTH.shape)
        return {WEIGHT: (TRUTH + noise).astype(np.float32), BIAS: np.zeros(3, np.float32)}

    def write(self, folder: Path) -> ReleaseManifest:
        """Write the bundle and its signed manifest."""
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        x = np.random.default_rng(7).normal(size=(5, *SHAPE)).astype(np.float32)
        outputs = {"scores": scores(self.state, x) + np.float32(self.golden_off), "features": x.mean(axis=2)}
        golden = GoldenSet(inputs=[encode_tensor("input", x)])
        tensors = [encode_tensor(name, array) for name, array in outputs.items()]
        golden.outputs.append(GoldenOutputs(variant="fp32", tensors=tensors))
        features = np.random.default_rng(8).normal(size=(300, *SHAPE)).mean(axis=2)
        edges = build_edges(
            {f"mean-{i}": features[:, i] for i in range(2)},
            cells=10,
            classes=CLASSES,
            confidence_edges=[0.4, 0.5, 0.6, 0.7, 0.8, 0.9],
            latency_edges=[10, 100, 1000, 10_000],
            predictions=np.array([100, 100, 100]),
        ).SerializeToString()
        files: dict[str, bytes | None] = {
            "infer.onnx": infer_graph(self.state),
            "evaluate.onnx": GRAPHS.evaluate,
            "train_step.onnx": GRAPHS.step,
            "train_step.pb": GRAPHS.spec.SerializeToString(),
            "golden_step.pb": GRAPHS.golden().SerializeToString(),
            "parameters.pb": encode_bundle(self.state),
            "golden.pb": golden.SerializeToString(),
            "drift_edges.pb": edges,
            **self.files,
        }
        for name, content in files.items():
            if content is not None:
                (folder / name).write_bytes(content)
        manifest = ReleaseManifest(
            release_id=self.release_id,
            sequence=self.sequence,
            task=TASK,
            files=list(describe_folder(folder)),
            variants=[Variant(name="fp32", path="infer.onnx", golden_tolerance=self.tolerance)],
            inputs=[TensorSpec(name="input", dtype="float32", shape=(-1, *SHAPE), minimum=-100, maximum=100)],
            outputs=[
                TensorSpec(name="scores", dtype="float32", shape=(-1, 3), labels=CLASSES),
                TensorSpec(name="features", dtype="float32", shape=(-1, 2)),
            ],
            edges_sha256=hashlib.sha256(edges).digest(),
            train_step_sha256=hashlib.sha256(GRAPHS.step).digest(),
            created_unix_ms=1_700_000_000_000,
            scores_output="scores",
            features_output="features",
        )
        manifest.bundle_sha256 = bundle_digest(manifest.files)
        (folder / MANIFEST).write_bytes(SIGNER.sign(RELEASE, manifest.SerializeToString()).SerializeToString())
        return manifest


def scores(state: Mapping[str, Array], x: Floats) -> Floats:
    """By NumPy."""
    weight, bias = np.asarray(state[WEIGHT], np.float32), np.asarray(state[BIAS], np.float32)
    result: Floats = x.reshape(len(x), -1) @ weight.T + bias
    return result


def infer_graph(state: Mapping[str, Array]) -> bytes:
    """infer.onnx: folded parameters under other names, and the drift features."""
    transposed = np.ascontiguousarray(np.asarray(state[WEIGHT], np.float32).T)
    constants = [
        numpy_helper.from_array(transposed, "val_1"),
        numpy_helper.from_array(np.asarray(state[BIAS], np.float32), "val_2"),
        numpy_helper.from_array(np.array([-1, 6], np.int64), "val_3"),
        numpy_helper.from_array(np.array([2], np.int64), "scale"),
    ]
    nodes = [
        helper.make_node("Reshape", ["input", "val_3"], ["flat"], name="n0"),
        helper.make_node("Gemm", ["flat", "val_1", "val_2"], ["scores"], name="n1"),
        helper.make_node("Identity", ["input"], ["rows"], name="n2"),  # a name that evaluate.onnx has, too
        helper.make_node("ReduceMean", ["rows", "scale"], ["features"], keepdims=0, name="n3"),
    ]
    graph = helper.make_graph(
        nodes,
        "infer",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["batch", *SHAPE])],
        [
            helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["batch", 3]),
            helper.make_tensor_value_info("features", TensorProto.FLOAT, ["batch", 2]),
        ],
        constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    onnx.checker.check_model(model)
    data: bytes = model.SerializeToString()
    return data


def own_people(count: int, seed: int) -> tuple[Floats, Labels]:
    """Samples of this device: float32 [count, 2, 3] and int64 [count], shifted against everybody's."""
    x = np.random.default_rng(seed).normal(size=(count, *SHAPE)).astype(np.float32)
    return x, (x.reshape(count, -1) @ TRUTH.T + SHIFT).argmax(axis=1).astype(np.int64)


def install(
    layout: AgentLayout, release: LinearRelease, slot: SlotName = "a", *, committed: bool = True
) -> SlotContent:
    """Put a release into a slot and point to it; the other slot is the one before."""
    folder = slot_folder(layout, slot)
    manifest = release.write(folder)
    write_pointer(layout, Pointer(slot, manifest.release_id, committed=committed))
    return SlotContent(slot, folder, manifest)
