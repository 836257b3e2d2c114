"""Aggregation of model updates: ours beside Flower's, and beside the speed of a copy.

``python benchmarks/aggregation.py [--json FILE] [--pairs N] [--clients N] [--parameters N] [--large] [--cpu]``

All contenders get the same float32 updates that lie in memory, one thread, in turns; a row is the median over the
turns. ``--cpu`` counts processor time instead of the clock's, for a machine that does other things. Before anything is
timed, every mean must equal the mean computed in float64 to 1e-5, the median must have the bits of Flower's, the
trimmed mean those of Flower's computed in float64 and rounded once, and adding ten times as many updates must not take
more memory.

The means' bytes are those of the updates, read once: memory sets the limit, and the row of Flower's legacy aggregate
says how long nothing but reading takes. Where 8 times as fast as that aggregate is not reached, reading alone leaves
little of it: the aggregate's layers of 100 thousand values are averaged inside the cache, where it is at its best. Two
updates in one pass would save half of the sum's traffic (measured: a quarter less time, about 7.5 times instead of
5.65) and hold one model more; four in one pass (31 % less, about 8 times) break the bound of two models; a second core
is what a campaign receives updates with.

The robust rows compare what happens once all updates are there: Flower's ``aggregate_train`` on replies held in memory,
ours from the spool on disk; the second robust figure includes the writing of the spool, which a campaign does while the
updates arrive. ``--large``: also 100 clients x 10 M values, from eight different updates in turn instead of 4 GB;
Flower's legacy aggregate, which makes a weighted copy of all, averages 20 there and its time is multiplied.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
import tracemalloc
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"
os.environ["OPENBLAS_NUM_THREADS"] = "1"
os.environ["FLWR_TELEMETRY_ENABLED"] = "0"

import logging

import numpy as np
import numpy.typing as npt
from flwr.app import Array, ArrayRecord, Message, Metadata, MetricRecord, RecordDict
from flwr.app.message import make_message
from flwr.server.strategy.aggregate import aggregate
from flwr.serverapp.strategy import FedMedian, FedTrimmedAvg
from flwr.serverapp.strategy.strategy_utils import aggregate_arrayrecords

from skerry_server.federation.aggregation import StreamingMean
from skerry_server.federation.aggregation.columns import column_kernels
from skerry_server.federation.strategies.base import RoundStrategy
from skerry_server.federation.strategies.coordinatewise import CoordinateMedian, TrimmedMean
from skerry_server.federation.strategies.protocol import Contribution, StrategyState

Floats = npt.NDArray[np.float32]
State = dict[str, npt.NDArray[Any]]
LAYERS = 10
TRIM = 0.2
#: Different updates of a large run.
DIFFERENT = 8
#: Updates that Flower's legacy aggregate gets in a large run.
LEGACY = 20
CLOCK: Callable[[], float] = time.perf_counter


class Updates:
    """The same updates in the form that each contender wants."""

    def __init__(self, clients: int, parameters: int, different: int) -> None:
        generator = np.random.default_rng(0)
        size = parameters // LAYERS
        made: list[State] = [
            {f"layer{layer}": generator.standard_normal(size, dtype=np.float32) for layer in range(LAYERS)}
            for _ in range(min(clients, different))
        ]
        arrays = [{name: Array(array) for name, array in state.items()} for state in made]
        self.examples = [int(count) for count in generator.integers(10, 200, clients)]
        self.states = [made[client % len(made)] for client in range(clients)]
        self.arrays = [arrays[client % len(made)] for client in range(clients)]
        self.legacy_clients = clients if different >= clients else LEGACY
        self.legacy = [
            (list(state.values()), n)
            for state, n in list(zip(self.states, self.examples, strict=True))[: self.legacy_clients]
        ]
        self.model_bytes = size * LAYERS * 4

    def contents(self) -> list[RecordDict]:
        """For Flower; its robust strategies take the arrays out, so each call needs its own."""
        return [
            RecordDict({"arrays": ArrayRecord(dict(arrays)), "metrics": MetricRecord({"num-examples": n, "loss": 0.5})})
            for arrays, n in zip(self.arrays, self.examples, strict=True)
        ]

    def ours(self, clients: int | None = None) -> State:
        """One update after the other."""
        mean = StreamingMean(self.states[0])
        for state, count in list(zip(self.states, self.examples, strict=True))[:clients]:
            mean.add(state, count)
        return dict(mean.result())

    def flower_legacy(self) -> list[Floats]:
        """``flwr.server.strategy.aggregate.aggregate``."""
        return [np.asarray(array, dtype=np.float32) for array in aggregate(self.legacy)]

    def read(self) -> float:
        """Less than a mean can do: every value of every update read once, by the fastest of BLAS."""
        return float(sum(np.dot(array, array) for state in self.states for array in state.values()))

    def copy(self) -> State:
        """The limit: every byte of every update copied once into one model."""
        target = {name: np.empty_like(array) for name, array in self.states[0].items()}
        for state in self.states:
            for name, to in target.items():
                np.copyto(to, state[name])
        return target


def check(updates: Updates) -> float:
    """Raise unless the means are right and flat in memory; the peak beyond the updates, in models."""
    weights = np.array(updates.examples, dtype=np.float64)
    ours = updates.ours()
    records = aggregate_arrayrecords(updates.contents(), "num-examples")
    legacy = updates.flower_legacy()
    for index, name in enumerate(ours):
        part = slice(0, 1000)
        exact = np.average([state[name][part] for state in updates.states], axis=0, weights=weights)
        np.testing.assert_allclose(ours[name][part], exact, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(records[name].numpy()[part], exact, rtol=1e-5, atol=1e-5)
        if updates.legacy_clients == len(updates.states):
            np.testing.assert_allclose(legacy[index][part], exact, rtol=1e-5, atol=1e-5)
    peaks = []
    for clients in (len(updates.states) // 10, len(updates.states)):
        tracemalloc.start()
        updates.ours(clients)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    if peaks[1] > 1.02 * peaks[0] or peaks[1] > 2.1 * updates.model_bytes:
        raise AssertionError(f"the mean of ten times as many updates took {peaks} bytes, a model {updates.model_bytes}")
    return peaks[1] / updates.model_bytes


def timed(action: Callable[[], object]) -> float:
    """Milliseconds of one call."""
    started = CLOCK()
    action()
    return (CLOCK() - started) * 1000


def turns(contenders: dict[str, Callable[[], float]], pairs: int) -> dict[str, list[float]]:
    """Milliseconds of each contender in each turn; a contender times itself."""
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(pairs):
        for name, action in contenders.items():
            times[name].append(action())
    return times


def row(what: str, times: dict[str, list[float]], peer: str, goal: float, ours: str = "ours") -> dict[str, Any]:
    """Ours beside one peer; the ratio is the median over the turns."""
    factor = statistics.median(theirs / own for theirs, own in zip(times[peer], times[ours], strict=True))
    return {
        "what": what,
        "unit": "ms",
        "ours": statistics.median(times[ours]),
        "beside": {peer: statistics.median(times[peer])},
        "ratio": factor,
        "goal": f">= {goal}" if goal else "",
        "holds": factor >= goal,
    }


def measure_means(clients: int, parameters: int, pairs: int, *, different: int | None = None) -> list[dict[str, Any]]:
    """Rows for one size."""
    updates = Updates(clients, parameters, different or clients)
    peak = check(updates)

    def records() -> float:
        contents = updates.contents()
        return timed(lambda: aggregate_arrayrecords(contents, "num-examples"))

    times = turns(
        {
            "ours": lambda: timed(updates.ours),
            "copy": lambda: timed(updates.copy),
            "every value read once": lambda: timed(updates.read),
            "flwr aggregate (legacy)": lambda: timed(updates.flower_legacy) * clients / updates.legacy_clients,
            "flwr aggregate_arrayrecords": records,
        },
        pairs,
    )
    size = f"{clients} clients x {parameters / 1e6:g}M float32"
    rows = [
        row(f"{size}: speed of a copy", times, "copy", 0.7),
        row(f"{size}: faster than flwr aggregate (legacy)", times, "flwr aggregate (legacy)", 8.0),
        row(f"{size}: faster than flwr aggregate_arrayrecords", times, "flwr aggregate_arrayrecords", 2.5),
    ]
    rows[0]["memory_in_models"] = peak
    rows[1]["beside"]["every value read once"] = statistics.median(times["every value read once"])
    return rows


def flower_replies(updates: Updates) -> list[Message]:
    """Replies for Flower's robust strategies."""
    replies = []
    for number, content in enumerate(updates.contents()):
        metadata = Metadata(
            run_id=1,
            message_id="",
            src_node_id=number + 1,
            dst_node_id=1,
            reply_to_message_id="x",
            group_id="",
            created_at=0.0,
            ttl=1.0,
            message_type="train",
        )
        replies.append(make_message(metadata, content))
    return replies


