"""Identities for tests: the control plane's own kind of authority, and a device's files as enrolment leaves them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from functools import cache

from skerry_agent.config import AgentLayout
from skerry_agent.identity.certificate import make_request, new_key, request_to_pem
from skerry_agent.identity.identity_files import IdentityFiles
from skerry_server.fleet.authority import CertificateAuthority

#: How broker and device API are reached in tests.
NAMES = ("127.0.0.1", "localhost")
DAYS = 90


def now() -> datetime:
    return datetime.now(UTC)


@cache
def authority_of_tests() -> CertificateAuthority:
    """One authority for all rigs of a test run."""
    return CertificateAuthority.create(now=now() - timedelta(days=400))


def give_identity(
    layout: AgentLayout,
    device_id: str,
    *,
    authority: CertificateAuthority | None = None,
    issued: datetime | None = None,
    days: int = DAYS,
) -> None:
    """Write key, certificate and authority of a device; ``issued`` may lie so far back that the certificate ended."""
    authority = authority or authority_of_tests()
    key = new_key()
    request = request_to_pem(make_request(key, device_id)).encode()
    certificate = authority.issue_device(request, device_id=device_id, now=issued or now(), days=days)
    layout.root.mkdir(parents=True, exist_ok=True)
    IdentityFiles(layout).write_first(key, certificate, authority.certificate_pem)
