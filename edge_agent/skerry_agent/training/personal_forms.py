"""Personal forms: a release with this device's own parameters, and the proof that they are better here.

One kept file per release, named by its bundle's digest, holds both, so that they cannot come apart. The training
process writes it; the serving process reads it and decides for itself (:func:`check_form`). A release that comes back
finds its form as it left it; the oldest forms go.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from skerry_agent.errors import AgentError
from skerry_agent.files import DISK, Disk
from skerry_agent.training.kept_files import KeptFiles, read_kept
from skerry_contract.errors import WireError
from skerry_contract.limits import PARAMETER_BYTES
from skerry_contract.tensors import Array, decode_bundle, encode_bundle
from skerry_contract.v1.personal_pb2 import PersonalForm, PersonalProof
from skerry_contract.v1.release_pb2 import ReleaseManifest
from skerry_contract.wire import parse_message

#: Forms that are kept: of the releases in both slots, and of one that was there before.
FORMS = 3
#: Fewest validation samples that prove anything.
PROOF_EXAMPLES = 10


class FormRefusedError(AgentError):
    """A personal form is not used; the release answers as it was signed.

    Attributes:
        reason: Why.
    """

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(reason)


@dataclass(frozen=True)
class CheckedForm:
    """A form that belongs to a release and is proven.

    Attributes:
        own: The device's parameters.
        proof: How good they are.
    """

    own: dict[str, Array]
    proof: PersonalProof


def is_gain(proof: PersonalProof) -> bool:
    """Whether the own parameters are right at least as often, and more surely where they are right as often."""
    ahead = proof.personal_accuracy - proof.global_accuracy
    return ahead > 0 or (ahead == 0 and proof.personal_loss < proof.global_loss)


def check_proof(proof: PersonalProof) -> None:
    """Accept a proof that says that the own parameters are better.

    Raises:
        FormRefusedError: Too few samples, figures that cannot be, or not better.
    """
    if proof.examples < PROOF_EXAMPLES:
        raise FormRefusedError(f"{proof.examples} validation samples are fewer than {PROOF_EXAMPLES}")
    accuracies, losses = (proof.global_accuracy, proof.personal_accuracy), (proof.global_loss, proof.personal_loss)
    if not all(0 <= value <= 1 for value in accuracies) or not all(math.isfinite(value) for value in losses):
        raise FormRefusedError("the proof has figures that cannot be")
    if not is_gain(proof):
        raise FormRefusedError(
            f"not better than the release: {proof.personal_accuracy:.3f} right against {proof.global_accuracy:.3f}, "
            f"loss {proof.personal_loss:.3f} against {proof.global_loss:.3f}"
        )


def check_form(form: PersonalForm, manifest: ReleaseManifest, state: Mapping[str, Array]) -> CheckedForm:
    """Accept a form for a release.

    Args:
        form: As read.
        manifest: The verified manifest of the release.
        state: The release's own parameters.

    Raises:
        FormRefusedError: Of another release, not proven, or parameters that do not fit or are not finite.
    """
    bound = (form.task, form.bundle_sha256, form.train_step_sha256)
    if bound != (manifest.task, manifest.bundle_sha256, manifest.train_step_sha256):
        raise FormRefusedError(f"it belongs to release {form.release_id[:80]} of task {form.task[:80]}")
    check_proof(form.proof)
    try:
        own = decode_bundle(form.parameters)
    except WireError as error:
        raise FormRefusedError(f"its parameters are broken: {error}") from error
    if not own:
        raise FormRefusedError("it has no parameters")
    for name, array in own.items():
        like = state.get(name)
        if like is None or like.shape != array.shape or like.dtype != array.dtype:
            got = f"{array.dtype} {list(array.shape)}"
            expected = "no such parameter" if like is None else f"{like.dtype} {list(like.shape)}"
            raise FormRefusedError(f"{name[:80]} does not fit the release: {got}, there {expected}")
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise FormRefusedError(f"{name[:80]} is not finite")
    return CheckedForm(own, form.proof)


def form_path(folder: Path, bundle_sha256: bytes) -> Path:
    """File of the form of a release."""
    return folder / f"{bundle_sha256.hex()}.kept"


def read_form(folder: Path, bundle_sha256: bytes) -> PersonalForm | None:
    """The form of a release as the training process left it, None without one; changes nothing.

    Raises:
        FormRefusedError: It cannot be read.
    """
    try:
        content = read_kept(form_path(folder, bundle_sha256), limit=PARAMETER_BYTES)
        return parse_message(PersonalForm, content, limit=PARAMETER_BYTES)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, WireError) as error:
        raise FormRefusedError(f"its file cannot be used: {error}") from error


class PersonalForms:
    """Writes forms; used by one thread of the training process."""

    def __init__(self, folder: Path, *, reserve: int = 0, disk: Disk = DISK) -> None:
        """``folder`` has one file a release; ``reserve``: free bytes that writing leaves alone."""
        self._files = KeptFiles(folder, limit=PARAMETER_BYTES, reserve=reserve, disk=disk)

    def read(self, bundle_sha256: bytes) -> PersonalForm | None:
        """The form of a release; one that cannot be read is removed."""
        return self._parse(bundle_sha256.hex())

    def newest(self, task: str) -> PersonalForm | None:
        """The form of a task that was written last."""
        forms = (self._parse(name) for name in reversed(self._files.names()))
        return next((form for form in forms if form is not None and form.task == task), None)

    def keep(self, manifest: ReleaseManifest, own: Mapping[str, Array], proof: PersonalProof) -> None:
        """Write the form of a release; the oldest make room.

        Raises:
            OSError: It cannot be written: what was there before still is.
        """
        form = PersonalForm(
            task=manifest.task,
            release_id=manifest.release_id,
            bundle_sha256=manifest.bundle_sha256,
            train_step_sha256=manifest.train_step_sha256,
            parameters=encode_bundle(own),
            proof=proof,
        )
        name = manifest.bundle_sha256.hex()
        self._files.write(name, form.SerializeToString())
        others = [known for known in self._files.names() if known != name]
        for known in others[: max(0, len(others) - FORMS + 1)]:
            self._files.remove(known)

    def remove(self, bundle_sha256: bytes) -> None:
        """The release answers as it was signed."""
        self._files.remove(bundle_sha256.hex())

    def _parse(self, name: str) -> PersonalForm | None:
        content = self._files.read(name)
        if content is None:
            return None
        try:
            return parse_message(PersonalForm, content, limit=PARAMETER_BYTES)
        except WireError:
            self._files.remove(name)
            return None
