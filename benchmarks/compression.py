"""Speed, size and error of the update codec beside plain ways to do it; and what small updates cost in accuracy.

``python benchmarks/compression.py [--json FILE] [--pairs N] [--task har] [--rounds N] [--clients N]``

*Codec*: one real update of a network of 8.6 million parameters (a wide perceptron, twenty steps on the digits). GB/s
are of float32 values per second of this process's processor time, one thread, since the machine may be busy: in is
encoding, out is decoding into memory that is used again. Beside it: a copy, into memory used before and into new
memory (what a result of one's own costs without any work), zstd of the float32 bytes, rounding to bfloat16 and int8
with stochastic rounding and a scale for 4096 values, as one writes it with torch. Error is relative, L2. Before
anything is timed, rounding must be unbiased, decoded plus residual must be the update, and the compiled loops must give
NumPy's bits.

*Rounds*: FedAvg with the task's own training step, one device after the other, all devices in every round, once with
whole models and once for each wire with error feedback; accuracy is the mean over the last three rounds on the rows of
people that no device has. Needs the task's data (``SKERRY_DATA_DIR``), or is skipped with a word.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
import zstandard

from skerry_agent.training.onnx_trainer import OnnxTrainer
from skerry_agent.training.trainer import TrainOptions
from skerry_contract.tensors import Array, encode_bundle
from skerry_contract.update_codec import apply_difference, decode_difference, difference, encode_difference
from skerry_contract.update_layout import BLOCK, Float32
from skerry_contract.update_quantise import Kernels, NumpyKernels
from skerry_models.errors import DataError
from skerry_models.export import export_inference
from skerry_models.kept_step import train_step_for
from skerry_models.parameters import from_network
from skerry_models.task import load_task
from skerry_server.federation.aggregation.jit import available
from skerry_server.federation.aggregation.mean import StreamingMean
from skerry_server.federation.rounds.fast_codec import CompiledKernels

State = Mapping[str, Array]
Row = dict[str, Any]

IN_GOAL, OUT_GOAL, RATIO_GOAL = 1.5, 4.0, 3.9
#: Share of the bytes of float32, and loss of accuracy.
BYTES_GOAL, LOSS_GOAL = 1 / 8, 0.005
#: Wire and density of the rounds.
WIRES = (("int4", 1.0), ("topk", 0.2))


@dataclass(frozen=True)
class Contender:
    """A way to encode the update: ``encode`` gives what is sent, ``decode`` the values again."""

    name: str
    encode: Callable[[], Any]
    decode: Callable[[Any], Any]
    size: Callable[[Any], int] = len


def real_update(width: int = 2900, steps: int = 20) -> dict[str, Float32]:
    """What training on the digits changes of a wide perceptron."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    rows = load_task("digits").source("central")
    network = torch.nn.Sequential(
        torch.nn.Flatten(),
        torch.nn.Linear(64, width),
        torch.nn.ReLU(),
        torch.nn.Linear(width, width),
        torch.nn.ReLU(),
        torch.nn.Linear(width, 10),
    )
    before = {name: value.detach().clone() for name, value in network.named_parameters()}
    optimiser = torch.optim.SGD(network.parameters(), lr=0.02, momentum=0.9)
    x, y = torch.from_numpy(rows.x) / 16, torch.from_numpy(rows.y).long()
    for step in range(steps):
        some = torch.arange(step * 32, (step + 1) * 32) % len(x)
        optimiser.zero_grad()
        torch.nn.functional.cross_entropy(network(x[some]), y[some]).backward()
        optimiser.step()
    return {name: (value.detach() - before[name]).numpy() for name, value in network.named_parameters()}


def ours(update: State, out: Float32, name: str, wire: str, kernels: Kernels, **options: Any) -> Contender:
    """The codec with these options."""
    return Contender(
        name,
        lambda: encode_difference(update, wire=wire, seed=1, kernels=kernels, **options)[0],
        lambda data: decode_difference(data, update, wire=wire, kernels=kernels, out=out),
    )


def torch_int8(flat: torch.Tensor) -> Contender:
    """Stochastic rounding to int8 as one writes it."""
    padded = torch.nn.functional.pad(flat, (0, -len(flat) % BLOCK)).view(-1, BLOCK)

    def encode() -> tuple[torch.Tensor, torch.Tensor]:
        scale = padded.abs().amax(dim=1, keepdim=True) / 127
        return torch.floor(padded / scale.clamp_min(1e-30) + torch.rand_like(padded)).clamp_(-127, 127).to(
            torch.int8
        ), scale

    return Contender(
        "torch int8",
        encode,
        lambda sent: (sent[0].float() * sent[1]).view(-1)[: len(flat)],
        lambda sent: sent[0].numel() + 4 * sent[1].numel(),
    )


