"""Bytes of an update after one federated round: ours beside the whole file, zstd and zstd --patch-from.

``python benchmarks/delta.py [--json FILE] [--tasks har fashion] [--rounds N] [--clients N]``

Real training: the task's network is trained centrally, then federated rounds (FedAvg, the task's own settings) run with
the ONNX training step that devices use, one device after the other. Every round becomes the canonical INT8 artifact,
``infer.int8-qdq.onnx``, with the scales of the release before it, by the code that builds releases; consecutive
artifacts are then subtracted. *Entropy* is the order-0 bound of the differences of the INT8 weights alone, one model
per tensor: the fewest bytes that any code of single bytes can give them. Ours also carries biases, table and header.
Every delta is applied and compared before its size counts; ``apply_cpu_ms`` is what that takes here.

Needs the data sets of the tasks (``SKERRY_DATA_DIR``); a task without its data is skipped with a word.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import zstandard

from skerry_agent.training.onnx_trainer import OnnxTrainer
from skerry_agent.training.trainer import TrainOptions
from skerry_contract.delta import apply
from skerry_contract.delta_writer import order0_bits, write_delta
from skerry_contract.tensors import Array
from skerry_models.delta_plan import plan_matches
from skerry_models.errors import DataError
from skerry_models.evaluation import evaluate_onnx
from skerry_models.export import INFER, export_inference
from skerry_models.frozen_scales import choose_scales
from skerry_models.kept_step import train_step_for
from skerry_models.quantise import INT8_QDQ, INT8_X86, QuantisedGraphs, quantise
from skerry_models.task import Task, load_task
from skerry_server.federation.aggregation import StreamingMean

#: Share of the artifact that an update may take.
GOAL = 0.25
TASKS = ("har", "fashion")


@dataclass
class Sizes:
    """Bytes of one file over the rounds, one entry per round."""

    full: list[int] = field(default_factory=list)
    zstd: list[int] = field(default_factory=list)
    patch_from: list[int] = field(default_factory=list)
    ours: list[int] = field(default_factory=list)
    entropy: list[float] = field(default_factory=list)
    apply_cpu_ms: list[float] = field(default_factory=list)

    def add(self, name: str, base: bytes, target: bytes) -> None:
        """Measure one step; raises if the delta does not give the target."""
        matches = plan_matches(name, base, target)
        delta = write_delta(base, target, matches)
        started = time.process_time()
        if apply(delta, base) != target:
            raise AssertionError(f"the delta of {name} makes another file")
        self.apply_cpu_ms.append((time.process_time() - started) * 1000)
        self.full.append(len(target))
        self.zstd.append(len(zstandard.ZstdCompressor(level=19).compress(target)))
        self.patch_from.append(patch_from(base, target))
        self.ours.append(len(delta))
        bits = 0.0
        for match in matches:
            if match.width == 1:
                old = np.frombuffer(base, dtype=np.uint8, count=match.length, offset=match.base)
                new = np.frombuffer(target, dtype=np.uint8, count=match.length, offset=match.target)
                bits += order0_bits((new - old).tobytes())
        self.entropy.append(bits / 8)

    def shares(self, column: str) -> list[float]:
        """A column as shares of the whole file."""
        return [value / full for value, full in zip(getattr(self, column), self.full, strict=True)]


def patch_from(base: bytes, target: bytes) -> int:
    """Bytes of ``zstd -19 --patch-from=base --long``."""
    window_log = max((len(base) + len(target)).bit_length(), 10)
    parameters = zstandard.ZstdCompressionParameters.from_level(
        19, window_log=window_log, enable_ldm=True, source_size=len(target), dict_size=len(base)
    )
    dictionary = zstandard.ZstdCompressionDict(base, dict_type=zstandard.DICT_TYPE_RAWCONTENT)
    return len(zstandard.ZstdCompressor(compression_params=parameters, dict_data=dictionary).compress(target))


def central_state(task: Task) -> dict[str, Array]:
    """Parameters of a first release: central training with the task's own settings."""
    import torch

    from skerry_models.fitting import create_optimiser, train_epoch
    from skerry_models.parameters import from_network

    torch.set_num_threads(1)
    network, settings = task.create_network(0), task.default_training
    optimiser, rows = create_optimiser(network, settings), task.source("central")
    for epoch in range(settings.epochs):
        train_epoch(network, optimiser, rows, settings, seed=0, epoch=epoch)
    return dict(from_network(network))


