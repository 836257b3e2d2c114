"""All forms of one network for a bundle: made, proven against golden rows, measured; what fails is left out and named.

The required forms are those of export and quantisation; their proof is a bug trap and raises. An optional form is
left out with its reason, and the release goes on without it. Proof and accuracy are those of the graphs as they are
written: the kernels of the machine that builds (8-bit weights saturate on x86 without VNNI) are not those of the
devices, and each device proves its own against the golden outputs.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from skerry_contract.v1.release_pb2 import GoldenSet, Variant
from skerry_models.errors import BundleError, ExportError
from skerry_models.evaluation import Evaluation, evaluate_onnx
from skerry_models.forms import FORMS, FP32, INT8_QDQ, INT8_X86, OPTIONAL, REQUIRED, affordable, file_name, variant_name
from skerry_models.gates import GateLimits
from skerry_models.golden import GOLDEN, add_golden, golden_scores, golden_tolerance, start_golden
from skerry_models.latency import measure_latency
from skerry_models.lowerings.table import LOWERINGS
from skerry_models.quantise import QuantisedGraphs
from skerry_models.task import Dataset, Float32

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class NetworkForms:
    """What was made of one network.

    Attributes:
        rung: Name of its rung; empty for the release's own network.
        place: Its place on the ladder, 0 for the release's own.
        models: Form name to bytes, in the order of the table.
        evaluations: Form name to its figures on the holdout.
        golden: Golden inputs, and outputs by variant name.
        refused: Optional form to why it is not there.
    """

    rung: str
    place: int
    models: dict[str, bytes] = field(repr=False)
    evaluations: dict[str, Evaluation] = field(repr=False)
    golden: GoldenSet = field(repr=False)
    refused: dict[str, str]

    def files(self) -> dict[str, bytes]:
        """Name in the bundle to content, golden file included."""
        contents = {file_name(self.rung, FORMS[name].file): model for name, model in self.models.items()}
        return {**contents, file_name(self.rung, GOLDEN): self.golden.SerializeToString(deterministic=True)}

    def variants(self) -> list[Variant]:
        """As the manifest lists them."""
        return [
            Variant(
                name=variant_name(self.rung, name),
                path=file_name(self.rung, FORMS[name].file),
                device_classes=FORMS[name].device_classes,
                golden_tolerance=golden_tolerance(self.golden, variant_name(self.rung, name)),
                rung=self.place,
                accuracy=self.evaluations[name].accuracy,
                golden=file_name(self.rung, GOLDEN) if self.rung else "",
                format=FORMS[name].format,
            )
            for name in self.models
        ]


def make_forms(
    infer: bytes, quantised: QuantisedGraphs, rows: Float32, holdout: Dataset, *, rung: str = "", place: int = 0
) -> NetworkForms:
    """Make, prove and measure.

    Args:
        infer: The fp32 graph.
        quantised: Its INT8 forms.
        rows: float32 [N, *input], the golden rows.
        holdout: Rows for the accuracies.
        rung: Name of the rung.
        place: Place on the ladder.

    Raises:
        BundleError: A required form does not load or is far off from fp32.
    """
    models = {FP32: infer, INT8_QDQ: quantised.canonical, INT8_X86: quantised.x86}
    golden = start_golden(rows)
    evaluations = {}
    for name in REQUIRED:
        _prove(golden, name, models[name], rung)
        evaluations[name] = evaluate_onnx(models[name], holdout, optimise=name == FP32)
    made, refused = _lower(models)
    kept, unaffordable = affordable({name: len(model) for name, model in (models | made).items()}, list(made))
    refused |= unaffordable
    for name in kept:
        try:
            _prove(golden, name, made[name], rung)
            evaluation = evaluate_onnx(made[name], holdout, optimise=False)
        except BundleError as error:
            refused[name] = error.reason
        else:
            lost = evaluations[FP32].accuracy - evaluation.accuracy
            if lost <= GateLimits().int8_loss:
                models[name], evaluations[name] = made[name], evaluation
                continue
            refused[name] = f"accuracy {evaluation.accuracy:.4f} against {evaluations[FP32].accuracy:.4f} of fp32"
        _forget(golden, variant_name(rung, name))
    for name, reason in refused.items():
        logger.info("form %s is left out: %s", variant_name(rung, name), reason)
    return NetworkForms(rung, place, models, evaluations, golden, dict(sorted(refused.items())))


def _lower(models: Mapping[str, bytes]) -> tuple[dict[str, bytes], dict[str, str]]:
    """Optional forms that exist for this network, and why the others do not."""
    made: dict[str, bytes] = {}
    refused: dict[str, str] = {}
    for name in OPTIONAL:
        form = FORMS[name]
        if len(models[FP32]) < form.smallest:
            refused[name] = "the network is too small to gain"
            continue
        try:
            lowered = LOWERINGS[name](models[form.source])
        except ExportError as error:
            refused[name] = error.reason
            continue
        if lowered is None:
            refused[name] = "nothing in the network to change"
        else:
            made[name] = lowered
    return made, refused


def _prove(golden: GoldenSet, name: str, model: bytes, rung: str) -> None:
    """Add a form's golden outputs; raises BundleError when they are not near those of its reference."""
    form, variant = FORMS[name], variant_name(rung, name)
    add_golden(golden, variant, model)
    scores, reference = golden_scores(golden, variant), golden_scores(golden, variant_name(rung, form.reference))
    limit = form.proof * max(1.0, float(np.abs(reference).max()))
    off = float(np.abs(scores - reference).max())
    if not off <= limit:
        raise BundleError(form.file, f"off from {form.reference} by {off:.4g}, more than {limit:.4g}")


def _forget(golden: GoldenSet, variant: str) -> None:
    kept = [outputs for outputs in golden.outputs if outputs.variant != variant]
    del golden.outputs[:]
    golden.outputs.extend(kept)


def measure_forms(networks: Sequence[NetworkForms], holdout: Dataset) -> dict[str, float]:
    """Figures by the names of :class:`~skerry_models.bundle.BundleReport`; the first network is the release's own."""
    own = networks[0]
    fp32 = own.evaluations[FP32]
    int8 = [name for name in own.models if name.startswith("int8")]
    metrics = {
        "accuracy": fp32.accuracy,
        "macro_f1": fp32.macro_f1,
        "loss": fp32.loss,
        "int8_minus_fp32": min(own.evaluations[name].accuracy for name in int8) - fp32.accuracy,
        "size_fp32_bytes": float(len(own.models[FP32])),
        "size_int8_bytes": float(len(own.models[INT8_QDQ])),
        "size_forms_bytes": float(sum(map(len, own.models.values()))),
    }
    p99s = {}
    for network in networks:
        for name, model in network.models.items():
            key = variant_name(network.rung, name).replace("-", "_").replace("/", "_")
            latency = measure_latency(model, holdout.x[:1])
            metrics[f"latency_{key}_p50_us"], metrics[f"latency_{key}_p99_us"] = latency.p50_us, latency.p99_us
            if (network.rung, name) != ("", FP32):
                metrics[f"accuracy_{key}"] = network.evaluations[name].accuracy
            if not network.rung and name in int8:
                p99s[name] = latency.p99_us
    metrics["latency_int8_p99_us"] = min(p99s.values())
    return metrics
