"""Every form of each network: bytes, accuracy, latency on this machine, and whether a bundle carries it.

``python benchmarks/variants.py [--tasks digits,har] [--parameters TASK=parameters.pb] [--rows N] [--json FILE]``

Tasks are trained here with their default training unless their parameters are given (``vision`` takes minutes).
Accuracy is on ``unseen`` rows, as the graph is written and by this machine's kernels: where these differ by more than
the golden tolerance, a device like this one refuses the form. ``resnet8`` has weights from a seed and no accuracy: what
counts there is agreement with fp32. Latencies are the median of one row on one thread, measured in turns.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np

from skerry_models.errors import ExportError
from skerry_models.evaluation import evaluate_scores, onnx_scores
from skerry_models.export import INPUT, export_inference
from skerry_models.fitting import fit
from skerry_models.forms import FORMS, Kept, affordable
from skerry_models.lowerings.table import LOWERINGS
from skerry_models.parameters import decode_state, initial_parameters
from skerry_models.quantise import quantise
from skerry_models.runtime import open_session
from skerry_models.task import CampaignDefaults, Dataset, Float32, InputSpec, Task, TrainingDefaults, load_task

if TYPE_CHECKING:
    import torch

#: Calls per form and round, and rounds.
CALLS, ROUNDS = 20, 12
#: No further round begins after so long (seconds).
SECONDS = 20.0


@dataclass(frozen=True)
class Row:
    """A form of a network.

    Attributes:
        task: What it is a form of.
        form: Its name.
        bytes: Size of its file.
        accuracy: Share of unseen rows right, as the graph is written; for resnet8 agreement with fp32.
        here: The same by this machine's kernels.
        off: Largest difference of both kinds of scores, as a share of the largest score.
        load_ms: Time to open a session.
        p50_us: Median of one row.
        bundle: Whether a bundle of this network carries it.
        usable: Whether a device like this machine would accept it.
    """

    task: str
    form: str
    bytes: int
    accuracy: float
    here: float
    off: float
    load_ms: float
    p50_us: float
    bundle: bool
    usable: bool


class ResNet8Task:
    """ResNet-8 in the shape of a task; its rows are noise, and nobody trains it."""

    name = "resnet8"
    classes = tuple(f"class-{index}" for index in range(10))
    input = InputSpec(shape=(3, 32, 32), minimum=0.0, maximum=255.0, unit="8-bit RGB level")
    feature_names = ("red_mean", "green_mean", "blue_mean")
    default_training = TrainingDefaults(1, 32, 0.01, 0.9)
    default_campaign = CampaignDefaults(1, 1, 32, 0.01, 0.0)
    drift_name = "none"

    def client_names(self) -> tuple[str, ...]:
        """Nobody."""
        return ()

    def apply_drift(self, x: Float32, seed: int) -> Float32:
        """Nothing changes."""
        return x

    def create_network(self, seed: int) -> torch.nn.Module:
        """The network of MLPerf Tiny."""
        from skerry_models.networks.initialise import separate_randomness
        from skerry_models.networks.resnet8 import ResNet8

        with separate_randomness():
            return ResNet8(seed)

    def create_features(self) -> torch.nn.Module:
        """Means of the colours."""
        from skerry_models.networks.resnet8 import ChannelMeans

        return ChannelMeans()

    def source(self, name: str) -> Dataset:
        """Smooth noise, the same for every name but another seed."""
        generator = np.random.default_rng(len(name))
        coarse = generator.uniform(0, 255, size=(256, 3, 8, 8)).astype(np.float32)
        x = np.ascontiguousarray(coarse.repeat(4, axis=2).repeat(4, axis=3))
        return Dataset(x, np.zeros(len(x), np.int64))


def measure(task: Task, parameters: Path | None, limit: int) -> list[Row]:
    """All forms of a task's network."""
    central = task.source("central")
    if parameters is not None:
        state = decode_state(task, parameters.read_bytes())
    elif isinstance(task, ResNet8Task):
        state = initial_parameters(task, 0)
    else:
        state = fit(task, central)
    graphs = export_inference(task, state, central.x[:16])
    quantised = quantise(graphs.infer, central.x)
    models = {"fp32": graphs.infer, "int8-qdq": quantised.canonical, "int8-x86": quantised.x86}
    for name, form in FORMS.items():
        if form.kept is not Kept.REQUIRED and len(graphs.infer) >= form.smallest:
            try:
                lowered = LOWERINGS[name](models[form.source])
            except ExportError as error:
                print(f"{task.name} {name}: {error}")
                continue
            if lowered is not None:
                models[name] = lowered
    optional = [name for name in models if FORMS[name].kept is Kept.OPTIONAL]
    carried, _ = affordable({name: len(model) for name, model in models.items()}, optional)
    unseen = task.source("unseen")
    rows = unseen.take(np.arange(min(limit, len(unseen))))
    labels = onnx_scores(graphs.infer, rows.x).argmax(1) if isinstance(task, ResNet8Task) else rows.y
    latencies, loads = time_in_turns(models, rows.x[:1])
    result = []
    for name, model in models.items():
        form = FORMS[name]
        # A flat form was rewritten when it was made: only its ONNX form can be computed as it is written.
        flat = form.format == "ort"
        written = onnx_scores(models[form.source] if flat else model, rows.x, optimise=False)
        here = onnx_scores(model, rows.x, optimise=not flat)
        off = float(np.abs(here - written).max() / max(1.0, float(np.abs(written).max())))
        accuracy, locally = (evaluate_scores(scores, labels).accuracy for scores in (written, here))
        result.append(
            Row(
                task.name,
                name,
                len(model),
                accuracy,
                locally,
                off,
                loads[name],
                latencies[name],
                form.kept is Kept.REQUIRED or name in carried,
                off <= form.tolerance,
            )
        )
    return result


