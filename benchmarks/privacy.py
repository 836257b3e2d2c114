"""What differential privacy costs: accuracy against epsilon, the accountants against each other, and the time.

``python benchmarks/privacy.py [--json FILE] [--devices N] [--rounds N]``

The handwritten digits that come with scikit-learn, 1,500 rows over 300 devices, 297 rows of holdout; softmax regression
(650 parameters), five local steps, federated averaging. Clipping, noise, adaptive clipping and accounting are the
campaign's own: :class:`~skerry_server.federation.privacy.PrivacyPlan` on the server,
:mod:`skerry_agent.training.local_privacy` on the device. Client-level: each device is protected with all its rows.
Three hundred devices are few: the noise on the mean shrinks as one over their number, so a larger fleet has the same
accuracy at a smaller epsilon.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import numpy.typing as npt
from sklearn.datasets import load_digits

from skerry_agent.training.local_privacy import noised
from skerry_contract.gaussian import GaussianStream
from skerry_contract.tensors import Array
from skerry_server.federation.privacy import PrivacyPlan, PrivateSum, Spending
from skerry_server.federation.privacy.accountant import exact_epsilon, rdp_epsilon

Floats = npt.NDArray[np.float32]
State = dict[str, Array]
CLASSES = 10
HOLDOUT = 297
DELTA = 1e-5
CLIP_NORM = 1.0
LOCAL_STEPS = 5
RATE = 0.5


class Fleet:
    """Devices with a few images each, all trained at once."""

    def __init__(self, devices: int, seed: int) -> None:
        digits = load_digits()
        order = np.random.default_rng(seed).permutation(len(digits.target))
        pixels = np.hstack([digits.data / 16, np.ones((len(order), 1))]).astype(np.float32)[order]
        labels = digits.target[order]
        self.holdout_x, self.holdout_y = pixels[:HOLDOUT], labels[:HOLDOUT]
        rows = (len(order) - HOLDOUT) // devices
        used = slice(HOLDOUT, HOLDOUT + rows * devices)
        self.x: Floats = pixels[used].reshape(devices, rows, -1)
        self.y: Floats = np.eye(CLASSES, dtype=np.float32)[labels[used]].reshape(devices, rows, CLASSES)

    def train(self, weights: Floats) -> Floats:
        """What each device makes of the model; float32 [devices, 65, 10]."""
        local: Floats = np.broadcast_to(weights, (len(self.x), *weights.shape)).copy()
        for _ in range(LOCAL_STEPS):
            scores = self.x @ local
            scores = np.exp(scores - scores.max(axis=2, keepdims=True))
            wrong = scores / scores.sum(axis=2, keepdims=True) - self.y
            local -= np.float32(RATE / self.x.shape[1]) * (self.x.transpose(0, 2, 1) @ wrong)
        return local

    def accuracy(self, weights: Floats) -> float:
        """On the holdout, %."""
        return 100 * float(((self.holdout_x @ weights).argmax(axis=1) == self.holdout_y).mean())


def campaign(fleet: Fleet, rounds: int, **settings: Any) -> tuple[float, float]:
    """Accuracy (%) and epsilon after a campaign; without settings there is no privacy."""
    plan = PrivacyPlan.from_settings(settings, rounds=rounds)
    weights = np.zeros((fleet.x.shape[2], CLASSES), np.float32)
    if not plan.enabled:
        for _ in range(rounds):
            weights = fleet.train(weights).mean(axis=0)
        return fleet.accuracy(weights), float("inf")
    state, key = plan.start(len(fleet.x)), plan.new_key()
    for _ in range(rounds):
        plan.admit(state)
        model: State = {"w": weights}
        told = plan.device_fields(state)
        updates = fleet.train(weights)
        aggregation: PrivateSum | None = None
        if plan.central:
            aggregation = plan.aggregation(model, state, key=key, campaign_id="benchmark")
            for update in updates:
                aggregation.add({"w": update})
            weights = aggregation.result()["w"].astype(np.float32)
        else:
            private = [
                noised({"w": update}, model, clip_norm=told["clip_norm"], noise_std=told["noise_std"])["w"]
                for update in updates
            ]
            weights = np.stack(private).astype(np.float32).mean(axis=0)
        state = plan.committed(state, aggregation)
    return fleet.accuracy(weights), plan.epsilon(state)


def accuracy_rows(devices: int, rounds: int, seeds: Sequence[int] = (1, 2)) -> list[Any]:
    """Accuracy against epsilon; means over the seeds."""
    fleets = [Fleet(devices, seed) for seed in seeds]

    def accuracy(**settings: Any) -> float:
        results = [campaign(fleet, rounds, **settings) for fleet in fleets]
        assert all(epsilon <= settings.get("target_epsilon", epsilon) for _, epsilon in results)
        return statistics.mean(figure for figure, _ in results)

    plain = accuracy()
    rows = []
    for epsilon in (16.0, 8.0, 4.0, 2.0, 1.0):
        central = {"mode": "central", "clip_norm": CLIP_NORM, "target_epsilon": epsilon, "delta": DELTA}
        beside = {"no privacy": plain}
        if epsilon >= 8:  # below, local noise leaves nothing of so few devices
            beside["local"] = accuracy(**{**central, "mode": "local"})
        figures = {"fixed": accuracy(**central), "adaptive": accuracy(**central, clip="adaptive")}
        for clip, ours in figures.items():
            row = _row(f"central, {clip} clipping, epsilon {epsilon:g}, {rounds} rounds", "% accuracy", ours, beside)
            if epsilon == 8.0 and clip == "fixed":
                row["goal"], row["holds"] = "at most 5 points below no privacy", bool(ours >= plain - 5)
            rows.append(row)
    return rows


def accountant_rows() -> list[Any]:
    """Epsilon of 100 rounds with multiplier 4, and how long it takes, beside the libraries."""
    from dp_accounting import GaussianDpEvent
    from dp_accounting.pld import PLDAccountant
    from dp_accounting.rdp import RdpAccountant

    def library(accountant: Any) -> Callable[[], float]:
        def epsilon() -> float:
            fresh = accountant()
            fresh.compose(GaussianDpEvent(4.0), 100)
            return float(fresh.get_epsilon(DELTA))

        return epsilon

    spending = Spending(4.0, 100)
    rows = []
    for name, ours, theirs in (
        ("exact", lambda: exact_epsilon(spending, DELTA), PLDAccountant),
        ("rdp", lambda: rdp_epsilon(spending, DELTA), RdpAccountant),
    ):
        other = f"dp-accounting {theirs.__name__}"
        (epsilon, seconds), (reference, reference_seconds) = _timed(ours), _timed(library(theirs))
        row = _row(f"{name} accountant, 100 rounds of multiplier 4", "epsilon", epsilon, {other: reference})
        row["goal"], row["holds"] = "within 1 %", abs(epsilon / reference - 1) <= 0.01
        rows.append(row)
        rows.append(_row(f"{name} accountant, time", "ms", 1e3 * seconds, {other: 1e3 * reference_seconds}, lower=True))
    return rows


def speed_rows(values: int = 2_000_000) -> list[Any]:
    """Millions of values per second of one core: noise, and one update into the sum."""
    rng = np.random.default_rng(1)
    model: State = {"w": np.zeros(values, np.float32)}
    update: State = {"w": rng.normal(size=values).astype(np.float32)}
    integers = np.zeros(values, np.int64)
    stream = GaussianStream(bytes(32), b"benchmark")
    private = PrivateSum(model, clip_norm=1.0, noise_multiplier=1.0, divisor=1, key=bytes(32), purpose=b"benchmark")
    _, noise = _timed(lambda: stream.add_integers(integers, 1e9))
    _, numpy_noise = _timed(lambda: np.rint(rng.normal(0, 1e9, values)).astype(np.int64))
    _, add = _timed(lambda: private.add(update))
    _, copy = _timed(lambda: update["w"].astype(np.float64))
    return [
        _row(
            "noise from ChaCha20, on the grid",
            "million values/s",
            values / noise / 1e6,
            {"numpy normal (no cryptographic source)": values / numpy_noise / 1e6},
        ),
        _row(
            "an update clipped and summed on the grid",
            "million values/s",
            values / add / 1e6,
            {"conversion to float64": values / copy / 1e6},
        ),
    ]


def _timed(call: Callable[[], Any], repeats: int = 3) -> tuple[Any, float]:
    times, result = [], None
    for _ in range(repeats):
        begun = time.perf_counter()
        result = call()
        times.append(time.perf_counter() - begun)
    return result, statistics.median(times)


def _row(what: str, unit: str, ours: float, beside: dict[str, float], *, lower: bool = False) -> dict[str, Any]:
    first = next(iter(beside.values()))
    return {
        "what": what,
        "unit": unit,
        "ours": round(ours, 4),
        "beside": {name: round(value, 4) for name, value in beside.items()},
        "ratio": round(first / ours if lower else ours / first, 4),
        "goal": "",
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table, and write it as JSON if asked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--devices", type=int, default=300)
    parser.add_argument("--rounds", type=int, default=20)
    options = parser.parse_args(arguments)
    rows = [*accuracy_rows(options.devices, options.rounds), *accountant_rows(), *speed_rows()]
    document = {
        "name": "privacy",
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "versions": {
            "python": platform.python_version(),
            "numpy": np.__version__,
            "dp-accounting": version("dp-accounting"),
        },
        "load": list(os.getloadavg()),
        "rows": rows,
        "skipped": [],
    }
    for row in rows:
        beside = ", ".join(f"{name} {value:g}" for name, value in row["beside"].items())
        verdict = {True: "holds", False: "MISSED", None: ""}[row.get("holds")]
        print(f"{row['what']:<58} {row['ours']:>9g} {row['unit']:<16} | {beside} | {row['goal']} {verdict}")
    if options.json:
        options.json.write_text(json.dumps(document, indent=2))


if __name__ == "__main__":
    main()
