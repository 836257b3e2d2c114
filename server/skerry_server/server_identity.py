"""The certificate with which this control plane serves its devices: broker, device API and SuperLink share it.

:func:`ensure` runs at every start. It makes the authority once, and the server's certificate whenever there is none
that fits: for every name by which this machine is reached, from our authority, with more than a third of its life left.
A certificate and a key that do not belong together (a start that was killed between the two files) count as none.
"""

from __future__ import annotations

import logging
import socket
from datetime import datetime
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from skerry_server import ports
from skerry_server.config import ServerConfig, ServerLayout
from skerry_server.errors import PlatformError
from skerry_server.files import write_atomically
from skerry_server.fleet.authority import UNREADABLE, CertificateAuthority, utc_now

log = logging.getLogger(__name__)

#: Names by which every machine means itself.
LOOPBACK = ("localhost", "127.0.0.1", "::1")


def public_host(config: ServerConfig) -> str:
    """The name or address that devices are told: the first of ``public_names``, or how ``host`` is reached."""
    return config.public_names[0] if config.public_names else ports.reachable_address(config.host)


def device_api_url(config: ServerConfig) -> str:
    """Where devices find their API."""
    return f"https://{ports.join(public_host(config), config.device_port)}"


def names(config: ServerConfig) -> list[str]:
    """Every name and address by which devices or this machine itself reach the listeners."""
    own = [ports.connect_address(config.host), ports.reachable_address(config.host), socket.gethostname()]
    return list(dict.fromkeys([*LOOPBACK, *(name for name in own if name.isascii()), *config.public_names]))


def ensure(config: ServerConfig, layout: ServerLayout, *, now: datetime | None = None) -> bool:
    """Make the authority and the server's certificate as far as they are missing; the caller holds the directory.

    Returns:
        Whether a server certificate was made.

    Raises:
        PlatformError: The authority is broken, or a name of the configuration cannot be in a certificate.
        OSError: The folder cannot be written.
    """
    moment = now or utc_now()
    if not (layout.pki / "ca.key").exists():
        CertificateAuthority.create(now=moment).save(layout.pki)
    authority = CertificateAuthority.load(layout.pki)
    wanted = names(config)
    if _fits(layout, authority, wanted, moment):
        return False
    try:
        issued = authority.issue_server(wanted, now=moment)
    except ValueError as error:
        raise PlatformError(
            f"no certificate can be made for {', '.join(wanted)} ({error})",
            remedy="correct public_names in server.json",
        ) from error
    write_atomically(layout.server_key, issued.key_pem)
    write_atomically(layout.server_certificate, issued.certificate_pem, mode=0o644)
    log.info("made a server certificate for %s", ", ".join(wanted))
    return True


def _fits(layout: ServerLayout, authority: CertificateAuthority, wanted: list[str], now: datetime) -> bool:
    if not (layout.server_certificate.exists() and layout.server_key.exists()):
        return False
    try:
        certificate = x509.load_pem_x509_certificate(layout.server_certificate.read_bytes())
        certificate.verify_directly_issued_by(x509.load_pem_x509_certificate(authority.certificate_pem))
        key = load_pem_private_key(layout.server_key.read_bytes(), password=None)
        covered = _covered(certificate)
    except UNREADABLE:
        return False
    begin, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    young = begin <= now < end - (end - begin) / 3
    return young and covered >= set(wanted) and key.public_key() == certificate.public_key()


def _covered(certificate: x509.Certificate) -> set[str]:
    alternatives = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    addresses = {str(address) for address in alternatives.get_values_for_type(x509.IPAddress)}
    return addresses | set(alternatives.get_values_for_type(x509.DNSName))


def read_authority(path: Path) -> str:
    """The authority's certificate as text; raises PlatformError."""
    try:
        return path.read_text()
    except OSError as error:
        raise PlatformError(
            f"{path} cannot be read ({error.strerror})", remedy="run `skerry up` there first"
        ) from error
