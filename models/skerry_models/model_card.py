"""model_card.md: what a release is, for people (Mitchell et al., "Model Cards for Model Reporting", FAT* 2019).

Only figures that follow from the bundle's inputs: the same parameters and data give the same card on every machine.
"""

from __future__ import annotations

from collections.abc import Mapping

from skerry_models.evaluation import Evaluation
from skerry_models.task import Task

MODEL_CARD = "model_card.md"


def write_model_card(
    task: Task,
    evaluations: Mapping[str, Evaluation],
    *,
    parameters: int,
    sizes: Mapping[str, int],
    lineage: Mapping[str, object],
) -> str:
    """Compose the card.

    Args:
        task: What is learned.
        evaluations: Variant name to its figures on holdout.
        parameters: Number of parameters.
        sizes: File name to bytes.
        lineage: What lineage.json holds; its plain values are listed, what "privacy" says was
            spent, and where "calibration" comes from.
    """
    fp32 = evaluations["fp32"]
    lines = [
        f"# {task.name}",
        "",
        f"Classifies {' x '.join(map(str, task.input.shape))} float32 values ({task.input.unit}, "
        f"{task.input.minimum:g} to {task.input.maximum:g}) into {len(task.classes)} classes. "
        f"{parameters:,} parameters. Raw units go in; preprocessing and the drift features are inside the graph.",
        "",
        "## Accuracy on holdout rows, which nobody trains on",
        "",
        "| variant | rows | accuracy | macro F1 | loss (nats) |",
        "| --- | --- | --- | --- | --- |",
    ]
    lines += [
        f"| {name} | {e.n} | {e.accuracy:.4f} | {e.macro_f1:.4f} | {e.loss:.4f} |" for name, e in evaluations.items()
    ]
    lines += ["", "## Recall by class (fp32)", "", "| class | recall |", "| --- | --- |"]
    lines += [
        f"| {name} | {'no rows' if recall is None else f'{recall:.4f}'} |"
        for name, recall in zip(task.classes, fp32.per_class, strict=True)
    ]
    lines += ["", "## Files", "", "| file | bytes |", "| --- | --- |"]
    lines += [f"| {name} | {size:,} |" for name, size in sizes.items()]
    lines += ["", "## Drift features", "", ", ".join(task.feature_names), ""]
    plain = {key: value for key, value in sorted(lineage.items()) if isinstance(value, str | int | float)}
    if plain:
        lines += ["## Lineage", "", *(f"- {key}: {value}" for key, value in plain.items()), ""]
    privacy = lineage.get("privacy")
    if isinstance(privacy, Mapping):
        lines += ["## Differential privacy", "", *_privacy(privacy), ""]
    calibration = lineage.get("calibration")
    if isinstance(calibration, Mapping):
        lines += ["## INT8 calibration", "", _calibration(calibration, lineage.get("int8_scales")), ""]
    lines += [
        "## Limits",
        "",
        "Judged on the rows above only. A device whose inputs leave the reference of drift_edges.pb is outside what "
        "this card says.",
        "",
    ]
    return "\n".join(lines)


def _calibration(calibration: Mapping[str, object], scales: object) -> str:
    """Whose rows the ranges of activations come from, and whether they are the ones in use."""
    rows, devices = calibration.get("rows"), calibration.get("devices")
    if calibration.get("source") == "devices":
        told = f"Calibrated on {devices} devices: they told ranges of activations over {rows} rows that stayed there."
    else:
        told = f"Calibrated centrally, on {rows} rows."
    kept = isinstance(scales, Mapping) and bool(scales.get("kept"))
    return f"{told} In use are the scales of the release before, which still fit." if kept else told


def _privacy(spent: Mapping[str, object]) -> list[str]:
    """What the campaign promises about any one device, and every figure behind it."""
    figures = [f"- {name}: {value}" for name, value in sorted(spent.items())]
    epsilon, delta = spent.get("epsilon"), spent.get("delta")
    if not isinstance(epsilon, int | float) or not isinstance(delta, int | float):
        return figures
    return [
        f"The models of the campaign are ({epsilon:.4g}, {delta:g})-differentially private for each "
        f"{spent.get('adjacency', 'client')}. Figures that devices report beside their updates are not covered.",
        "",
        *figures,
    ]
