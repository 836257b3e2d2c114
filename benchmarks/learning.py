"""How well each strategy learns: real people, and shops whose assortments differ, beside one machine with all the data.

``python benchmarks/learning.py [--json FILE] [--rounds N] [--task T ...] [--strategy S ...]``

Production's campaign loop, strategies and device trainer, every device in one process. Accuracy is that of the last
three rounds' models (mean) on the test people or test images, so that one lucky round does not count.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from skerry_models.evaluation import evaluate_parameters
from skerry_models.parameters import from_network
from skerry_models.task import CENTRAL, HOLDOUT, load_task
from skerry_server.federation.rounds.round_loop import RoundFailedError
from skerry_simulation.campaign.run import run_scenario
from skerry_simulation.scenario import Population, Scenario

#: Accuracy of FedAvg on the same windows, measured by others with a network of the same size: round to accuracy.
REFERENCE = {1: 0.387, 5: 0.782, 10: 0.810, 20: 0.833, 30: 0.836}
CENTRAL_GOAL = 0.02
EPOCHS = 20


@dataclass(frozen=True)
class Setting:
    """One task and what each device does in a round."""

    task: str
    clients: int
    rounds: int
    campaign: dict[str, Any]
    reference: dict[int, float] = field(default_factory=dict)


SETTINGS = {
    setting.task: setting
    for setting in (
        Setting("har-21", 21, 60, {"local_epochs": 2, "batch_size": 32, "learning_rate": 0.05}, REFERENCE),
        Setting("har-21-transitions", 21, 50, {"local_epochs": 2, "batch_size": 32, "learning_rate": 0.05}),
        Setting("fashion-skewed", 20, 15, {"local_epochs": 1, "batch_size": 32, "learning_rate": 0.01}),
    )
}
#: Strategy to what it is given beside the setting. Steps with momentum 0.9 are large: what corrects or scales them
#: (SCAFFOLD, server-side Adam and Yogi) takes a smaller rate on the devices, or diverges.
STRATEGIES: dict[str, dict[str, Any]] = {
    "fedavg": {},
    "fedavgm": {"strategy_settings": {"momentum": 0.5}},
    "fedprox": {"proximal_mu": 0.01},
    "fedadam": {"strategy_settings": {"server_learning_rate": 0.01}, "learning_rate": 0.01},
    "fedyogi": {"strategy_settings": {"server_learning_rate": 0.01}, "learning_rate": 0.01},
    "scaffold": {"learning_rate": 0.005},
    "qfedavg": {},
    "median": {},
    "trimmedmean": {},
    "multikrum": {},
}


def centralised(task_name: str) -> float:
    """One machine with every client's rows: mean over three seeds, which differ by about two points on four people."""
    return statistics.mean(_centralised(task_name, seed) for seed in range(3))


def _centralised(task_name: str, seed: int) -> float:
    """Adam, batches of 64; mean accuracy of the last three epochs."""
    import torch

    task = load_task(task_name)
    names = [CENTRAL] if task_name.startswith("har") else [f"client/{name}" for name in task.client_names()]
    parts = [task.source(name) for name in names]
    x, y = np.concatenate([part.x for part in parts]), np.concatenate([part.y for part in parts])
    torch.manual_seed(seed)
    torch.set_num_threads(1)
    network = task.create_network(seed)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
    order, test, scores = np.random.default_rng(seed), task.source(HOLDOUT), []
    for _ in range(EPOCHS):
        rows = order.permutation(len(x))
        network.train()
        for start in range(0, len(rows), 64):
            batch = rows[start : start + 64]
            optimizer.zero_grad()
            loss = torch.nn.functional.cross_entropy(network(torch.from_numpy(x[batch])), torch.from_numpy(y[batch]))
            loss.backward()
            optimizer.step()
        scores.append(evaluate_parameters(task, from_network(network.eval()), test).accuracy)
    return statistics.mean(scores[-3:])


def federated(setting: Setting, strategy: str, rounds: int) -> tuple[dict[int, float], float]:
    """Round to accuracy, and seconds a round; raises RoundFailedError when the devices' losses diverge."""
    scenario = Scenario(
        task=setting.task,
        population=Population(clients=setting.clients),
        campaign={**setting.campaign, **STRATEGIES[strategy], "strategy": strategy, "rounds": rounds},
    )
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        result = run_scenario(scenario, Path(folder))
    curve = {int(row["number"]): row["accuracy"] for row in result.rounds}
    return curve, (time.monotonic() - started) / rounds


def measure(setting: Setting, strategies: list[str], rounds: int) -> list[dict[str, Any]]:
    """Rows of one task."""
    alone = centralised(setting.task)
    print(f"{setting.task}: one machine with everything {alone:.1%}", flush=True)
    rows: list[dict[str, Any]] = []
    best = 0.0
    for strategy in strategies:
        try:
            curve, seconds = federated(setting, strategy, rounds)
        except RoundFailedError as error:
            print(f"  {strategy:<14} diverged: {error}", flush=True)
            continue
        final = statistics.mean(list(curve.values())[-3:])
        best = max(best, final)
        shown = {number: round(curve[number], 3) for number in (1, 5, 10, 20, 30, 60) if number in curve}
        print(f"  {strategy:<14} {final:.1%}  {shown}  {seconds:.1f} s a round", flush=True)
        row = {
            "what": f"{setting.task}, {strategy}: accuracy after {rounds} rounds",
            "unit": "share",
            "ours": final,
            "beside": {"one machine": alone},
            "ratio": final / alone,
            "goal": "",
            "holds": None,
            "details": {"curve": curve},
        }
        judged = {number: limit for number, limit in setting.reference.items() if number in curve}
        if strategy == "fedavg" and judged:
            row["goal"] = f"at or above {judged}"
            row["holds"] = all(curve[number] >= limit for number, limit in judged.items())
        rows.append(row)
    rows.append(
        {
            "what": f"{setting.task}: best strategy",
            "unit": "share",
            "ours": best,
            "beside": {"one machine": alone},
            "ratio": best / alone,
            "goal": f"within {CENTRAL_GOAL:.0%} of one machine",
            "holds": best >= alone - CENTRAL_GOAL,
        }
    )
    return rows


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--rounds", type=int, default=0, help="0: what each task's row of the goal asks for")
    parser.add_argument("--task", nargs="*", choices=list(SETTINGS), default=["har-21", "fashion-skewed"])
    parser.add_argument("--strategy", nargs="*", choices=list(STRATEGIES), default=list(STRATEGIES))
    arguments = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for name in arguments.task:
        setting = SETTINGS[name]
        rows += measure(setting, arguments.strategy, arguments.rounds or setting.rounds)
    for row in rows:
        if row["holds"] is not None:
            print(f"{row['what']}: {row['ours']:.1%}, {row['goal']}: {'holds' if row['holds'] else 'MISSED'}")
    report = {
        "name": "learning",
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {platform.platform()}",
        "versions": {"python": platform.python_version(), "torch": version("torch"), "flwr": version("flwr")},
        "load": os.getloadavg()[0],
        "rows": rows,
        "skipped": [],
    }
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
