"""What each device is sent to train on: the whole model, or only what changed since the round before. Pure: no I/O.

A lossy down-link does not make devices and control plane disagree: what is committed is the model as the devices can
rebuild it, and what the encoding lost is added to the next difference (error feedback). A device that lacks the base,
or that says that it cannot encode its answer as asked, gets a question that needs neither.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace

from skerry_contract.campaign import NO_BASE, TRAIN, TrainInstruction
from skerry_contract.tensors import Array
from skerry_contract.update_codec import apply_difference, decode_difference, difference, encode_difference
from skerry_server.federation.exchange import Broadcast
from skerry_server.federation.rounds.carried import Carried
from skerry_server.federation.rounds.fast_codec import kernels_for
from skerry_server.federation.rounds.updates import PLAIN_WIRE

State = dict[str, Array]

#: How a reason begins that a device gives when it cannot use an encoding.
_WIRE = "wire:"


@dataclass(frozen=True)
class ModelDifference:
    """A model as its difference from another one.

    Attributes:
        wire: How it is encoded.
        data: The encoded difference.
        base_sha256: Digest (hexadecimal) of the wire form of the other one.
        holders: Devices that were given the other one.
    """

    wire: str
    data: bytes = field(repr=False)
    base_sha256: str
    holders: Collection[str]


class DownLink:
    """The question of one round; a :class:`~.round_loop.Question`, and counts what was sent."""

    def __init__(self, instruction: TrainInstruction, *, group: str, changes: ModelDifference | None = None) -> None:
        """Prepare.

        Args:
            instruction: With the whole model.
            group: Shown in Flower's records.
            changes: The same model as a difference; None without.
        """
        #: With the whole model.
        self.instruction = instruction
        self._group = group
        self._changes = changes
        self._whole: set[str] = set()
        self._plain: set[str] = set()
        self._messages: dict[tuple[bool, bool], Broadcast] = {}
        #: Bytes that were sent, by device.
        self.sent_bytes: dict[str, int] = {}

    def broadcast(self, device_id: str) -> Broadcast:
        """See :class:`~.round_loop.Question`."""
        key = (self._by_difference(device_id), device_id in self._plain)
        if key not in self._messages:
            self._messages[key] = self._message(*key)
        return self._messages[key]

    def _by_difference(self, device_id: str) -> bool:
        return self._changes is not None and device_id in self._changes.holders and device_id not in self._whole

    def _message(self, by_difference: bool, plain: bool) -> Broadcast:
        instruction = self.instruction
        if by_difference and self._changes is not None:
            instruction = replace(
                instruction,
                parameters=self._changes.data,
                parameters_wire=self._changes.wire,
                base_sha256=self._changes.base_sha256,
            )
        if plain:
            instruction = replace(instruction, wire=PLAIN_WIRE)
        return Broadcast(TRAIN, self._group, instruction.to_fields(), instruction.deadline_ms / 1000)

    def sent(self, device_id: str) -> None:
        """See :class:`~.round_loop.Question`."""
        fields = self.broadcast(device_id).fields
        size = sum(len(value) for value in fields.values() if isinstance(value, bytes))
        self.sent_bytes[device_id] = self.sent_bytes.get(device_id, 0) + size

    def troubled(self, device_id: str, reason: str) -> bool:
        """See :class:`~.round_loop.Question`: what went wrong may be the encoding, which then is not used again."""
        helps = self._by_difference(device_id) and NO_BASE in reason
        if self._by_difference(device_id):
            self._whole.add(device_id)
        if _WIRE in reason and device_id not in self._plain and self.instruction.wire != PLAIN_WIRE:
            self._plain.add(device_id)
            helps = True
        return helps


def settle(
    trained: Mapping[str, Array], model: Mapping[str, Array], carried: Carried, *, wire: str, density: float, seed: int
) -> tuple[State, Carried]:
    """The model that is committed, and what is carried on for the down-link.

    Args:
        trained: What the strategy made.
        model: What the round started from.
        carried: With the strategy's new state, and the residual of the round before.
        wire: Of the down-link; "float32" sends whole models, and nothing is lost.
        density: Of a sparse wire.
        seed: Of stochastic rounding.
    """
    if wire == PLAIN_WIRE:
        return dict(trained), replace(carried, difference=b"", residual={})
    kernels = kernels_for(sum(array.size for array in model.values()))
    data, residual = encode_difference(
        difference(trained, model), wire=wire, density=density, seed=seed, residual=carried.residual, kernels=kernels
    )
    committed = apply_difference(model, decode_difference(data, model, wire=wire, kernels=kernels))
    return committed, replace(carried, difference=data, residual=residual)
