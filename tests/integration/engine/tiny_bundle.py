"""A real, signed, tiny release for tests: ONNX graphs made with the onnx helper, golden outputs computed with NumPy.

The network: input [B, 2, 3], features = mean over the last axis [B, 2], scores = flatten(x) @ W + b [B, 3].
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import onnx
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from onnx import TensorProto, helper, numpy_helper

from skerry_agent.config import AgentLayout
from skerry_agent.update.slots import MANIFEST, Pointer, SlotContent, slot_folder, write_pointer
from skerry_contract.histogram import build_edges
from skerry_contract.manifest import bundle_digest, describe_folder
from skerry_contract.signing import RELEASE, Ed25519Signer
from skerry_contract.tensors import encode_tensor
from skerry_contract.v1.common_pb2 import TensorSpec
from skerry_contract.v1.release_pb2 import GoldenOutputs, GoldenSet, ReleaseManifest, Variant

Floats = npt.NDArray[np.float32]
CLASSES = ("low", "middle", "high")
SHAPE = (2, 3)
SIGNER = Ed25519Signer(Ed25519PrivateKey.from_private_bytes(bytes(range(32))))


@dataclass
class TinyRelease:
    """What to build; tests change a field to break one thing.

    Attributes:
        release_id: Name.
        sequence: Number.
        task: Model name at the doors.
        seed: Of the weights.
        variants: Variant name to the weights' rounding step.
        device_classes: For every variant.
        tolerance: Golden tolerance of every variant.
        wrong_variants: Variants whose graph computes something else than their golden outputs.
        signer: Who signs.
        minimum, maximum: Range of the input.
        work: Width of an extra layer whose result is multiplied by zero: makes a variant slow.
        rungs: Variant to its place on the ladder; 0 if it is not named. Each rung above 0 has a golden file of its own.
    """

    release_id: str = "release-one"
    sequence: int = 1
    task: str = "tiny"
    seed: int = 1
    variants: dict[str, float] = field(default_factory=lambda: {"fp32": 0.0, "int8-qdq": 1 / 64})
    device_classes: tuple[str, ...] = ()
    tolerance: float = 1e-5
    wrong_variants: tuple[str, ...] = ()
    slow_variants: dict[str, int] = field(default_factory=dict)
    signer: Ed25519Signer = SIGNER
    minimum: float = -100.0
    maximum: float = 100.0
    input_shape: tuple[int, ...] = SHAPE
    rungs: dict[str, int] = field(default_factory=dict)

    def weights(self, variant: str) -> tuple[Floats, Floats]:
        """W [6, 3] and b [3] of a variant."""
        rng = np.random.default_rng(self.seed)
        w = rng.normal(size=(6, 3)).astype(np.float32)
        b = rng.normal(size=3).astype(np.float32)
        step = self.variants[variant]
        if step:
            w = (np.round(w / step) * step).astype(np.float32)
        return w, b

    def compute(self, x: Floats, variant: str = "fp32") -> tuple[Floats, Floats]:
        """Scores and features, by NumPy."""
        w, b = self.weights(variant)
        scores = (x.reshape(len(x), -1) @ w + b).astype(np.float32)
        return scores, x.mean(axis=2, dtype=np.float32)

    def golden(self, variant: str) -> str:
        """Golden file of a variant, as its manifest names it."""
        rung = self.rungs.get(variant, 0)
        return f"golden.{rung}.pb" if rung else ""

    def graph(self, variant: str) -> bytes:
        """The ONNX file of a variant."""
        w, b = self.weights(variant)
        if variant in self.wrong_variants:
            b = b + np.float32(0.5)
        return tiny_graph(w, b, slow=self.slow_variants.get(variant, 0))

    def write(self, folder: Path) -> ReleaseManifest:
        """Write the bundle and its signed manifest into an empty folder."""
        folder.mkdir(parents=True, exist_ok=True)
        paths = {
            name: "infer.onnx" if name == "fp32" else f"infer.{name.replace('/', '-')}.onnx" for name in self.variants
        }
        for name, path in paths.items():
            (folder / path).write_bytes(self.graph(name))
        x = np.random.default_rng(7).normal(size=(5, *SHAPE)).astype(np.float32)
        goldens = {self.golden(name): GoldenSet(inputs=[encode_tensor("input", x)]) for name in self.variants}
        for name in self.variants:
            scores, features = self.compute(x, name)
            goldens[self.golden(name)].outputs.append(
                GoldenOutputs(
                    variant=name, tensors=[encode_tensor("scores", scores), encode_tensor("features", features)]
                )
            )
        for path, golden in goldens.items():
            (folder / (path or "golden.pb")).write_bytes(golden.SerializeToString())
        reference = np.random.default_rng(8).normal(size=(300, *SHAPE)).astype(np.float32)
        scores, features = self.compute(reference)
        edges = build_edges(
            {f"mean-{i}": features[:, i].astype(np.float64) for i in range(2)},
            cells=10,
            classes=CLASSES,
            confidence_edges=[0.4, 0.5, 0.6, 0.7, 0.8, 0.9],
            latency_edges=[10, 100, 1000, 10_000],
            predictions=np.bincount(scores.argmax(axis=1), minlength=3),
        )
        data = edges.SerializeToString()
        (folder / "drift_edges.pb").write_bytes(data)
        manifest = ReleaseManifest(
            release_id=self.release_id,
            sequence=self.sequence,
            task=self.task,
            files=list(describe_folder(folder)),
            variants=[
                Variant(
                    name=n,
                    path=p,
                    device_classes=self.device_classes,
                    golden_tolerance=self.tolerance,
                    rung=self.rungs.get(n, 0),
                    golden=self.golden(n),
                )
                for n, p in paths.items()
            ],
            inputs=[
                TensorSpec(
                    name="input",
                    dtype="float32",
                    shape=(-1, *self.input_shape),
                    minimum=self.minimum,
                    maximum=self.maximum,
                )
            ],
            outputs=[
                TensorSpec(name="scores", dtype="float32", shape=(-1, 3), labels=CLASSES),
                TensorSpec(name="features", dtype="float32", shape=(-1, 2)),
            ],
            edges_sha256=hashlib.sha256(data).digest(),
            train_step_sha256=b"\0" * 32,
            created_unix_ms=1_700_000_000_000,
            scores_output="scores",
            features_output="features",
        )
        manifest.bundle_sha256 = bundle_digest(manifest.files)
        envelope = self.signer.sign(RELEASE, manifest.SerializeToString())
        (folder / MANIFEST).write_bytes(envelope.SerializeToString())
        return manifest


def tiny_graph(w: Floats, b: Floats, *, slow: int = 0, scores_name: str = "scores", input_name: str = "input") -> bytes:
    """The network as ONNX; ``slow`` adds that many useless matrix products."""
    nodes = [
        helper.make_node("Flatten", [input_name], ["flat"], axis=1),
        helper.make_node("MatMul", ["flat", "w"], ["product"]),
        helper.make_node("Add", ["product", "b"], ["plain" if slow else scores_name]),
        helper.make_node("ReduceMean", [input_name, "axes"], ["features"], keepdims=0),
    ]
    initializers = [
        numpy_helper.from_array(w, "w"),
        numpy_helper.from_array(b, "b"),
        numpy_helper.from_array(np.array([2], dtype=np.int64), "axes"),
    ]
    if slow:
        wide = np.full((3, 256), 1e-3, dtype=np.float32)
        square = np.eye(256, dtype=np.float32)
        initializers += [
            numpy_helper.from_array(wide, "wide"),
            numpy_helper.from_array(square, "square"),
            numpy_helper.from_array(np.zeros((256, 3), dtype=np.float32), "back"),
        ]
        nodes.append(helper.make_node("MatMul", ["plain", "wide"], ["h0"]))
        for index in range(slow):
            nodes.append(helper.make_node("MatMul", [f"h{index}", "square"], [f"t{index}"]))
            nodes.append(helper.make_node("Sin", [f"t{index}"], [f"h{index + 1}"]))
        nodes.append(helper.make_node("MatMul", [f"h{slow}", "back"], ["nothing"]))
        nodes.append(helper.make_node("Add", ["plain", "nothing"], [scores_name]))
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info(input_name, TensorProto.FLOAT, ["batch", *SHAPE])],
        [
            helper.make_tensor_value_info(scores_name, TensorProto.FLOAT, ["batch", 3]),
            helper.make_tensor_value_info("features", TensorProto.FLOAT, ["batch", 2]),
        ],
        initializers,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.checker.check_model(model)
    data: bytes = model.SerializeToString()
    return data


def enrol(root: Path, **settings: Any) -> AgentLayout:
    """An enrolled device without a release."""
    layout = AgentLayout(root)
    root.mkdir(parents=True, exist_ok=True)
    document = {
        "device_id": "device-1",
        "broker_host": "127.0.0.1",
        "broker_port": 1,
        "broker_data_port": 1,
        "device_api": "https://127.0.0.1:1",
        "superlink_address": "127.0.0.1:1",
        "release_keys": [SIGNER.public_key.hex()],
        **settings,
    }
    layout.config.write_text(json.dumps(document))
    return layout


def install(
    layout: AgentLayout, release: TinyRelease, slot: Literal["a", "b"] = "a", *, activate: bool = True
) -> SlotContent:
    """Put a release into a slot, and point to it."""
    folder = slot_folder(layout, slot)
    manifest = release.write(folder)
    if activate:
        write_pointer(layout, Pointer(slot, manifest.release_id, committed=True))
    return SlotContent(slot, folder, manifest)


def some_input(rows: int = 1, seed: int = 3) -> Floats:
    """float32 [rows, 2, 3], inside the range."""
    return np.random.default_rng(seed).normal(size=(rows, *SHAPE)).astype(np.float32)
