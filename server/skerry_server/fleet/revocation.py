"""Certificates that are refused before their end, and the list of them that the broker reads.

The table is the truth and ``pki/revoked.pem`` a projection of it: rows whose certificates have ended by themselves are
left out. OpenSSL prefers, of the lists that a running broker has read, the one with the newest ``thisUpdate`` in whole
seconds; so each list is at least a second newer than the one before, and dated back a day to leave room for that.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import sqlalchemy as sa
from cryptography import x509
from sqlalchemy.orm import Session

from skerry_server.clock import now_ms
from skerry_server.config import ServerLayout
from skerry_server.files import write_atomically
from skerry_server.fleet.authority import UNREADABLE, CertificateAuthority
from skerry_server.store.database import Database
from skerry_server.store.tables import RevokedCertificate

_BACKDATED = timedelta(days=1)
#: How long after its end a certificate stays listed: the broker's clock may be behind (milliseconds).
_KEPT_MS = 86_400_000


def revoke_certificate(session: Session, *, serial: str, device_id: str, not_after_ms: int) -> None:
    """Refuse a certificate from the next list on; nothing happens if it is refused already, or ``serial`` is empty."""
    if serial and session.get(RevokedCertificate, serial) is None:
        session.add(
            RevokedCertificate(serial=serial, device_id=device_id, revoked_ms=now_ms(), not_after_ms=not_after_ms)
        )


def is_revoked(session: Session, serial: str) -> bool:
    """Whether a certificate is refused."""
    return session.get(RevokedCertificate, serial) is not None


def write_list(database: Database, layout: ServerLayout) -> bool:
    """Make the list equal to the store; returns whether it was written. The caller sees to it that it is alone.

    Raises:
        PlatformError: The authority cannot be read.
        OSError: The file cannot be written; it is unchanged.
    """
    authority = CertificateAuthority.load(layout.pki)
    now = now_ms()
    with database.reading() as session:
        rows = session.execute(
            sa.select(RevokedCertificate.serial, RevokedCertificate.revoked_ms)
            .where(RevokedCertificate.not_after_ms > now - _KEPT_MS)
            .order_by(RevokedCertificate.revoked_ms, RevokedCertificate.serial)
        )
        wanted = [(str(serial), datetime.fromtimestamp(ms // 1000, UTC)) for serial, ms in rows]
    before = _read(layout.revocation_list, authority)
    moment = datetime.fromtimestamp(now // 1000, UTC) - _BACKDATED
    if before is not None:
        if {f"{one.serial_number:x}" for one in before} == {serial for serial, _ in wanted}:
            return False
        moment = max(moment, before.last_update_utc + timedelta(seconds=1))
    write_atomically(layout.revocation_list, authority.revocation_list(wanted, now=moment))
    return True


def _read(path: Path, authority: CertificateAuthority) -> x509.CertificateRevocationList | None:
    """The list that is there; ``None`` if there is none that the broker would accept."""
    if not path.exists():
        return None
    try:
        found = x509.load_pem_x509_crl(path.read_bytes())
        sound = found.is_signature_valid(authority.public_key)
    except UNREADABLE:
        return None
    return found if sound else None
