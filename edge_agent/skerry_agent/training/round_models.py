"""Models that the device has already, so that the next one may come as a difference.

A model is known by the SHA-256 of its wire form (:mod:`skerry_contract.tensors`), which both sides compute. The last
one stays in memory. They go to disk only in a campaign that sends differences: there a restart would cost a whole
model, elsewhere writing would be wasted wear. At most ``count`` models and ``bytes_limit`` bytes, the oldest go first.

Invariants: what is found under a digest has that digest; a model that cannot be written is only not kept.
"""

from __future__ import annotations

import hashlib
import logging
import re
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from skerry_agent.errors import AgentError
from skerry_agent.files import DISK, Disk
from skerry_agent.training.kept_files import KeptFiles
from skerry_agent.training.trainer import State
from skerry_contract.campaign import NO_BASE
from skerry_contract.errors import WireError
from skerry_contract.limits import PARAMETER_BYTES
from skerry_contract.tensors import decode_bundle, encode_bundle
from skerry_contract.update_codec import apply_difference, decode_difference

logger = logging.getLogger(__name__)

#: Models on disk, and their bytes.
COUNT = 3
BYTES = 512 << 20
_DIGEST = re.compile(r"[0-9a-f]{64}")


class MissingBaseError(AgentError):
    """The device cannot make a model of a difference: it lacks the other one, or the difference is broken."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"{NO_BASE}: {reason}")


@dataclass(frozen=True)
class ReceivedModel:
    """A model that an instruction carried.

    Attributes:
        state: Its parameters and buffers, read-only.
        data: Their wire form.
    """

    state: State
    data: bytes = field(repr=False)

    @cached_property
    def sha256(self) -> str:
        """Digest (hexadecimal) of the wire form."""
        return hashlib.sha256(self.data).hexdigest()


class RoundModels:
    """Finds the model that an instruction carries; used by one thread."""

    def __init__(
        self, folder: Path | None, *, count: int = COUNT, bytes_limit: int = BYTES, reserve: int = 0, disk: Disk = DISK
    ) -> None:
        self._files = KeptFiles(folder, limit=min(bytes_limit, PARAMETER_BYTES), reserve=reserve, disk=disk)
        self._count = count
        self._bytes_limit = bytes_limit
        #: The last models, the newest last. Their digests are not computed before a difference asks for one.
        self._recent: list[ReceivedModel] = []
        self._durable = folder is not None
        self._differences = bool(self._files.names())

    def receive(self, parameters: bytes, wire: str, base_sha256: str) -> ReceivedModel:
        """The model of an instruction.

        Args:
            parameters: As in :class:`~skerry_contract.campaign.TrainInstruction`.
            wire: Its ``parameters_wire``.
            base_sha256: See there.

        Raises:
            MissingBaseError: It is a difference that this device can make nothing of; the whole model would do.
            WireError: A whole model that is broken.
        """
        if wire == "float32":
            return self._remember(ReceivedModel(decode_bundle(parameters), parameters))
        self._differences = True
        base = self._find(base_sha256)
        if base is None:
            raise MissingBaseError(f"this device does not have the model {base_sha256[:12]}")
        try:
            state = apply_difference(base.state, decode_difference(parameters, base.state, wire=wire))
        except (WireError, ValueError) as error:
            raise MissingBaseError(f"the difference in wire {wire[:40]} cannot be applied: {error}") from error
        self._keep(base)
        return self._remember(ReceivedModel(state, encode_bundle(state)))

    def forget(self) -> None:
        """Remove every model: no campaign needs one now."""
        self._recent.clear()
        self._differences = False
        for name in self._files.names():
            self._files.remove(name)

    def _find(self, digest: str) -> ReceivedModel | None:
        for model in self._recent:
            if model.sha256 == digest:
                return model
        data = self._files.read(digest) if _DIGEST.fullmatch(digest) else None
        if data is None:
            return None
        try:
            model = ReceivedModel(decode_bundle(data), data)
        except WireError:
            self._files.remove(digest)
            return None
        if model.sha256 != digest:
            self._files.remove(digest)
            return None
        return model

    def _remember(self, model: ReceivedModel) -> ReceivedModel:
        if self._differences:
            self._keep(model)
        # Without a disk (simulated devices, many in a process) nothing is held before a difference was asked for.
        count = 1 if self._durable else self._count * self._differences
        self._recent = [*self._recent, model][-count:] if count else []
        return model

    def _keep(self, model: ReceivedModel) -> None:
        """Put a model on disk, if it is not there."""
        if not self._durable:
            return
        names = self._files.names()
        if model.sha256 in names:
            return
        room = self._bytes_limit - len(model.data)
        while names and (len(names) >= self._count or sum(self._files.size(name) for name in names) > room):
            self._files.remove(names.pop(0))
        try:
            self._files.write(model.sha256, model.data)
        except OSError as error:
            logger.warning("model %s is not kept: %s", model.sha256[:12], error)
