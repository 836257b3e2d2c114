"""The answers of a site's devices as one answer: pure.

The mean is ``sum(w_k x_k) / sum(w_k)`` over the devices, with their examples as weights, and the answer's ``examples``
is ``sum(w_k)``: averaged with others by examples it has the influence that its devices would have had (federated
averaging is associative; arXiv 1602.05629, and 1905.06641 for the hierarchy). Under local differential privacy every
device weighs the same, there and here.

Figures: examples and steps are sums; the training loss is the mean by examples, what was measured on validation splits
the mean by their sizes; seconds and the accuracy of devices' own models are means over the devices.
"""

from __future__ import annotations

from collections.abc import Mapping

from skerry_contract.campaign import EvaluateReply, TrainReply
from skerry_contract.site import join_members


class _Mean:
    """Weighted mean of numbers; 0 of none."""

    def __init__(self) -> None:
        self._total = self.weight = 0.0

    def add(self, value: float, weight: float = 1.0) -> None:
        if weight > 0:
            self._total += value * weight
            self.weight += weight

    def value(self, *, otherwise: float = 0.0) -> float:
        return self._total / self.weight if self.weight else otherwise


class TrainFigures:
    """What the updates of a round say beside their parameters."""

    def __init__(self) -> None:
        self.members: list[str] = []
        self.examples = 0
        self._steps = 0
        self._loss, self._seconds, self._personal = _Mean(), _Mean(), _Mean()
        self._accuracy, self._validation_loss, self._squared = _Mean(), _Mean(), _Mean()

    def add(self, device_id: str, examples: int, metrics: Mapping[str, float]) -> None:
        """Count one update; ``metrics`` as :func:`skerry_server.federation.rounds.updates.read_update` gives them."""
        self.members.append(device_id)
        self.examples += examples
        self._steps += int(metrics["steps"])
        self._loss.add(metrics["loss"], examples)
        self._seconds.add(metrics["seconds"])
        measured = metrics["validation_examples"]
        self._accuracy.add(metrics["validation_accuracy"], measured)
        self._validation_loss.add(metrics["validation_loss"], measured)
        if "squared_loss" in metrics:
            self._squared.add(metrics["squared_loss"], measured)
        if "personal_accuracy" in metrics:
            self._personal.add(metrics["personal_accuracy"])

    def reply(self, gateway_id: str, parameters: bytes, *, wire: str, norm: float) -> TrainReply:
        """The site's answer.

        Args:
            gateway_id: Who answers.
            parameters: Of the mean, as encoded.
            wire: How.
            norm: L2 norm of the mean's difference from the model.
        """
        return TrainReply(
            device_id=gateway_id,
            examples=self.examples,
            steps=max(1, self._steps),
            seconds=self._seconds.value(),
            loss=self._loss.value(),
            validation_examples=int(self._accuracy.weight),
            validation_accuracy=min(1.0, max(0.0, self._accuracy.value())),
            validation_loss=self._validation_loss.value(),
            parameters=parameters,
            wire=wire,
            norm=min(norm, 1e30),
            squared_loss=self._squared.value(otherwise=-1.0),
            personal_accuracy=min(1.0, self._personal.value(otherwise=-1.0)),
            members=join_members(self.members),
        )


class EvaluateFigures:
    """How good a model is on the devices of a site: means by the sizes of their validation splits."""

    def __init__(self) -> None:
        self.members: list[str] = []
        self._examples = 0
        self._accuracy, self._loss, self._personal = _Mean(), _Mean(), _Mean()

    def add(self, reply: EvaluateReply) -> None:
        """Count one device's figures."""
        self.members.append(reply.device_id)
        self._examples += reply.examples
        self._accuracy.add(reply.accuracy, reply.examples)
        self._loss.add(reply.loss, reply.examples)
        if reply.personal_accuracy >= 0:
            self._personal.add(reply.personal_accuracy, reply.examples)

    def reply(self, gateway_id: str) -> EvaluateReply:
        """The site's answer."""
        return EvaluateReply(
            device_id=gateway_id,
            examples=self._examples,
            accuracy=min(1.0, self._accuracy.value()),
            loss=self._loss.value(),
            personal_accuracy=min(1.0, self._personal.value(otherwise=-1.0)),
        )
