"""Clients of the SuperLink for the control plane: over TLS, with our authority only, as the operator.

One :class:`httpx.Client` is behind each, with connections that are kept, so that a request costs no TLS handshake.
"""

from __future__ import annotations

import ssl
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import httpx
from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor

from skerry_server.superlink import SECRET_HEADER, SuperLinkAccess

C = TypeVar("C")


class SuperLinkNotReadyError(httpx.TransportError):
    """The SuperLink of this data directory has never been started: its secret or its authority is missing."""


class _OperatorSecret:
    """Puts the operator's secret into every request (a ``ProtobufClientInterceptor``)."""

    def __init__(self, secret: str) -> None:
        self._secret = secret

    def intercept(self, context: Any, call_next: Any) -> Any:
        context.request.headers[SECRET_HEADER] = self._secret
        return call_next(context)


def open_client(kind: type[C], access: SuperLinkAccess, *, interceptors: Sequence[Any] = ()) -> C:
    """A client of one of the SuperLink's interfaces; the caller closes it.

    Args:
        kind: A ``flwr.supercore.protobuf.client.ProtobufClient``.
        access: Which SuperLink.
        interceptors: Further ones, behind those that say the version and the secret.

    Raises:
        SuperLinkNotReadyError: A file of ``access`` is missing.
    """
    try:
        secret = access.secret.read_text().strip()
        verify = tls_context(access.authority)
    except OSError as error:
        raise SuperLinkNotReadyError(f"{error.filename or access.authority}: {error.strerror}") from error
    chain = [RuntimeVersionHttpInterceptor(component_name="flwr-serverapp"), _OperatorSecret(secret), *interceptors]
    make: Any = kind
    client: C = make(f"https://{access.address}", interceptors=chain, verify=verify)
    return client


def tls_context(authority: Path) -> ssl.SSLContext:
    """Trusts this authority and no other."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # checks the certificate and the name in it
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_verify_locations(cafile=authority)
    return context
