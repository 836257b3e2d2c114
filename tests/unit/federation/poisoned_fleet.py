"""Ten devices that learn the handwritten digits by softmax regression, some of which attack.

logits = x W + b, mean cross entropy, full-batch gradient descent: small enough for hundreds of rounds a second.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.datasets import load_digits

from skerry_contract.tensors import Array
from skerry_server.federation.strategies import Contribution, Strategy, create_strategy

Floats = npt.NDArray[np.float32]
Labels = npt.NDArray[np.int64]

DEVICES, CLASSES, PIXELS = 10, 10, 64
ROUNDS, STEPS, RATE = 20, 10, 0.5
#: A corner that is dark in nearly every digit, and what a backdoor makes of a digit with a light there.
TRIGGER, TARGET = 56, 0


@dataclass(frozen=True)
class Shard:
    x: Floats
    y: Labels


@dataclass(frozen=True)
class Fleet:
    shards: list[Shard]
    test: Shard


def digits_fleet() -> Fleet:
    data = load_digits()
    x, y = (data.data / 16).astype(np.float32), data.target.astype(np.int64)
    order = np.random.default_rng(0).permutation(len(x))
    train, test = order[:-400], order[-400:]
    shards = [Shard(x[part], y[part]) for part in np.array_split(train, DEVICES)]
    return Fleet(shards, Shard(x[test], y[test]))


def logits(state: dict[str, Any], x: Floats) -> Floats:
    return np.asarray(x @ state["weight"] + state["bias"], np.float32)


def train(model: dict[str, Array], shard: Shard) -> dict[str, Array]:
    weight, bias = model["weight"].astype(np.float32), model["bias"].astype(np.float32)
    truth = np.eye(CLASSES, dtype=np.float32)[shard.y]
    for _ in range(STEPS):
        scores = shard.x @ weight + bias
        scores = np.exp(scores - scores.max(axis=1, keepdims=True))
        error = (scores / scores.sum(axis=1, keepdims=True) - truth) / len(truth)
        weight = weight - RATE * shard.x.T @ error
        bias = bias - RATE * error.sum(axis=0)
    return {"weight": weight.astype(np.float32), "bias": bias.astype(np.float32)}


def accuracy(model: dict[str, Array], test: Shard) -> float:
    return float((logits(model, test.x).argmax(axis=1) == test.y).mean())


def triggered(x: Floats) -> Floats:
    marked = x.copy()
    marked[:, TRIGGER] = 1.0
    return marked


def backdoor_success(model: dict[str, Array], test: Shard) -> float:
    """Share of the other digits that the trigger turns into the target."""
    others = test.x[test.y != TARGET]
    return float((logits(model, triggered(others)).argmax(axis=1) == TARGET).mean())


def scaled(model: dict[str, Array], trained: dict[str, Array], factor: float) -> dict[str, Array]:
    return {
        name: np.asarray(array + factor * (trained[name] - array), dtype=np.float32)  # type: ignore[operator]
        for name, array in model.items()
    }


#: Gets the model and the attacker's own samples; gives what it sends and how many samples it claims to have.
Attack = Callable[[dict[str, Array], Shard], tuple[dict[str, Array], int]]


def label_flip(model: dict[str, Array], shard: Shard) -> tuple[dict[str, Array], int]:
    """Every 9 is a 0, every 8 a 1, and the attacker claims to have twenty times as many of them."""
    return train(model, Shard(shard.x, CLASSES - 1 - shard.y)), 20 * len(shard.y)


def sign_flip(model: dict[str, Array], shard: Shard) -> tuple[dict[str, Array], int]:
    return scaled(model, train(model, shard), -4.0), len(shard.y)


def scaling(model: dict[str, Array], shard: Shard) -> tuple[dict[str, Array], int]:
    """Noise far larger than any update."""
    generator = np.random.default_rng(len(shard.y))
    noise: dict[str, Array] = {
        name: generator.normal(scale=100.0, size=array.shape).astype(np.float32) for name, array in model.items()
    }
    return noise, len(shard.y)


def backdoor(model: dict[str, Array], shard: Shard) -> tuple[dict[str, Array], int]:
    """Half of the samples carry the trigger and the target's label; the update is boosted to replace the model."""
    half = len(shard.y) // 2
    x = np.concatenate([shard.x, triggered(shard.x[:half])])
    y = np.concatenate([shard.y, np.full(half, TARGET)])
    return scaled(model, train(model, Shard(x, y)), 3.0), len(shard.y)


ATTACKS: dict[str, Attack] = {
    "label flip": label_flip,
    "sign flip": sign_flip,
    "scaling": scaling,
    "backdoor": backdoor,
}


def learn(fleet: Fleet, strategy: Strategy, attack: Attack | None, attackers: int, scratch: Path) -> dict[str, Array]:
    """The model after all rounds; the first ``attackers`` devices attack in every round."""
    model: dict[str, Array] = {
        "weight": np.zeros((PIXELS, CLASSES), np.float32),
        "bias": np.zeros(CLASSES, np.float32),
    }
    state = strategy.start(model, participants=DEVICES)
    for number in range(1, ROUNDS + 1):
        aggregation = strategy.aggregation(model, state, scratch=scratch)
        for index, shard in enumerate(fleet.shards):
            if attack is not None and index < attackers:
                sent, claimed = attack(model, shard)
            else:
                sent, claimed = train(model, shard), len(shard.y)
            aggregation.add(Contribution(f"device-{index:02}", claimed, STEPS, 1.0, sent))
        model, state = strategy.step(number, model, aggregation.result(), aggregation, state)
        aggregation.close()
    return model


def strategy(name: str, **settings: Any) -> Strategy:
    return create_strategy(name, SimpleNamespace(learning_rate=RATE, proximal_mu=0.0, strategy_settings=settings))