def time_in_turns(models: dict[str, bytes], row: Float32) -> tuple[dict[str, float], dict[str, float]]:
    """Median microseconds of one row and milliseconds to open, by form; forms take turns."""
    sessions, loads = {}, {}
    for name, model in models.items():
        start = time.perf_counter()
        sessions[name] = open_session(model, optimise=FORMS[name].format != "ort")
        loads[name] = (time.perf_counter() - start) * 1e3
    feed = {INPUT: np.ascontiguousarray(row)}
    times: dict[str, list[float]] = {name: [] for name in models}
    until = time.perf_counter() + SECONDS
    for turn in range(ROUNDS):
        if turn > 2 and time.perf_counter() > until:
            break
        for name, session in sessions.items():
            for call in range(CALLS + 2):
                start = time.perf_counter()
                session.run(None, feed)
                if call >= 2:
                    times[name].append((time.perf_counter() - start) * 1e6)
    return {name: statistics.median(values) for name, values in times.items()}, loads


def print_table(rows: list[Row]) -> None:
    """For people; times are beside those of fp32 of the same network."""
    print("| network | form | KB | accuracy | here | off | load ms | p50 us | x fp32 | bundle | usable here |")
    print("| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | --- | --- |")
    fp32 = {row.task: row.p50_us for row in rows if row.form == "fp32"}
    for row in rows:
        print(
            f"| {row.task} | {row.form} | {row.bytes / 1024:.1f} | {row.accuracy:.4f} | {row.here:.4f} "
            f"| {row.off:.4f} | {row.load_ms:.1f} | {row.p50_us:.0f} | {fp32[row.task] / row.p50_us:.2f} "
            f"| {'yes' if row.bundle else ''} | {'yes' if row.usable else 'no'} |"
        )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--tasks", default="digits,har,fashion,resnet8")
    parser.add_argument("--parameters", action="append", default=[], metavar="TASK=FILE")
    parser.add_argument("--rows", type=int, default=2_000, help="unseen rows at most")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    given = {name: Path(file) for name, _, file in (entry.partition("=") for entry in arguments.parameters)}
    rows: list[Row] = []
    for name in arguments.tasks.split(","):
        task = ResNet8Task() if name == "resnet8" else load_task(name)
        rows += measure(task, given.get(name), arguments.rows)
    print_table(rows)
    if arguments.json is not None:
        arguments.json.write_text(json.dumps([asdict(row) for row in rows], indent=2) + "\n")


if __name__ == "__main__":
    main()
