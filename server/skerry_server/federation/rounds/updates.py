"""Is what a device sent an update of this model? Pure: no I/O.

The device is not trusted: names, shapes, types and finiteness are those of the model, the encoding is the one that was
asked for (or "float32", which every device can), and the distance from the model is counted here, not believed.
"""

from __future__ import annotations

import fnmatch
import json
import math
import statistics
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np

from skerry_contract.campaign import EvaluateReply, TrainReply
from skerry_contract.errors import WireError
from skerry_contract.site import split_members
from skerry_contract.tensors import Array, decode_bundle
from skerry_contract.update_codec import apply_difference, decode_difference, difference
from skerry_server.federation.rounds.fast_codec import kernels_for

State = dict[str, Array]

#: The encoding that needs nothing from the device.
PLAIN_WIRE = "float32"
#: Metric of a gateway's update: how many devices it is the mean of.
SITE_DEVICES = "site_devices"
#: Largest header of a packed payload (bytes).
_HEADER_BYTES = 256
#: Values of one step of a distance: they stay in the first cache, and BLAS starts no threads for so few.
_CHUNK = 1 << 13
#: Fewer norms than this have no median worth speaking of.
_NORMS = 3


class UpdateRejectedError(Exception):
    """A reply that must not be counted.

    Attributes:
        reason: What is wrong with it.
    """

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(reason)


@dataclass(frozen=True)
class Payload:
    """The bytes of an update, as they came and as they are journalled.

    Attributes:
        wire: How ``parameters`` are encoded.
        parameters: Absolute parameters ("float32") or the encoded difference from the model of the round.
        control: Change of the device's control variate, wire form; empty without.
    """

    wire: str
    parameters: bytes = field(repr=False)
    control: bytes = field(default=b"", repr=False)

    def __len__(self) -> int:
        """What it weighs on the wire (bytes)."""
        return len(self.parameters) + len(self.control)

    def pack(self) -> bytes:
        """One byte string: a line of JSON with wire and length, the parameters, the control variate."""
        header = json.dumps({"wire": self.wire, "parameters": len(self.parameters)}).encode()
        return b"".join((header, b"\n", self.parameters, self.control))

    @classmethod
    def unpack(cls, data: bytes) -> Payload:
        """Read what :meth:`pack` wrote; raises ValueError."""
        end = data.find(b"\n", 0, _HEADER_BYTES)
        if end < 0:
            raise ValueError("no header")
        header = json.loads(data[:end])
        cut = end + 1 + int(header["parameters"])
        return cls(str(header["wire"]), data[end + 1 : cut], data[cut:])


@dataclass(frozen=True)
class Expectation:
    """What an update is checked against.

    Attributes:
        model: State that the device started from.
        wires: Encodings that are accepted.
        personal: Shell patterns of parameters that stay on the device.
        control: Names and shapes of the control variate; None: none is expected.
    """

    model: Mapping[str, Array]
    wires: Collection[str] = (PLAIN_WIRE,)
    personal: tuple[str, ...] = ()
    control: Mapping[str, Array] | None = None


@dataclass(frozen=True)
class Update:
    """A checked update.

    Attributes:
        device_id: Who trained.
        examples: Its weight.
        state: Absolute parameters in the order of the model, read-only.
        payload: As it came.
        metrics: loss, steps, seconds, norm (L2 of the difference, counted here) and the validation figures of the model
            that the round started from.
        control: Change of the device's control variate; None without.
        members: Devices that it is the sum or, from a gateway, the mean of; empty: it is of one device.
    """

    device_id: str
    examples: int
    state: State
    payload: Payload
    metrics: dict[str, float]
    control: State | None = None
    members: tuple[str, ...] = ()


def read_evaluation(fields: Mapping[str, object], *, device_id: str) -> EvaluateReply:
    """Check a reply to a question of evaluation.

    Args:
        fields: As received.
        device_id: Who was asked.

    Raises:
        UpdateRejectedError: The fields are broken, or another device answers.
    """
    try:
        reply = EvaluateReply.from_fields(fields)
    except WireError as error:
        raise UpdateRejectedError(str(error)) from error
    if reply.device_id != device_id:
        raise UpdateRejectedError(f"device {reply.device_id} answered for {device_id}")
    return reply


def read_update(
    fields: Mapping[str, object],
    *,
    device_id: str,
    model: Mapping[str, Array],
    wires: Collection[str] = (PLAIN_WIRE,),
    personal: tuple[str, ...] = (),
    control: Mapping[str, Array] | None = None,
    site: Collection[str] = (),
) -> Update:
    """Check a training reply.

    Args:
        fields: From the wire.
        device_id: Who was asked.
        model: State that the device started from.
        wires: Encodings that are accepted.
        personal: Shell patterns of parameters that the device may leave out.
        control: The control variate that it was sent; None: a change of one is ignored.
        site: Devices that a gateway sums for; empty: it is a device, and no members are believed.

    Raises:
        UpdateRejectedError: Anything does not fit.
    """
    try:
        reply = TrainReply.from_fields(fields)
    except WireError as error:
        raise UpdateRejectedError(str(error)) from error
    if reply.device_id != device_id:
        raise UpdateRejectedError(f"device {reply.device_id} answered for {device_id}")
    if reply.wire not in wires:
        raise UpdateRejectedError(f"wire: expected one of {', '.join(wires)}, got {reply.wire[:40]}")
    payload = Payload(reply.wire, reply.parameters, reply.control if control is not None else b"")
    expectation = Expectation(model, wires, personal, control)
    state, change = open_payload(payload, expectation)
    metrics = {
        "loss": reply.loss,
        "steps": float(reply.steps),
        "seconds": reply.seconds,
        "validation_examples": float(reply.validation_examples),
        "validation_accuracy": reply.validation_accuracy,
        "validation_loss": reply.validation_loss,
        "norm": distance(state, model),
        "reported_norm": reply.norm,
        "bytes_up": float(len(payload)),
    }
    if reply.squared_loss >= 0:
        metrics["squared_loss"] = reply.squared_loss
    if reply.personal_accuracy >= 0:
        metrics["personal_accuracy"] = reply.personal_accuracy
    members = _check_members(reply.members, site) if site else ()
    if members:
        metrics[SITE_DEVICES] = metrics["devices"] = float(len(members))
    return Update(device_id, reply.examples, state, payload, metrics, change, members)


