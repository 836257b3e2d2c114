"""The HTML report of a demo run: one self-contained file with plots as inline SVG."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from skerry_simulation import page
from skerry_simulation.demo.result import DemoResult


def write_report(result: DemoResult, folder: Path) -> Path:
    """Write ``index.html`` and ``result.json`` into ``folder``; returns the page."""
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / "index.html"
    result.report = str(target)
    (folder / "result.json").write_text(json.dumps(result.document(), indent=2))
    target.write_text(render(result))
    return target


def render(result: DemoResult) -> str:
    """The page as text."""
    accuracy, inference = result.accuracy, result.inference
    figures = [
        ("unseen data, first model", f"{accuracy.get('v1', float('nan')):.1%}"),
        ("unseen data, federated", f"{accuracy.get('federated', float('nan')):.1%}"),
        ("drifted devices, not yet recovered", f"{accuracy.get('drifted', float('nan')):.1%}"),
        ("drifted devices, recovered", f"{accuracy.get('recovered', float('nan')):.1%}"),
        (
            "inference through gRPC, p50 / p99",
            f"{inference.get('p50_us', 0) / 1000:.2f} / {inference.get('p99_us', 0) / 1000:.2f} ms",
        ),
        (
            "answered offline, errors",
            f"{inference.get('offline_requests', 0):,.0f}, {inference.get('offline_errors', 0):.0f}",
        ),
        (
            "int8 of fp32 size",
            f"{result.artifact.get('int8_bytes', 0) / max(1, result.artifact.get('fp32_bytes', 1)):.0%}",
        ),
        ("windows to detect", str(result.drift.get("windows_to_detect", "none"))),
    ]
    rollouts = [(r["name"], r["release"], r["state"], ", ".join(r["canary_devices"])) for r in result.rollouts]
    lead = (
        "Train, quantise, gate, sign, deliver, prove, serve offline, learn from the devices, notice drift, recover: "
        f"{result.seconds:.0f} seconds, in {len(result.processes)} processes."
    )
    moments = [(moment.at_s, moment.phase, moment.text) for moment in result.timeline]
    processes = [(row["name"], row["pid"], f"{row['rss_mb']:.0f}") for row in result.processes]
    body = "\n".join(
        [
            page.cards(figures),
            "<h2>What was measured</h2>",
            page.plots([plot_rounds(result), plot_latency(result), plot_heat(result), plot_timeline(result)]),
            "<h2>Rollouts</h2>",
            page.table(("name", "release", "state", "canary devices"), rollouts),
            "<h2>Timeline</h2>",
            page.table(("s", "phase", "what happened"), moments),
            "<h2>Processes at the end</h2>",
            page.table(("process", "pid", "memory, MB"), processes),
        ]
    )
    return page.document(f"{result.task} on {result.devices} devices", lead, body)


def plot_rounds(result: DemoResult) -> str:
    """Accuracy on the server's holdout after every round, a line per campaign."""
    figure, axes = page.axes()
    for name in dict.fromkeys(row["campaign"] for row in result.rounds):
        rows = [row for row in result.rounds if row["campaign"] == name]
        axes.plot([r["number"] for r in rows], [r["accuracy"] for r in rows], marker="o", label=name)
    axes.set(title="Accuracy by federated round (server's holdout)", xlabel="round", ylabel="accuracy")
    if result.rounds:
        axes.legend(frameon=False)
    return page.svg(figure)


def plot_latency(result: DemoResult) -> str:
    """Histogram of the latency of single-row requests at the client."""
    figure, axes = page.axes()
    values = np.array(result.latencies_us) / 1000
    if values.size:
        low, high = np.quantile(values, [0.001, 0.999])
        axes.hist(np.clip(values, low, high), bins=60, color="#0b6e99")
        axes.axvline(float(np.quantile(values, 0.99)), color="#c2410c", linestyle="--", label="p99")
        axes.legend(frameon=False)
    axes.set(title="Latency of one request through gRPC", xlabel="ms", ylabel="requests")
    return page.svg(figure)


def plot_heat(result: DemoResult) -> str:
    """Bias-corrected PSI of the last judged window before recovery, device by feature."""
    figure, axes = page.axes()
    devices, features = result.heat.get("devices", []), result.heat.get("features", [])
    if devices and features:
        values = np.array(result.heat["psi"], dtype=float)
        image = axes.imshow(values, aspect="auto", cmap="cividis", vmin=0, vmax=max(0.25, float(np.nanmax(values))))
        axes.set_xticks(range(len(features)), features, rotation=40, ha="right", fontsize=8)
        axes.set_yticks(range(len(devices)), devices, fontsize=8)
        figure.colorbar(image, ax=axes, label="PSI, bias-corrected")
    axes.set(title="Drift by device and feature at detection")
    return page.svg(figure)


def plot_timeline(result: DemoResult) -> str:
    """Which phase took how long."""
    figure, axes = page.axes()
    phases = list(dict.fromkeys(m.phase for m in result.timeline))
    starts = {phase: min(m.at_s for m in result.timeline if m.phase == phase) for phase in phases}
    ends = [starts[p] for p in phases[1:]] + [result.seconds]
    for row, (phase, end) in enumerate(zip(phases, ends, strict=True)):
        axes.barh(row, end - starts[phase], left=starts[phase], color="#0b6e99")
    axes.set_yticks(range(len(phases)), phases, fontsize=8)
    axes.invert_yaxis()
    axes.set(title="Where the time went", xlabel="seconds")
    return page.svg(figure)
