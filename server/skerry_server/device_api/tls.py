"""The certificate of whoever connected, in the ASGI scope; and a deadline for whoever connects and says nothing.

The scope gets the extension ``tls`` of the ASGI specification ("ASGI TLS Extension", version 0.2) with its field
``client_cert_chain``: PEM of the client's certificate, or nothing. The TLS listener has verified it: from our
authority, in its time. Whether it is revoked is for :mod:`skerry_server.device_api.caller`.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable
from typing import Any

from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol


class TlsProtocol(H11Protocol):
    """HTTP/1.1 of uvicorn, with the client's certificate."""

    #: How long a connection may be open before its first request begins (seconds).
    silence_s = 20.0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn declares it
        """See asyncio; the handshake is done."""
        super().connection_made(transport)
        self._impatience = self.loop.call_later(self.silence_s, transport.close)
        self.app = PeerCertificate(self.app, peer_certificate(transport), begun=self._impatience.cancel)

    def connection_lost(self, exc: Exception | None) -> None:
        """See asyncio."""
        self._impatience.cancel()
        super().connection_lost(exc)


class PeerCertificate:
    """ASGI middleware that knows the certificate of its connection."""

    def __init__(self, app: Any, certificate_pem: str, *, begun: Callable[[], None]) -> None:
        """Wrap ``app``; ``begun`` is called at every request."""
        self._app: ASGIApp = app
        self._begun = begun
        self._chain = [certificate_pem] if certificate_pem else []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request of the connection."""
        self._begun()
        extensions = dict(scope.get("extensions") or {}) | {"tls": {"client_cert_chain": self._chain}}
        await self._app(dict(scope) | {"extensions": extensions}, receive, send)


def peer_certificate(transport: asyncio.BaseTransport) -> str:
    """PEM of the certificate that the other side presented; empty if it did not, or without TLS."""
    channel: ssl.SSLObject | None = transport.get_extra_info("ssl_object")
    der = channel.getpeercert(binary_form=True) if channel is not None else None
    return ssl.DER_cert_to_PEM_cert(der) if der else ""


def presented_certificate(scope: Scope) -> str:
    """The same, from the scope of a request."""
    chain: list[str] = scope.get("extensions", {}).get("tls", {}).get("client_cert_chain", [])
    return chain[0] if chain else ""
