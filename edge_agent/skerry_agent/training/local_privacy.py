"""Differential privacy on the device: it clips and noises its own update, and says nothing else about its data. Pure.

With local noise the guarantee holds against everybody, the control plane included: the update of this device is about
as likely as that of any other update within the clipping norm, up to (epsilon, delta). Two such updates lie at most two
clipping norms apart, so the campaign sends a standard deviation of its noise multiplier times TWICE the norm.

With distributed noise, which is a share of what the sum of all devices needs, the update is weakly noised by itself and
leaves the device masked only (:mod:`skerry_agent.training.secure_aggregation`).

* The vector is every floating tensor, BatchNorm's statistics included, clipped as one; tensors of other types keep the
  values that were received (:mod:`skerry_contract.clipping`). Parameters that stay on the device are not among them.
* Noise is added as integers on a grid, from a cryptographic stream (:mod:`skerry_contract.gaussian`), never as
  floating-point numbers, whose low bits would tell what was below.
* One answer per round: asked again, the device gives the same answer (:mod:`skerry_agent.training.campaign_journal`);
  two noised versions of one update would cost twice.
* Everything else that a training reply says is computed from the data, too; :func:`withheld` takes it away.

What a device cannot see is whether the campaign asks for enough noise: that is the operator's word, and signed by no
one. A device whose owner does not believe it must not take part.
"""

from __future__ import annotations

import hashlib
import math
import secrets
from collections.abc import Mapping
from dataclasses import replace
from typing import Protocol

from skerry_agent.errors import InputError
from skerry_agent.training.trainer import Array, State
from skerry_contract.campaign import TrainReply
from skerry_contract.clipping import Grid, clip_to_grid, from_grid
from skerry_contract.gaussian import KEY_BYTES, GaussianStream


class LocalNoise(Protocol):
    """What clips an update and adds noise to it: :func:`noised`."""

    def __call__(
        self, state: Mapping[str, Array], model: Mapping[str, Array], *, clip_norm: float, noise_std: float
    ) -> State:
        """See :func:`noised`."""
        ...


def noised(
    state: Mapping[str, Array],
    model: Mapping[str, Array],
    *,
    clip_norm: float,
    noise_std: float,
    key: bytes | None = None,
) -> State:
    """The clipped and noised update, as a state.

    Args:
        state: After training; not changed.
        model: Before it, the same tensors.
        clip_norm: L2 bound of the difference, above 0.
        noise_std: Standard deviation of the noise on each value, above 0.
        key: Secret that the noise is derived from; by default a fresh one, which is right but for tests.

    Raises:
        InputError: No clipping norm or no noise: without either the other is no privacy; or noise beyond what the
            grid can carry.
        ValueError: The update is not finite.
    """
    if not 0.0 < clip_norm < math.inf:
        raise InputError("clip_norm", expected="above 0 with noise", got=clip_norm)
    if not 0.0 < noise_std < math.inf:
        raise InputError("noise_std", expected="above 0", got=noise_std)
    grid = Grid.of(model, clip_norm)
    values, _ = clip_to_grid(state, model, grid)
    digest = hashlib.sha256()
    for name, integers in values.items():
        digest.update(name.encode() + b"\0" + integers.astype("<i8", copy=False).data)
    stream = GaussianStream(secrets.token_bytes(KEY_BYTES) if key is None else key, b"local/" + digest.digest())
    for integers in values.values():
        try:
            stream.add_integers(integers, noise_std / grid.step)
        except ValueError as error:
            raise InputError("noise_std", expected=f"at most {2.0**52 * grid.step:g}", got=noise_std) from error
    return from_grid(values, model, grid)


def withheld(reply: TrainReply) -> TrainReply:
    """The reply with nothing in it but who answers and the noised update.

    Counts become 1 (the wire knows no 0), times, losses and accuracies 0 or "not measured"; a control variate and
    figures of the validation split go as well.
    """
    return replace(
        reply,
        examples=1,
        steps=1,
        seconds=0.0,
        loss=0.0,
        validation_examples=0,
        validation_accuracy=0.0,
        validation_loss=0.0,
        norm=0.0,
        squared_loss=-1.0,
        control=b"",
        personal_accuracy=-1.0,
    )
