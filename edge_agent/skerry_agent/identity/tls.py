"""How this device speaks TLS: only the authority of its control plane is trusted, and the local clock decides nothing.

A device whose battery died boots in 1970 and must still reach its control plane, so OpenSSL does not compare times
(``X509_V_FLAG_NO_CHECK_TIME``). What can be known is checked after the handshake instead: a server certificate that
ended before a moment that a signature vouched for is refused.
"""

from __future__ import annotations

import ssl
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from skerry_agent.config import AgentLayout
from skerry_agent.errors import DeviceError
from skerry_agent.identity.identity_files import LOOKS, IdentityFiles
from skerry_agent.trusted_clock import TrustedClock

#: ``X509_V_FLAG_NO_CHECK_TIME`` of OpenSSL (openssl/x509_vfy.h); the ssl module has no name for it.
NO_CHECK_TIME = ssl.VerifyFlags(0x200000)


class _CheckedSocket(ssl.SSLSocket):
    """Looks at the server's certificate after every handshake."""

    def do_handshake(self, block: bool = False) -> None:
        """See :meth:`ssl.SSLSocket.do_handshake`; raises SSLCertVerificationError too."""
        super().do_handshake(block)
        if isinstance(self.context, DeviceTlsContext):
            self.context.check_server(self.getpeercert())


class DeviceTlsContext(ssl.SSLContext):
    """A client's context for blocking sockets; see :func:`server_context` and :func:`client_context`."""

    sslsocket_class = _CheckedSocket
    #: Latest moment that a signature vouched for (Unix ms).
    floor_ms: Callable[[], int]

    def check_server(self, certificate: Any) -> None:
        """Refuse a server certificate that has ended for certain.

        Args:
            certificate: As :meth:`ssl.SSLSocket.getpeercert` gives it.

        Raises:
            ssl.SSLCertVerificationError: It ended before the floor.
        """
        end_s = ssl.cert_time_to_seconds(str((certificate or {}).get("notAfter", "Jan  1 00:00:00 1970 GMT")))
        floor_s = self.floor_ms() // 1000
        if end_s < floor_s:
            raise ssl.SSLCertVerificationError(
                f"the server's certificate ended on {_day(end_s)}; it is {_day(floor_s)} or later"
            )


def server_context(authority_pem: bytes, floor_ms: Callable[[], int]) -> ssl.SSLContext:
    """For servers that need no certificate of ours.

    Args:
        authority_pem: The one authority to trust.
        floor_ms: Latest moment that a signature vouched for (Unix ms), asked at every handshake.

    Raises:
        DeviceError: The authority's certificate cannot be read.
    """
    context = DeviceTlsContext(ssl.PROTOCOL_TLS_CLIENT)
    context.floor_ms = floor_ms
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.verify_flags |= NO_CHECK_TIME
    try:
        context.load_verify_locations(cadata=authority_pem.decode("ascii"))
    except (ssl.SSLError, ValueError) as error:
        raise DeviceError(f"the authority's certificate cannot be read ({error})", remedy="enrol again") from error
    return context


def client_context(layout: AgentLayout, clock: TrustedClock) -> ssl.SSLContext:
    """For servers that want to know who we are: with the certificate of this moment, so make one per connection.

    Raises:
        DeviceError: This device has no whole identity.
    """
    files = IdentityFiles(layout)
    reason: ssl.SSLError | None = None
    for _ in range(LOOKS):
        identity = files.read()
        context = server_context(identity.authority_pem, lambda: clock.floor_ms)
        try:
            context.load_cert_chain(files.certificate_path, identity.key_path)
        except (ssl.SSLError, FileNotFoundError) as error:
            # A renewal between two files: look again.
            reason = error if isinstance(error, ssl.SSLError) else None
            continue
        return context
    raise DeviceError(f"{layout.identity}: {reason or 'files come and go'}", remedy="enrol the device again")


def _day(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d")