def _check_members(text: str, site: Collection[str]) -> tuple[str, ...]:
    """The devices whose mean a gateway says it sends: some of those that take part through it."""
    try:
        members = split_members(text)
    except WireError as error:
        raise UpdateRejectedError(str(error)) from error
    strange = sorted(set(members) - set(site))
    if not members or strange:
        raise UpdateRejectedError(
            f"members: expected some of the site's {len(site)} devices, got {strange[:5] or 'none'}"
        )
    return members


def open_payload(payload: Payload, expected: Expectation) -> tuple[State, State | None]:
    """Decode a payload: absolute parameters, and the change of the control variate where one is expected.

    Raises:
        UpdateRejectedError: Anything does not fit.
    """
    try:
        if payload.wire == PLAIN_WIRE:
            state = check_state(decode_bundle(payload.parameters), expected.model, personal=expected.personal)
        else:
            state = _from_difference(payload, expected)
        if expected.control is None:
            return state, None
        return state, _check_control(decode_bundle(payload.control), expected.control)
    except WireError as error:
        raise UpdateRejectedError(str(error)) from error


def _from_difference(payload: Payload, expected: Expectation) -> State:
    """The model plus a difference of the parameters that are everybody's."""
    shared = {name: array for name, array in expected.model.items() if not matches(name, expected.personal)}
    kernels = kernels_for(sum(array.size for array in shared.values()))
    moved = apply_difference(shared, decode_difference(payload.parameters, shared, wire=payload.wire, kernels=kernels))
    return check_state(moved, expected.model, personal=expected.personal)


def _check_control(control: Mapping[str, Array], expected: Mapping[str, Array]) -> State:
    try:
        return check_state(control, expected)
    except UpdateRejectedError as error:
        raise UpdateRejectedError(f"control: {error.reason}") from error


def matches(name: str, patterns: Iterable[str]) -> bool:
    """Whether a parameter's name matches one of the shell patterns."""
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def check_state(state: Mapping[str, Array], model: Mapping[str, Array], *, personal: tuple[str, ...] = ()) -> State:
    """``state`` in the order of ``model``; those that match ``personal`` are always the model's.

    Raises:
        UpdateRejectedError: It is not a state of the same network.
    """
    missing = sorted(name for name in model.keys() - state.keys() if not matches(name, personal))
    if missing or state.keys() - model.keys():
        differing = sorted([*missing, *(state.keys() - model.keys())])[:5]
        raise UpdateRejectedError(f"parameters: expected the {len(model)} tensors of the model, differing: {differing}")
    checked: State = {}
    for name, expected in model.items():
        array = state.get(name, expected)
        if array.shape != expected.shape or array.dtype != expected.dtype:
            raise UpdateRejectedError(
                f"parameters[{name}]: expected {expected.dtype} {expected.shape}, got {array.dtype} {array.shape}"
            )
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise UpdateRejectedError(f"parameters[{name}]: not finite")
        checked[name] = expected if personal and matches(name, personal) else array
    return checked


def distance(state: Mapping[str, Array], model: Mapping[str, Array]) -> float:
    """L2 norm of the difference of the floating-point parameters, summed in float64; memory of one chunk."""
    total = 0.0
    steps = np.empty(_CHUNK, dtype=np.float64)
    for name, expected in model.items():
        array = state[name]
        if array is expected or expected.dtype.kind != "f":
            continue
        ours, theirs = array.reshape(-1), expected.reshape(-1)
        for start in range(0, ours.size, _CHUNK):
            part = slice(start, start + _CHUNK)
            step = steps[: len(ours[part])]
            np.subtract(ours[part], theirs[part], out=step, dtype=np.float64)
            total += float(np.dot(step, step))
    return math.sqrt(total)


def rebase(state: Mapping[str, Array], *, old: Mapping[str, Array], new: Mapping[str, Array]) -> State:
    """``new + (state - old)`` for floating-point parameters; others are the state's own."""
    return dict(state) if old is new else apply_difference(new, difference(state, old))


class NormBound:
    """Rejects updates that are much farther from the model than others (a defence against scaled ones).

    The measure is the median of the norms that are known: those of the last committed round and those that counted in
    this one. With fewer than three nothing is rejected: the first round has only the robust strategies.
    """

    def __init__(self, factor: float, earlier: Iterable[float] = ()) -> None:
        """``factor``: how many medians are accepted; 0 accepts everything."""
        self._factor = factor
        self._norms = list(earlier)

    def check(self, norm: float) -> None:
        """Raise UpdateRejectedError for a norm above the bound; otherwise it counts for the next median."""
        if self._factor and len(self._norms) >= _NORMS:
            median = statistics.median(self._norms)
            if norm > self._factor * median:
                raise UpdateRejectedError(
                    f"norm {norm:.4g} is above {self._factor:g} times the median {median:.4g} "
                    f"of {len(self._norms)} updates"
                )
        self.known(norm)

    def known(self, norm: float) -> None:
        """Count a norm that was accepted before."""
        self._norms.append(norm)