def federated_rounds(task: Task, first: Mapping[str, Array], rounds: int, clients: int) -> Iterator[dict[str, Array]]:
    """States after each round of FedAvg (McMahan et al., AISTATS 2017) with the training step of the devices."""
    holdout = task.source("holdout")
    step, _ = train_step_for(task, first, holdout, None)
    evaluate = export_inference(task, first, holdout.x[:8]).evaluate
    trainer, chosen = OnnxTrainer(step.model, step.spec, evaluate), task.default_campaign
    state: dict[str, Array] = dict(first)
    for number in range(rounds):
        mean = StreamingMean(state)
        for name in task.client_names()[:clients]:
            rows = task.source(f"client/{name}")
            options = TrainOptions(
                local_epochs=chosen.local_epochs,
                batch_size=chosen.batch_size,
                learning_rate=chosen.learning_rate,
                proximal_mu=chosen.proximal_mu,
                seed=number,
            )
            trained = trainer.train(state, rows.x, rows.y, options, lambda: False)
            mean.add(trained.state, trained.examples)
        state = dict(mean.result())
        yield state


def measure(name: str, rounds: int, clients: int) -> tuple[dict[str, Sizes], dict[str, Any]]:
    """Sizes by file of consecutive rounds of one task, and what the rounds did."""
    task = load_task(name)
    holdout, calibration = task.source("holdout"), task.source("central")
    first = central_state(task)
    sizes = {file: Sizes() for file in (INT8_QDQ, INT8_X86, INFER)}
    earlier: QuantisedGraphs | None = None
    last: dict[str, bytes] = {}
    accuracy, kept = [], []

    def release(state: Mapping[str, Array]) -> None:
        nonlocal earlier, last
        infer = export_inference(task, state, calibration.x).infer
        scales = choose_scales(quantise(infer, calibration.x), infer, earlier, holdout)
        files = {INT8_QDQ: scales.graphs.canonical, INT8_X86: scales.graphs.x86, INFER: infer}
        for file, content in files.items():
            if last:
                sizes[file].add(file, last[file], content)
        kept.append(scales.kept)
        accuracy.append(evaluate_onnx(scales.graphs.canonical, holdout).accuracy)
        earlier, last = scales.graphs, files

    release(first)
    for state in federated_rounds(task, first, rounds, clients):
        release(state)
    return sizes, {"accuracy": [round(value, 4) for value in accuracy], "scales_kept": sum(kept)}


def rows_of(name: str, sizes: dict[str, Sizes], facts: dict[str, Any], rounds: int) -> list[dict[str, Any]]:
    """Table rows; the goal is of the canonical INT8 artifact, and holds if it does in the worst round."""
    rows = []
    for file, measured in sizes.items():
        ours = measured.shares("ours")
        whole = statistics.median(measured.full)
        beside = {"full": whole}
        columns = {
            "zstd -19": "zstd",
            "zstd -19 --patch-from": "patch_from",
            "entropy of the int8 differences": "entropy",
        }
        for label, column in columns.items():
            if column != "entropy" or file != INFER:
                beside[label] = round(statistics.median(getattr(measured, column)), 1)
        row: dict[str, Any] = {
            "what": f"{name}: {file}, {rounds} rounds",
            "unit": "bytes",
            "ours": statistics.median(measured.ours),
            "beside": beside,
            "ratio": round(statistics.median(ours), 4),
            "spread": [round(min(ours), 4), round(max(ours), 4)],
            "apply_cpu_ms": round(statistics.median(measured.apply_cpu_ms), 2),
            "goal": "",
            **facts,
        }
        if file == INT8_QDQ:
            row |= {"goal": f"<= {GOAL} of the artifact in every round", "holds": max(ours) <= GOAL}
        rows.append(row)
    return rows


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--tasks", nargs="*", default=TASKS)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--clients", type=int, default=10)
    arguments = parser.parse_args()
    rows: list[dict[str, Any]] = []
    skipped: list[dict[str, str]] = []
    for name in arguments.tasks:
        try:
            sizes, facts = measure(name, arguments.rounds, arguments.clients)
        except DataError as error:
            skipped.append({"what": name, "why": str(error)})
            print(f"{name}: skipped: {error}")
            continue
        for row in rows_of(name, sizes, facts, arguments.rounds):
            rows.append(row)
            verdict = "" if "holds" not in row else "holds" if row["holds"] else "MISSED"
            shares = ", ".join(f"{label} {value / row['beside']['full']:.3f}" for label, value in row["beside"].items())
            print(
                f"{row['what']:<46} {row['ours']:>9,.0f} bytes  {row['ratio']:.3f} "
                f"({row['spread'][0]:.3f} to {row['spread'][1]:.3f})  {row['goal']}  {verdict}  [{shares}]"
            )
        print(f"{name}: accuracy of INT8 on holdout by release {facts['accuracy']}, scales kept {facts['scales_kept']}")
    report = {
        "name": "delta",
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {platform.platform()}",
        "versions": {name: version(name) for name in ("numpy", "zstandard", "onnxruntime", "torch")},
        "load": os.getloadavg()[0],
        "rows": rows,
        "skipped": skipped,
    }
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