def contenders(update: State) -> list[Contender]:
    """Everybody; the first is the one with the goals."""
    flat = np.concatenate([array.reshape(-1) for array in update.values()]).astype(np.float32)
    out, spare, tensor = np.empty_like(flat), np.empty_like(flat), torch.from_numpy(flat)
    plain = NumpyKernels()
    fast: Kernels = CompiledKernels() if available() else plain
    raw = {"entropy": False, "feedback": False}

    def copy(source: Float32, target: Float32) -> Float32:
        np.copyto(target, source)
        return target

    def again(data: bytes) -> Float32:
        return np.frombuffer(zstandard.ZstdDecompressor().decompress(data), dtype=np.float32)

    return [
        ours(update, out, "int8", "int8", fast, **raw),
        ours(update, out, "int8, NumPy only", "int8", plain, **raw),
        ours(update, out, "int8, residual", "int8", fast, entropy=False),
        ours(update, out, "int8, residual, entropy coded", "int8", fast),
        ours(update, out, "int4, residual, entropy coded", "int4", fast),
        ours(update, out, "bfloat16, residual, entropy coded", "bfloat16", fast),
        ours(update, out, "topk 1 %, residual", "topk", fast, density=0.01),
        ours(update, out, "randomk 1 %, residual", "randomk", fast, density=0.01),
        Contender("copy", lambda: copy(flat, spare), lambda data: copy(data, out), lambda data: data.nbytes),
        Contender("copy to new memory", flat.copy, lambda data: data.copy(), lambda data: data.nbytes),
        Contender("zstd -1", lambda: zstandard.ZstdCompressor(level=1).compress(flat.data), again),
        Contender("torch bfloat16", lambda: tensor.bfloat16(), lambda data: data.float(), lambda data: 2 * len(data)),
        torch_int8(tensor),
    ]


def check(update: State) -> None:
    """Raise unless the codec does what it says."""
    part = {name: array.reshape(-1)[: 3 * BLOCK] for name, array in update.items()}
    total = {name: np.zeros(array.shape) for name, array in part.items()}
    squares, seeds = 0.0, 200
    for seed in range(seeds):
        data, residual = encode_difference(part, wire="int8", seed=seed, entropy=False)
        decoded = decode_difference(data, part, wire="int8")
        for name, array in part.items():
            error = np.subtract(decoded[name], array, dtype="f8")
            np.testing.assert_allclose(-error, residual[name].astype("f8"), atol=float(np.abs(array).max()) * 1e-6)
            total[name] += error
            squares += float(np.square(error).sum())
    standard_errors = abs(float(sum(array.sum() for array in total.values()))) / float(np.sqrt(squares))
    if standard_errors > 5:
        raise AssertionError(f"rounding is biased: {standard_errors:.1f} standard errors")
    if available():
        fast, slow = (
            encode_difference(update, wire="int8", seed=1, entropy=False, feedback=False, kernels=kernels)[0]
            for kernels in (CompiledKernels(), NumpyKernels())
        )
        if fast != slow:
            raise AssertionError("the compiled loops give other bits")


def seconds(action: Callable[[], Any]) -> tuple[float, Any]:
    """Processor seconds of one call, and its result."""
    started = time.process_time()
    result = action()
    return time.process_time() - started, result


def measure_codec(pairs: int) -> list[Row]:
    """One row for each goal and one for each other way to encode."""
    update = real_update()
    check(update)
    everybody = contenders(update)
    values = sum(array.size for array in update.values())
    exact = np.concatenate([array.reshape(-1) for array in update.values()]).astype(np.float64)
    speeds: dict[str, tuple[list[float], list[float]]] = {one.name: ([], []) for one in everybody}
    facts: dict[str, tuple[float, float]] = {}
    for number in range(pairs + 1):
        for one in everybody:
            coding, sent = seconds(one.encode)
            decoding, got = seconds(lambda one=one, sent=sent: one.decode(sent))  # type: ignore[misc]  # bound at once
            if number:
                speeds[one.name][0].append(4 * values / 1e9 / coding)
                speeds[one.name][1].append(4 * values / 1e9 / decoding)
                continue
            arrays = got.values() if isinstance(got, dict) else [np.asarray(got)]
            flat = np.concatenate([array.reshape(-1) for array in arrays]).astype(np.float64)
            error = float(np.linalg.norm(flat - exact) / np.linalg.norm(exact))
            facts[one.name] = (4 * values / one.size(sent), error)
    first = everybody[0].name
    incoming, outgoing = ({name: statistics.median(pair[side]) for name, pair in speeds.items()} for side in (0, 1))
    others = {name for name in incoming if name != first}
    rows: list[Row] = []
    for what, unit, figures, goal in (
        ("in", "GB/s", incoming, IN_GOAL),
        ("out", "GB/s", outgoing, OUT_GOAL),
        ("ratio", "x", {name: ratio for name, (ratio, _) in facts.items()}, RATIO_GOAL),
    ):
        side = {"in": 0, "out": 1}.get(what)
        rows.append(
            {
                "what": f"int8 codec of {values / 1e6:.1f}M float32: {what}",
                "unit": unit,
                "ours": round(figures[first], 3),
                "beside": {name: round(figures[name], 3) for name in sorted(others)},
                "ratio": round(figures[first] / goal, 3),
                "goal": f">= {goal}",
                "holds": figures[first] >= goal,
                **({} if side is None else {"spread": [round(f(speeds[first][side]), 3) for f in (min, max)]}),
            }
        )
    print(f"{'':<36}{'in GB/s':>9}{'out GB/s':>10}{'ratio':>8}{'error':>9}")
    for name in incoming:
        ratio, error = facts[name]
        print(f"{name:<36}{incoming[name]:>9.2f}{outgoing[name]:>10.2f}{ratio:>8.1f}{error:>9.4f}")
    rows[2]["errors"] = {name: round(error, 5) for name, (_, error) in facts.items()}
    return rows


