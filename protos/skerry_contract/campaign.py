"""What a campaign says to a device and what the device answers, as flat fields of one record.

Flower carries every object of a message in HTTP requests of its own, some ten milliseconds each, so a message holds ONE
record of scalars and byte strings; the parameters are one byte string, in the wire form of
:mod:`skerry_contract.tensors`. A byte string of more than :data:`INLINE_BYTES` travels as an array of a second record,
which Flower cuts into chunks instead of copying it about. Both sides use the codec below; everything that arrives is
bounded before it is used.

>>> reply = EvaluateReply(device_id="a", examples=4, accuracy=0.75, loss=0.5)
>>> EvaluateReply.from_fields(reply.to_fields()) == reply
True
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Self

from skerry_contract.errors import WireError
from skerry_contract.identifiers import check_name, check_sha256_hex
from skerry_contract.limits import PARAMETER_BYTES

#: Name of the record with the fields.
RECORD = "skerry"
#: Name of the record with byte strings above :data:`INLINE_BYTES`: field to Flower array of type :data:`BULK_TYPE`.
BULK_RECORD = "skerry-bulk"
BULK_TYPE = "bytes"
INLINE_BYTES = 1 << 18
#: Flower message types.
TRAIN = "train"
EVALUATE = "evaluate"
CALIBRATE = "query.calibrate"
#: Devices keep activations to themselves that are this many times larger than those of the control plane's own rows:
#: one broken sensor would take the INT8 precision of everybody (:func:`skerry_contract.calibration.within`).
CALIBRATION_FACTOR = 4.0
#: Code of a Flower error reply that says: this device will not, for the reason given; asking again does not help.
REFUSED = 100
#: Begins the reason of an error reply, not a refusal, of a device that lacks the model ``base_sha256``: send all of it.
NO_BASE = "no-base-model"
#: Longest reason of an error reply (characters).
REASON_CHARACTERS = 500

#: Why a device stays out of a campaign; the campaign page counts them.
STAY_OUT = (
    "few-samples",
    "hot",
    "battery",
    "slow-answers",
    "busy",
    "metered",
    "updating",
    "no-release",
    "no-node",
    "other-task",
    "other-release",
    "other-step",
    "expired",
)
#: Why a site's gateway stays out: the campaign needs each device's update; too few devices of the site answered.
NEEDS_EACH = "needs-each"
SITE_QUORUM = "site-quorum"

Scalar = int | float | str | bytes

_COUNT = 1 << 40
_MODELS = ("base", "result")
_UNIT = (0.0, 1.0)


def _number(name: str, value: Scalar, kind: type[int] | type[float], lowest: float, highest: float) -> int | float:
    if isinstance(value, bool) or not isinstance(value, int | float) or (kind is int and not isinstance(value, int)):
        raise WireError(name, expected="an integer" if kind is int else "a number", got=value)
    if not lowest <= value <= highest:  # NaN is between no two numbers
        raise WireError(name, expected=f"{lowest:g} to {highest:g}", got=value)
    return kind(value)


class _Fields:
    """Shared codec of the dataclasses below; each lists its bounds."""

    #: Field name to (lowest, highest) of its numbers.
    BOUNDS: Mapping[str, tuple[float, float]] = {}

    def to_fields(self) -> dict[str, Scalar]:
        """The message as a flat mapping."""
        return {field.name: getattr(self, field.name) for field in fields(self)}  # type: ignore[arg-type]  # subclasses are dataclasses

    @classmethod
    def from_fields(cls, values: Mapping[str, Any]) -> Self:
        """Read and check a message.

        Raises:
            WireError: A field is missing, of another type or out of bounds. Unknown fields are ignored.
        """
        checked: dict[str, Scalar] = {}
        for field in fields(cls):  # type: ignore[arg-type]  # subclasses are dataclasses
            if field.name not in values:
                if field.default is not dataclasses.MISSING:
                    continue
                raise WireError(field.name, expected="a value", got="nothing")
            value = values[field.name]
            if field.name in cls.BOUNDS:
                kind = int if field.type == "int" else float
                checked[field.name] = _number(field.name, value, kind, *cls.BOUNDS[field.name])
            elif field.type == "bytes":
                if not isinstance(value, bytes) or len(value) > PARAMETER_BYTES:
                    raise WireError(field.name, expected=f"at most {PARAMETER_BYTES} bytes", got=type(value).__name__)
                checked[field.name] = value
            elif not isinstance(value, str):
                raise WireError(field.name, expected="text", got=type(value).__name__)
            else:
                checked[field.name] = value
        for name in ("campaign_id", "task", "device_id"):
            if name in checked:
                check_name(str(checked[name]), field=name)
        for name in ("train_step_sha256", "graph_sha256"):
            if name in checked:
                check_sha256_hex(str(checked[name]), field=name)
        if "model" in checked and checked["model"] not in _MODELS:
            raise WireError("model", expected=f"one of {', '.join(_MODELS)}", got=checked["model"])
        return cls(**checked)


@dataclass(frozen=True, kw_only=True)
class TrainInstruction(_Fields):
    """Train this model on your own samples.

    Attributes:
        campaign_id: Campaign that asks.
        round: From 1.
        task: Task of the campaign.
        train_step_sha256: Digest (hexadecimal) of the train_step.onnx that must be used.
        local_epochs: Passes over the device's training samples.
        batch_size: Samples per step; the last step of an epoch takes what is left.
        learning_rate: Of SGD with momentum.
        proximal_mu: Weight of the FedProx term (arXiv 1812.06127); 0 is FedAvg.
        minimum_samples: A device with fewer labelled samples must refuse.
        deadline_ms: How long the round waits, counted from the moment the message is received.
        seed: Of the order of the samples.
        parameters: The model to start from, encoded as ``parameters_wire`` says.
        parameters_wire: "float32": the wire form of :mod:`skerry_contract.tensors`; another name of
            :data:`skerry_contract.update_codec.WIRES`: the difference from the model ``base_sha256``.
        base_sha256: Digest (hexadecimal) of the wire form of the model that ``parameters`` is a difference from; empty
            with "float32". A device without that model refuses, not finally, and gets the whole model.
        wire: How the answer's parameters are encoded, a name of :data:`skerry_contract.update_codec.WIRES`.
        density: Share of the values that a sparse wire keeps, above 0, at most 1.
        clip_norm: L2 bound that the device scales its difference down to; 0 is none.
        noise_std: Standard deviation of the Gaussian noise that the device adds to each value of its clipped
            difference (local differential privacy); 0 is none.
        control: Server control variate of SCAFFOLD (arXiv 1910.06378), wire form; empty without.
        personal: Names of parameters that stay on the device, shell patterns separated by newlines; empty: none.
        counted: Which answers counted (:mod:`skerry_contract.counted`); empty: the server does not say, and a device
            takes its last answer for counted when another round asks it.
    """

    BOUNDS = {
        "round": (1, 1_000_000),
        "local_epochs": (1, 1_000),
        "batch_size": (1, 65_536),
        "learning_rate": (1e-9, 1e3),
        "proximal_mu": (0.0, 1e6),
        "minimum_samples": (0, _COUNT),
        "deadline_ms": (1, 86_400_000),
        "seed": (0, (1 << 63) - 1),
        "density": (1e-6, 1.0),
        "clip_norm": (0.0, 1e12),
        "noise_std": (0.0, 1e12),
    }

    campaign_id: str
    round: int
    task: str
    train_step_sha256: str
    local_epochs: int
    batch_size: int
    learning_rate: float
    proximal_mu: float
    minimum_samples: int
    deadline_ms: int
    seed: int
    parameters: bytes = dataclasses.field(repr=False)
    parameters_wire: str = "float32"
    base_sha256: str = ""
    wire: str = "float32"
    density: float = 0.01
    clip_norm: float = 0.0
    noise_std: float = 0.0
    control: bytes = dataclasses.field(default=b"", repr=False)
    personal: str = ""
    counted: bytes = dataclasses.field(default=b"", repr=False)


@dataclass(frozen=True, kw_only=True)
class TrainReply(_Fields):
    """An update.

    Attributes:
        device_id: Who trained.
        examples: Samples trained on: the weight of the update.
        steps: Gradient steps taken.
        seconds: Time spent.
        loss: Mean training loss over the last epoch.
        validation_examples: Samples of the device's validation split; 0 if it has none.
        validation_accuracy: Of the model as received, before training, on that split.
        validation_loss: Likewise.
        parameters: With ``wire`` "float32" the wire form of the trained model; otherwise the encoded difference from
            the model that training started from.
        wire: See there; the device may fall back to "float32".
        norm: L2 norm of the difference before it was clipped.
        squared_loss: Mean over the samples of the squared loss of the model as received (Oort, arXiv 2010.06081); -1
            when it was not measured.
        control: Change of the device's SCAFFOLD control variate, wire form; empty without.
        personal_accuracy: Accuracy of the device's own model on the validation split; -1 without one.
        members: Of a site's gateway: the devices whose weighted mean this is (:mod:`skerry_contract.site`); its
            ``examples`` and ``steps`` are their sums, ``seconds`` and ``personal_accuracy`` their means, ``loss`` their
            mean by examples. Empty for a device.
    """

    BOUNDS = {
        "examples": (1, _COUNT),
        "steps": (1, _COUNT),
        "seconds": (0.0, 1e9),
        "loss": (-1e30, 1e30),
        "validation_examples": (0, _COUNT),
        "validation_accuracy": _UNIT,
        "validation_loss": (-1e30, 1e30),
        "norm": (0.0, 1e30),
        "squared_loss": (-1.0, 1e30),
        "personal_accuracy": (-1.0, 1.0),
    }

    device_id: str
    examples: int
    steps: int
    seconds: float
    loss: float
    validation_examples: int
    validation_accuracy: float
    validation_loss: float
    parameters: bytes = dataclasses.field(repr=False)
    wire: str = "float32"
    norm: float = 0.0
    squared_loss: float = -1.0
    control: bytes = dataclasses.field(default=b"", repr=False)
    personal_accuracy: float = -1.0
    members: str = ""


@dataclass(frozen=True, kw_only=True)
class EvaluateInstruction(_Fields):
    """Measure this model on your validation split.

    Attributes:
        campaign_id: Campaign that asks.
        round: Round that made the model; 0 is the base release.
        task: Task of the campaign.
        train_step_sha256: Names the network, as for training.
        model: "base" or "result".
        deadline_ms: How long the answer is waited for.
        parameters: Wire form of the model.
        last: 1: the campaign asks for nothing more, and a device forgets what it carried for it.
    """

    BOUNDS = {"round": (0, 1_000_000), "deadline_ms": (1, 86_400_000), "last": (0, 1)}

    campaign_id: str
    round: int
    task: str
    train_step_sha256: str
    model: str
    deadline_ms: int
    parameters: bytes = dataclasses.field(repr=False)
    last: int = 0


@dataclass(frozen=True, kw_only=True)
class EvaluateReply(_Fields):
    """How good the model is on the device.

    Attributes:
        device_id: Who measured.
        examples: Samples of the validation split.
        accuracy: Fraction that was right.
        loss: Mean cross entropy.
        personal_accuracy: Of the same model with the device's own parameters in place; -1 where it has none.
    """

    BOUNDS = {"examples": (1, _COUNT), "accuracy": _UNIT, "loss": (-1e30, 1e30), "personal_accuracy": (-1.0, 1.0)}

    device_id: str
    examples: int
    accuracy: float
    loss: float
    personal_accuracy: float = -1.0


@dataclass(frozen=True, kw_only=True)
class CalibrateInstruction(_Fields):
    """Tell which values the activations of this model take on your labelled samples.

    Attributes:
        campaign_id: Campaign that asks.
        round: Round that made the model.
        task: Task of the campaign.
        train_step_sha256: Names the network, as for training.
        graph_sha256: Digest (hexadecimal) of the calibrate.onnx that must be used.
        minimum_samples: A device with fewer labelled samples must refuse.
        maximum_rows: Most samples that are looked at.
        deadline_ms: How long the answer is waited for.
        parameters: Wire form of the model.
        reference: What the control plane measured on its own rows, wire form of
            :class:`skerry_contract.calibration.TensorRanges`; see :data:`CALIBRATION_FACTOR`.
    """

    BOUNDS = {
        "round": (0, 1_000_000),
        "minimum_samples": (1, _COUNT),
        "maximum_rows": (1, 1 << 20),
        "deadline_ms": (1, 86_400_000),
    }

    campaign_id: str
    round: int
    task: str
    train_step_sha256: str
    graph_sha256: str
    minimum_samples: int
    maximum_rows: int
    deadline_ms: int
    parameters: bytes = dataclasses.field(repr=False)
    reference: bytes = dataclasses.field(repr=False)


@dataclass(frozen=True, kw_only=True)
class CalibrateReply(_Fields):
    """The ranges of activations.

    Attributes:
        device_id: Who measured; a gateway tells the merged ranges of its site.
        ranges: Wire form of :class:`skerry_contract.calibration.TensorRanges`.
    """

    device_id: str
    ranges: bytes = dataclasses.field(repr=False)
