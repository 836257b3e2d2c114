"""Which desired state a device accepts. Pure: bytes in, a verified instruction or a refusal out.

Order of the checks: size and form, signature, device, number, release signature, manifest, expiry. Nothing is
believed before its signature holds. A refusal changes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

from skerry_contract.errors import ContractError
from skerry_contract.manifest import parse_manifest
from skerry_contract.signing import DESIRED, RELEASE, EnvelopeVerifier
from skerry_contract.v1.common_pb2 import SignedEnvelope
from skerry_contract.v1.device_pb2 import DesiredState
from skerry_contract.v1.release_pb2 import ReleaseManifest
from skerry_contract.wire import parse_message

#: A clock that is further behind the newest signed moment than this is not believed (ms).
CLOCK_SLACK_MS = 86_400_000


class RefusedError(Exception):
    """A desired state that is not followed.

    Attributes:
        reason: Why, for the operator.
    """

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(reason)


class StaleError(RefusedError):
    """The desired state that is followed already came again: normal after a reconnect."""


@dataclass(frozen=True)
class Instruction:
    """A desired state whose signatures hold.

    Attributes:
        envelope: As it came; what the journal keeps.
        state: The desired state.
        manifest: Of the release it names; None if it names none.
    """

    envelope: bytes
    state: DesiredState
    manifest: ReleaseManifest | None

    @property
    def release_id(self) -> str:
        """Release that is wanted; empty if none is named."""
        return "" if self.manifest is None else self.manifest.release_id

    @property
    def digest(self) -> str:
        """Digest of its bundle (hexadecimal); empty if none is named."""
        return "" if self.manifest is None else self.manifest.bundle_sha256.hex()

    def names_same(self, other: Instruction) -> bool:
        """Whether both name the same release: not only the same files, for a slot holds the manifest too."""
        return (self.release_id, self.digest) == (other.release_id, other.digest)


def open_instruction(payload: bytes, verifier: EnvelopeVerifier, device_id: str) -> Instruction:
    """Verify the two envelopes and parse what they hold.

    Raises:
        RefusedError: Malformed, not signed by a trusted key, or for another device.
    """
    try:
        envelope = parse_message(SignedEnvelope, payload)
        state = parse_message(DesiredState, verifier.verify(DESIRED, envelope))
        if state.device_id != device_id:
            raise RefusedError(f"the desired state is for device {state.device_id[:63]!r}, this is {device_id!r}")
        manifest = parse_manifest(verifier.verify(RELEASE, state.release)) if state.HasField("release") else None
    except ContractError as error:
        raise RefusedError(str(error)) from error
    return Instruction(payload, state, manifest)


def trusted_now_ms(now_ms: int, signed_ms: int) -> int:
    """The clock, unless it is far behind what a signature vouched for: then that moment."""
    return now_ms if now_ms >= signed_ms - CLOCK_SLACK_MS else signed_ms


def accept(
    payload: bytes, verifier: EnvelopeVerifier, *, device_id: str, sequence: int, now_ms: int, signed_ms: int
) -> Instruction:
    """Decide on a desired state from the wire.

    Args:
        payload: Serialized SignedEnvelope, not trusted.
        verifier: Trusted release keys.
        device_id: This device.
        sequence: Number of the newest accepted one.
        now_ms: This device's clock, which may be wrong.
        signed_ms: Latest signed moment seen before.

    Raises:
        StaleError: It is the accepted one again.
        RefusedError: Anything else that is not right.
    """
    instruction = open_instruction(payload, verifier, device_id)
    state = instruction.state
    if state.sequence == sequence:
        raise StaleError(f"desired state {sequence} is known")
    if state.sequence < sequence:
        raise RefusedError(f"desired state {state.sequence} is older than {sequence}, which was accepted before")
    manifest = instruction.manifest
    if manifest is not None and manifest.expires_unix_ms:
        now_ms = trusted_now_ms(now_ms, max(signed_ms, state.issued_unix_ms))
        if now_ms >= manifest.expires_unix_ms:
            raise RefusedError(
                f"release {manifest.release_id} may not be installed any more: it expired"
                f" {(now_ms - manifest.expires_unix_ms) / 1000:.0f} s ago"
            )
    return instruction