class Robust:
    """A robust strategy of ours and Flower's."""

    def __init__(self, updates: Updates, scratch: Path, ours: RoundStrategy, theirs: Callable[[], Any]) -> None:
        self._updates, self._scratch, self._ours, self._theirs = updates, scratch, ours, theirs
        self.in_all: list[float] = []

    def ours(self) -> tuple[State, float]:
        """The result, and the milliseconds from the last update on."""
        started = CLOCK()
        model = self._updates.states[0]
        aggregation = self._ours.aggregation(model, StrategyState(), scratch=self._scratch)
        for number, state in enumerate(self._updates.states):
            aggregation.add(Contribution(f"{number:04}", 1, 1, 0.0, state))
        there = CLOCK()
        result = aggregation.result()
        ended = CLOCK()
        aggregation.close()
        self.in_all.append((ended - started) * 1000)
        return dict(result), (ended - there) * 1000

    def flower(self) -> tuple[State, float]:
        """The same of Flower."""
        replies, strategy = flower_replies(self._updates), self._theirs()
        started = CLOCK()
        arrays, _ = strategy.aggregate_train(1, replies)
        ended = CLOCK()
        return {name: array.numpy() for name, array in arrays.items()}, (ended - started) * 1000


def check_robust(name: str, pair: Robust, updates: Updates) -> float:
    """Raise unless the bits are right; the peak of ours beyond the updates, in MB without the model that it makes."""
    pair.ours()
    tracemalloc.start()
    ours, _ = pair.ours()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    theirs, _ = pair.flower()
    for layer in ours:
        if name == "trimmed mean":
            np.testing.assert_allclose(ours[layer], theirs[layer], rtol=1e-4, atol=1e-6)
            part = np.stack([state[layer][:5000] for state in updates.states]).astype(np.float64)
            cut = int(TRIM * len(part))
            exact = np.sort(part, axis=0)[cut : len(part) - cut].mean(axis=0).astype(np.float32)
            np.testing.assert_array_equal(ours[layer][:5000], exact)
        else:
            np.testing.assert_array_equal(ours[layer], theirs[layer])
    extra = (peak - updates.model_bytes) / (1 << 20)
    if extra > 32:
        raise AssertionError(f"{name}: {extra:.0f} MB beyond the model")
    return extra


