"""The files of a device's identity, whole after a power cut at any moment.

``certificate.pem`` decides: the key is whichever of ``key.pem`` and ``next-key.pem`` it certifies. A renewal goes

1. ``next-key.pem`` is written;
2. ``certificate.pem`` is replaced by the certificate of that key: from here on the new pair counts;
3. ``next-key.pem`` becomes ``key.pem``, and the old key is gone.

Each step replaces one file in one step and is durable before the next begins, so at every moment there is exactly one
pair that matches. One process writes (control, or enrolment before there is one); any may read.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey

from skerry_agent.config import AgentLayout
from skerry_agent.errors import DeviceError
from skerry_agent.files import DISK, Disk
from skerry_agent.identity.certificate import (
    CertificateFacts,
    key_from_pem,
    key_to_pem,
    new_key,
    public_half,
    read_certificate,
)

log = logging.getLogger(__name__)
KEY = "key.pem"
NEXT_KEY = "next-key.pem"
CERTIFICATE = "certificate.pem"
AUTHORITY = "authority.pem"
#: Looks of a reader that meets the writer between two files; one renewal can spoil two.
LOOKS = 16
_REMEDY = "enrol the device again with `skerry-agent enroll --force`"


@dataclass(frozen=True)
class Identity:
    """A key, the certificate that is for it, and the authority to trust.

    Attributes:
        key: Private key.
        key_path: File that holds it now.
        certificate_pem: The certificate.
        authority_pem: Certificate of the authority.
        facts: What the certificate says.
    """

    key: EllipticCurvePrivateKey = field(repr=False)
    key_path: Path
    certificate_pem: bytes
    authority_pem: bytes
    facts: CertificateFacts


class IdentityFiles:
    """Files of one data directory."""

    def __init__(self, layout: AgentLayout, *, disk: Disk = DISK) -> None:
        self._folder = layout.identity
        self._disk = disk

    @property
    def certificate_path(self) -> Path:
        """Where the certificate lies."""
        return self._folder / CERTIFICATE

    @property
    def authority_path(self) -> Path:
        """Where the authority's certificate lies."""
        return self._folder / AUTHORITY

    def read(self) -> Identity:
        """The pair that matches; for every process.

        Raises:
            DeviceError: There is none: not enrolled, or files are broken.
        """
        reason = ""
        for _ in range(LOOKS):
            try:
                return self._read()
            except FileNotFoundError as error:
                reason = f"{error.filename} is missing"
            except OSError as error:
                raise DeviceError(
                    f"{error.filename or self._folder} cannot be read ({error.strerror})",
                    remedy="correct its permissions",
                ) from error
            except ValueError as error:
                reason = f"{self._folder}: {error}"
        raise DeviceError(reason, remedy=_REMEDY)

    def recover(self) -> Identity:
        """Finish what a power cut interrupted; for the writer, at its start.

        Raises:
            DeviceError: There is no pair that matches, or the folder cannot be written.
        """
        identity = self.read()
        try:
            for name in (KEY, NEXT_KEY, CERTIFICATE, AUTHORITY):
                for leftover in self._folder.glob(f".{name}.*.tmp"):
                    self._disk.unlink(leftover)
            if identity.key_path.name == NEXT_KEY:
                self._promote()
                log.info("a renewal that was interrupted is finished: certificate %s", identity.facts.serial)
                return self.read()
        except OSError as error:
            # The pair is whole under either name: a full disk must not keep a device from connecting.
            log.warning("%s cannot be tidied: %s", self._folder, error)
        return identity

    def next_key(self) -> EllipticCurvePrivateKey:
        """The key that the next certificate is for: the one of an earlier attempt, or a new one that is written first.

        Raises:
            OSError: It cannot be written; nothing has changed.
        """
        path = self._folder / NEXT_KEY
        try:
            return key_from_pem(path.read_bytes())
        except FileNotFoundError:
            pass
        except ValueError as error:
            log.warning("%s: %s: another is made", path, error)
        key = new_key()
        self._disk.write_atomically(path, key_to_pem(key))
        return key

    def replace(self, certificate_pem: bytes) -> Identity:
        """Take the certificate of :meth:`next_key`; the caller has checked it.

        Raises:
            OSError: It cannot be written; the old pair stands.
            DeviceError: The folder was changed by somebody else.
        """
        self._disk.write_atomically(self.certificate_path, certificate_pem)
        try:
            self._promote()
        except OSError as error:
            # The new pair is whole already; the next start gives the key its name.
            log.warning("%s keeps its name until the next start: %s", NEXT_KEY, error)
        return self.read()

    def write_first(self, key: EllipticCurvePrivateKey, certificate_pem: bytes, authority_pem: bytes) -> None:
        """Write a whole identity, the one of an enrolment; any that was there is gone.

        Raises:
            OSError: It cannot be written; there may be no pair that matches.
        """
        self._disk.make_folder(self._folder)
        self._folder.chmod(0o700)
        self._disk.write_atomically(self.authority_path, authority_pem)
        self._disk.write_atomically(self._folder / KEY, key_to_pem(key))
        self._disk.write_atomically(self.certificate_path, certificate_pem)
        self._disk.unlink(self._folder / NEXT_KEY)

    def _promote(self) -> None:
        self._disk.rename(self._folder / NEXT_KEY, self._folder / KEY)
        self._disk.sync_folder(self._folder)

    def _read(self) -> Identity:
        certificate_pem = self.certificate_path.read_bytes()
        authority_pem = self.authority_path.read_bytes()
        facts = read_certificate(certificate_pem)
        for name in (KEY, NEXT_KEY):
            path = self._folder / name
            try:
                key = key_from_pem(path.read_bytes())
            except (FileNotFoundError, ValueError):
                continue
            if public_half(key) == facts.public_key:
                return Identity(key, path, certificate_pem, authority_pem, facts)
        raise ValueError(f"neither {KEY} nor {NEXT_KEY} is the key of {CERTIFICATE}")
