"""Weighted averaging of model updates: ours beside Flower's two aggregations and the speed of a copy.

``python benchmarks/aggregation.py [--json FILE] [--pairs N] [--clients N] [--parameters N]``

All contenders average the same float32 updates that lie in memory, one thread, in turns; a row is the median over the
turns. Bytes are those of the updates, read once. Before anything is timed, every result must equal the mean computed in
float64 to 1e-5, and adding ten times as many updates must not take more memory than one model.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
import tracemalloc
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"
os.environ["OPENBLAS_NUM_THREADS"] = "1"
os.environ["FLWR_TELEMETRY_ENABLED"] = "0"

import numpy as np
import numpy.typing as npt
from flwr.app import Array, ArrayRecord, MetricRecord, RecordDict
from flwr.server.strategy.aggregate import aggregate
from flwr.serverapp.strategy.strategy_utils import aggregate_arrayrecords

from skerry_server.federation.aggregation import StreamingMean

Floats = npt.NDArray[np.float32]
LAYERS = 10


class Updates:
    """The same updates in the form that each contender wants."""

    def __init__(self, clients: int, parameters: int) -> None:
        generator = np.random.default_rng(0)
        size = parameters // LAYERS
        self.examples = [int(count) for count in generator.integers(10, 200, clients)]
        self.states = [
            {f"layer{layer}": generator.random(size, dtype=np.float32) for layer in range(LAYERS)}
            for _ in range(clients)
        ]
        self.legacy = [(list(state.values()), n) for state, n in zip(self.states, self.examples, strict=True)]
        self.records = [
            RecordDict(
                {
                    "arrays": ArrayRecord({name: Array(array) for name, array in state.items()}),
                    "metrics": MetricRecord({"num-examples": n}),
                }
            )
            for state, n in zip(self.states, self.examples, strict=True)
        ]
        self.bytes = clients * size * LAYERS * 4

    def ours(self) -> list[Floats]:
        """One update after the other."""
        mean = StreamingMean(self.states[0])
        for state, count in zip(self.states, self.examples, strict=True):
            mean.add(state, count)
        return [np.asarray(array, dtype=np.float32) for array in mean.result().values()]

    def flower_legacy(self) -> list[Floats]:
        """``flwr.server.strategy.aggregate.aggregate``."""
        return [np.asarray(array, dtype=np.float32) for array in aggregate(self.legacy)]

    def flower_records(self) -> list[Floats]:
        """``flwr.serverapp.strategy``: what FedAvg calls."""
        record = aggregate_arrayrecords(self.records, "num-examples")
        return [np.asarray(array.numpy(), dtype=np.float32) for array in record.values()]

    def copy(self) -> list[Floats]:
        """The limit: every byte of every update copied once into one model."""
        target = [np.empty_like(array) for array in self.states[0].values()]
        for state in self.states:
            for to, array in zip(target, state.values(), strict=True):
                np.copyto(to, array)
        return target


def check(updates: Updates) -> None:
    """Raise unless every contender computes the weighted mean and ours needs the memory of a few models only."""
    weights = np.array(updates.examples, dtype=np.float64)
    for index in range(LAYERS):
        exact = np.average([state[f"layer{index}"] for state in updates.states], axis=0, weights=weights)
        for contender in (updates.ours, updates.flower_legacy, updates.flower_records):
            np.testing.assert_allclose(contender()[index], exact, rtol=1e-5, atol=1e-5)
    tracemalloc.start()
    updates.ours()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    model = updates.bytes // len(updates.states)
    if peak > 2.5 * model:
        raise AssertionError(f"ours took {peak} bytes for models of {model}")


def timed(action: Callable[[], list[Floats]]) -> float:
    """Milliseconds of one call."""
    started = time.perf_counter()
    action()
    return (time.perf_counter() - started) * 1000


def measure(clients: int, parameters: int, pairs: int) -> list[dict[str, Any]]:
    """Rows for one size."""
    updates = Updates(clients, parameters)
    check(updates)
    contenders = {
        "ours": updates.ours,
        "copy": updates.copy,
        "flwr aggregate (legacy)": updates.flower_legacy,
        "flwr aggregate_arrayrecords": updates.flower_records,
    }
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(pairs):
        for name, action in contenders.items():
            times[name].append(timed(action))
    median = {name: statistics.median(values) for name, values in times.items()}

    def ratio(peer: str) -> float:
        return statistics.median(theirs / ours for theirs, ours in zip(times[peer], times["ours"], strict=True))

    size = f"{clients} clients x {parameters / 1e6:g}M float32"
    rows: list[dict[str, Any]] = []
    for peer, goal in (("copy", 0.7), ("flwr aggregate (legacy)", 8.0), ("flwr aggregate_arrayrecords", 2.5)):
        factor = ratio(peer)
        label = "speed of a copy" if peer == "copy" else f"faster than {peer}"
        rows.append(
            {
                "what": f"{size}: {label}",
                "unit": "ms",
                "ours": median["ours"],
                "beside": {peer: median[peer]},
                "ratio": factor,
                "goal": f">= {goal}",
                "holds": factor >= goal,
            }
        )
    return rows


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--clients", type=int, nargs="*", default=[10, 100])
    parser.add_argument("--parameters", type=int, default=1_000_000)
    arguments = parser.parse_args()
    rows = [item for clients in arguments.clients for item in measure(clients, arguments.parameters, arguments.pairs)]
    for item in rows:
        beside = ", ".join(f"{name} {value:.1f}" for name, value in item["beside"].items())
        verdict = "holds" if item["holds"] else "MISSED"
        print(
            f"{item['what']:<70} {item['ours']:8.1f} ms  ({beside} ms)  {item['ratio']:.2f}x  {item['goal']}  {verdict}"
        )
    report = {
        "name": "aggregation",
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {platform.platform()}",
        "versions": {name: version(name) for name in ("numpy", "scipy", "flwr")},
        "load": os.getloadavg()[0],
        "rows": rows,
        "skipped": [],
    }
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