def measure_robust(clients: int, parameters: int, pairs: int) -> list[dict[str, Any]]:
    """Rows of median and trimmed mean."""
    logging.getLogger("flwr").setLevel(logging.ERROR)
    updates = Updates(clients, parameters, clients)
    size = f"{clients} clients x {parameters / 1e6:g}M float32"
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        for name, ours, theirs in (
            ("median", CoordinateMedian(), FedMedian),
            ("trimmed mean", TrimmedMean(trim=TRIM), lambda: FedTrimmedAvg(beta=TRIM)),
        ):
            pair = Robust(updates, Path(folder), ours, theirs)
            extra = check_robust(name, pair, updates)
            pair.in_all.clear()
            times = turns({"ours": lambda pair=pair: pair.ours()[1], "flwr": lambda pair=pair: pair.flower()[1]}, pairs)  # type: ignore[misc]
            times["with the spool"] = pair.in_all
            rows.append(row(f"{size}: {name}, once all are there", times, "flwr", 10.0))
            rows[-1]["extra_mb"] = extra
            rows.append(row(f"{size}: {name}, with writing the spool", times, "flwr", 0.0, "with the spool"))
    return rows


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--clients", type=int, nargs="*", default=[10, 100])
    parser.add_argument("--parameters", type=int, default=1_000_000)
    parser.add_argument("--large", action="store_true", help="also 100 clients x 10 M values")
    parser.add_argument("--cpu", action="store_true", help="count processor time")
    arguments = parser.parse_args()
    if arguments.cpu:
        globals()["CLOCK"] = time.process_time
    rows = [
        item for clients in arguments.clients for item in measure_means(clients, arguments.parameters, arguments.pairs)
    ]
    if arguments.large:
        rows += measure_means(100, 10_000_000, arguments.pairs, different=DIFFERENT)
    rows += measure_robust(max(arguments.clients), arguments.parameters, arguments.pairs)
    for item in rows:
        beside = ", ".join(f"{name} {value:.1f}" for name, value in item["beside"].items())
        verdict = ("holds" if item["holds"] else "MISSED") if item["goal"] else ""
        memory = "".join(
            f"  {item[key]:.2f} {unit}"
            for key, unit in (("memory_in_models", "models"), ("extra_mb", "MB"))
            if key in item
        )
        print(
            f"{item['what']:<72} {item['ours']:8.1f} ms  ({beside} ms)  {item['ratio']:.2f}x  {item['goal']}  "
            f"{verdict}{memory}"
        )
    report = {
        "name": "aggregation",
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {platform.platform()}",
        "versions": {name: version(name) for name in ("numpy", "scipy", "flwr")},
        "kernels": type(column_kernels()).__name__,
        "clock": "processor" if arguments.cpu else "wall",
        "load": os.getloadavg()[0],
        "rows": rows,
        "skipped": [] if arguments.large else ["100 clients x 10M float32 (--large)"],
    }
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
