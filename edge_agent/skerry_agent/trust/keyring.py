"""Ed25519 keys that sign instructions and releases: the ones trusted now, and past ones for slots that lie here.

``keys.json`` is written by the control process after every refresh that found other keys; all processes of the agent
read it when it changes. A device that never refreshed, or whose file is damaged, goes by the keys of its enrolment, so
that serving never waits for this.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from skerry_agent.config import AgentConfig, AgentLayout
from skerry_agent.errors import DeviceError
from skerry_agent.files import DISK, Disk
from skerry_agent.trust.places import TrustPlaces
from skerry_contract.signing import Ed25519Verifier, key_id
from skerry_contract.v1.common_pb2 import SignedEnvelope

log = logging.getLogger(__name__)
#: Most keys that sign at one time, and most past ones that are remembered, newest first.
CURRENT_KEYS = 16
PAST_KEYS = 64
_FILE_BYTES = 1 << 16


@dataclass(frozen=True)
class InstructionKeys:
    """Raw public keys in hexadecimal.

    Attributes:
        current: May sign desired states and releases now; at least one.
        past: Could once; their releases may stay where they are.
    """

    current: tuple[str, ...]
    past: tuple[str, ...] = ()

    def replaced(self, current: Sequence[str]) -> InstructionKeys:
        """The keys after ``current`` took over."""
        past = [key for key in dict.fromkeys((*self.current, *self.past)) if key not in current]
        return InstructionKeys(tuple(current), tuple(past[:PAST_KEYS]))

    def to_json(self) -> bytes:
        """The document that :meth:`from_json` reads; it carries its own digest."""
        body = json.dumps(asdict(self), sort_keys=True)
        return json.dumps({"keys": body, "sha256": hashlib.sha256(body.encode()).hexdigest()}).encode()

    @classmethod
    def from_json(cls, data: bytes) -> InstructionKeys:
        """Read a document; raises ValueError if it is not what :meth:`to_json` wrote."""
        try:
            document = json.loads(data)
            body = document["keys"]
            if hashlib.sha256(body.encode()).hexdigest() != document["sha256"]:
                raise ValueError("its digest is another one")
            content = json.loads(body)
            return cls(tuple(content["current"]), tuple(content["past"]))
        except (KeyError, TypeError, AttributeError, RecursionError) as error:
            raise ValueError(f"{type(error).__name__}: {error}") from error


class Keyring:
    """An EnvelopeVerifier that follows ``keys.json``; may be used by any thread."""

    def __init__(self, path: Path, enrolled: Sequence[str], *, past: bool) -> None:
        """Read the keys.

        Args:
            path: ``keys.json``.
            enrolled: Keys of the enrolment, hexadecimal.
            past: Whether keys of the past are good enough: for slots, not for instructions.

        Raises:
            DeviceError: A key of the enrolment is not 32 bytes in hexadecimal.
        """
        self._path = path
        self._enrolled = InstructionKeys(tuple(enrolled))
        self._past = past
        try:
            self._verifier = Ed25519Verifier([bytes.fromhex(key) for key in enrolled])
        except ValueError as error:
            raise DeviceError(f"release_keys: {error}", remedy="enrol the device again") from error
        self._known = self._ids(self._enrolled)
        self._state: tuple[int, ...] = ()
        self._follow()

    @property
    def state(self) -> tuple[int, ...]:
        """Another value whenever the keys have changed."""
        self._follow()
        return self._state

    def verify(self, kind: str, envelope: SignedEnvelope) -> bytes:
        """See :class:`~skerry_contract.signing.EnvelopeVerifier`."""
        self._follow()
        return self._verifier.verify(kind, envelope)

    def knows_signer(self, envelope: SignedEnvelope) -> bool:
        """Whether a signature names a trusted key; whether it holds is another matter."""
        self._follow()
        return any(signature.key_id in self._known for signature in envelope.signatures)

    def _follow(self) -> None:
        try:
            status = self._path.stat()
            state: tuple[int, ...] = (status.st_ino, status.st_mtime_ns, status.st_size)
        except OSError:
            state = ()
        if state == self._state:
            return
        keys = read_keys(self._path) or self._enrolled
        trusted = (*keys.current, *(keys.past if self._past else ()))
        try:
            self._verifier = Ed25519Verifier([bytes.fromhex(key) for key in trusted])
        except ValueError as error:
            log.error("%s: %s: the keys from before stay", self._path, error)
        else:
            self._known = self._ids(keys)
        self._state = state

    def _ids(self, keys: InstructionKeys) -> frozenset[str]:
        trusted = (*keys.current, *(keys.past if self._past else ()))
        return frozenset(key_id(bytes.fromhex(key)) for key in trusted)


def read_keys(path: Path) -> InstructionKeys | None:
    """The keys of a file; None if there is none that can be read."""
    try:
        with path.open("rb") as stream:
            return InstructionKeys.from_json(stream.read(_FILE_BYTES))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        log.error("%s: %s: the keys of the enrolment are used", path, error)
        return None


def keep_keys(places: TrustPlaces, current: Sequence[str], enrolled: Sequence[str], disk: Disk = DISK) -> bool:
    """Write down the keys that verified metadata name.

    Args:
        places: Where.
        current: The keys, hexadecimal.
        enrolled: Keys of the enrolment: they are past when ``current`` does not have them.
        disk: File system.

    Returns:
        Whether they are other ones than before.

    Raises:
        OSError: They could not be written; the old ones stand.
    """
    before = read_keys(places.keys)
    after = (before or InstructionKeys(tuple(enrolled))).replaced(current)
    if after == before:
        return False
    disk.make_folder(places.folder)
    disk.write_atomically(places.keys, after.to_json())
    return True


def instruction_keys(layout: AgentLayout, config: AgentConfig) -> Keyring:
    """Keys that desired states and the releases in them must be signed with; raises DeviceError."""
    return Keyring(TrustPlaces(layout.trust).keys, config.release_keys, past=False)


def slot_keys(layout: AgentLayout, config: AgentConfig) -> Keyring:
    """Keys that releases on this disk may be signed with; raises DeviceError."""
    return Keyring(TrustPlaces(layout.trust).keys, config.release_keys, past=True)