def federated(name: str, rounds: int, clients: int, wire: str, density: float) -> tuple[float, float]:
    """Accuracy over the last three rounds, and bytes per device and round."""
    task = load_task(name)
    state: dict[str, Array] = dict(from_network(task.create_network(0)))
    holdout = task.source("holdout")
    step, _ = train_step_for(task, state, holdout, None)
    evaluate = export_inference(task, state, holdout.x[:8]).evaluate
    trainer, chosen = OnnxTrainer(step.model, step.spec, evaluate), task.default_campaign
    residuals: dict[str, dict[str, Array]] = {}
    strangers = [holdout, task.source("unseen")]
    accuracy, sent = [], 0
    for number in range(rounds):
        mean = StreamingMean(state)
        for index, device in enumerate(task.client_names()[:clients]):
            rows = task.source(f"client/{device}")
            options = TrainOptions(
                local_epochs=chosen.local_epochs,
                batch_size=chosen.batch_size,
                learning_rate=chosen.learning_rate,
                proximal_mu=chosen.proximal_mu,
                seed=number,
            )
            trained = trainer.train(state, rows.x, rows.y, options, lambda: False)
            if wire == "float32":
                data, arrived = encode_bundle(trained.state), trained.state
            else:
                data, residuals[device] = encode_difference(
                    difference(trained.state, state),
                    wire=wire,
                    density=density,
                    seed=number * clients + index,
                    residual=residuals.get(device),
                )
                arrived = apply_difference(state, decode_difference(data, state, wire=wire))
            sent += len(data)
            mean.add(arrived, trained.examples)
        state = dict(mean.result())
        results = [trainer.evaluate(state, rows.x, rows.y, lambda: False) for rows in strangers]
        accuracy.append(sum(r.accuracy * r.examples for r in results) / sum(r.examples for r in results))
    return statistics.mean(accuracy[-3:]), sent / rounds / clients


def measure_rounds(name: str, rounds: int, clients: int) -> list[Row]:
    """One row for each wire."""
    whole_accuracy, whole_bytes = federated(name, rounds, clients, "float32", 1.0)
    print(
        f"{name}, {clients} devices, {rounds} rounds: float32 {whole_bytes:,.0f} bytes, accuracy {whole_accuracy:.4f}"
    )
    rows: list[Row] = []
    for wire, density in WIRES:
        accuracy, size = federated(name, rounds, clients, wire, density)
        share, loss = size / whole_bytes, whole_accuracy - accuracy
        label = wire if density == 1 else f"{wire} {density:.0%}"
        row: Row = {
            "what": f"{name}: {label} with error feedback, {clients} devices, {rounds} rounds",
            "unit": "bytes per device and round",
            "ours": round(size),
            "beside": {"float32": round(whole_bytes)},
            "ratio": round(share, 4),
            "accuracy": {"ours": round(accuracy, 4), "float32": round(whole_accuracy, 4)},
            "goal": f"<= 1/{1 / BYTES_GOAL:.0f} of the bytes at <= {100 * LOSS_GOAL:g} point of accuracy",
            "holds": share <= BYTES_GOAL and loss <= LOSS_GOAL,
        }
        rows.append(row)
    return rows


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--task", default="har")
    parser.add_argument("--rounds", type=int, default=8, help="0 leaves the federated rounds out")
    parser.add_argument("--clients", type=int, default=6)
    arguments = parser.parse_args()
    rows = measure_codec(arguments.pairs)
    skipped: list[dict[str, str]] = []
    if not available():
        skipped.append({"what": "compiled loops", "why": "numba is not installed"})
    if arguments.rounds:
        try:
            rows += measure_rounds(arguments.task, arguments.rounds, arguments.clients)
        except DataError as error:
            skipped.append({"what": arguments.task, "why": str(error)})
    for row in rows:
        verdict = "" if "holds" not in row else "holds" if row["holds"] else "MISSED"
        share = f"{row['ratio']:.3f} of float32, {row['accuracy']}" if "accuracy" in row else ""
        figure = f"{row['ours']:>9,.{0 if share else 2}f} {row['unit']}"
        print(f"{row['what']:<62} {figure}  {share}  {row['goal']}  {verdict}")
    for item in skipped:
        print(f"{item['what']}: skipped: {item['why']}")
    report = {
        "name": "compression",
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {platform.platform()}",
        "versions": {name: version(name) for name in ("numpy", "zstandard", "torch", "onnxruntime")},
        "load": os.getloadavg()[0],
        "rows": rows,
        "skipped": skipped,
    }
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
