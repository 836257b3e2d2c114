"""The control plane's device API, as a client: enrolment and renewal over TLS, with a bound on time and size."""

from __future__ import annotations

import contextlib
import http.client
import json
import ssl
import time
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from skerry_agent.errors import DeviceError, InputError

#: How long the server may be silent, and how long a whole answer may take (seconds); how much it may say (bytes).
TIMEOUT_S = 30.0
ANSWER_S = 60.0
ANSWER_BYTES = 1 << 20
_BLOCK_BYTES = 1 << 16
_TOO_MANY = 429


class RefusedError(InputError):
    """The control plane answered that it will not.

    Attributes:
        status: HTTP status, 4xx.
    """

    def __init__(self, what: str, status: int, reason: str) -> None:
        self.status = status
        super().__init__(what, expected="to be accepted", got=f"{status} {reason}")


class DeviceApi:
    """Asks one control plane; keeps no connection."""

    def __init__(self, url: str, context: ssl.SSLContext, *, timeout_s: float = TIMEOUT_S) -> None:
        """Look at the URL; nothing is sent.

        Args:
            url: ``https://host:port``.
            context: Whom to trust.
            timeout_s: Longest silence of the server (seconds).

        Raises:
            InputError: The URL is not one.
        """
        try:
            parts = urlsplit(url)
            host, port = parts.hostname, parts.port or 443
        except ValueError:
            parts, host, port = urlsplit(""), None, 0
        if parts.scheme != "https" or not host or parts.path.strip("/") or parts.query or parts.username:
            raise InputError("--server", expected="a URL such as https://host:8443", got=url)
        self._url = url.rstrip("/")
        self._host, self._port = host, port
        self._context = context
        self._timeout_s = timeout_s

    def authority(self) -> bytes:
        """Certificate of the server's authority (PEM), not trusted: compare its fingerprint.

        Raises:
            DeviceError: The server cannot be reached or does not answer as one.
        """
        return self._ask("GET", "/device/v1/authority", None, what="authority")

    def enroll(self, document: Mapping[str, Any]) -> dict[str, Any]:
        """Trade a token for an identity.

        Raises:
            RefusedError: Token, name or request are not right.
            DeviceError: The server cannot be reached or does not answer as one.
        """
        return self._post("/device/v1/enroll", document, what="enrolment")

    def renew(self, document: Mapping[str, Any]) -> dict[str, Any]:
        """Trade a certificate, ended or not, for the next.

        Raises:
            RefusedError: The device is revoked, or the proof does not hold.
            DeviceError: The server cannot be reached or does not answer as one.
        """
        return self._post("/device/v1/renew", document, what="renewal")

    def site(self, action: str, document: Mapping[str, Any]) -> dict[str, Any]:
        """What the gateway of a site asks for: "report" or "certificate"; needs its own certificate in the context.

        Raises:
            RefusedError: The caller is no gateway, or the document is not right.
            DeviceError: The server cannot be reached or does not answer as one.
        """
        return self._post(f"/device/v1/site/{action}", document, what=f"the site's {action}")

    def _post(self, path: str, document: Mapping[str, Any], *, what: str) -> dict[str, Any]:
        data = self._ask("POST", path, json.dumps(document).encode(), what=what)
        with contextlib.suppress(ValueError, RecursionError):
            parsed = json.loads(data)
            if isinstance(parsed, dict):
                return parsed
        raise DeviceError(f"{self._url} did not answer with a JSON object", remedy="check that it is a Skerry server")

    def _ask(self, method: str, path: str, body: bytes | None, *, what: str) -> bytes:
        headers = {"Accept": "application/json"} | ({"Content-Type": "application/json"} if body else {})
        connection = http.client.HTTPSConnection(self._host, self._port, timeout=self._timeout_s, context=self._context)
        try:
            connection.request(method, path, body=body, headers=headers)
            answer = connection.getresponse()
            status, data = answer.status, _read(answer)
        except ssl.SSLCertVerificationError as error:
            # OpenSSL's refusals carry a message; ours are one.
            reason = getattr(error, "verify_message", "") or str(error.args[-1] if error.args else error)
            raise DeviceError(
                f"{self._url} does not prove that it is your control plane ({reason})",
                remedy="use the address that its certificate names, and the token that it printed",
            ) from error
        except (OSError, http.client.HTTPException) as error:
            reason = str(getattr(error, "strerror", None) or error) or type(error).__name__
            raise DeviceError(
                f"{self._url} cannot be reached ({reason})", remedy="check the URL and the network"
            ) from error
        finally:
            connection.close()
        if data is None:
            raise DeviceError(f"{self._url} says too much or too slowly", remedy="check that it is a Skerry server")
        if 200 <= status < 300:
            return data
        if 400 <= status < 500 and status != _TOO_MANY:
            raise RefusedError(what, status, _reason(data))
        raise DeviceError(f"{self._url} answered {status} {_reason(data)}", remedy="look at the server's log")


def _read(answer: http.client.HTTPResponse) -> bytes | None:
    """The body; None if it is too large or takes too long."""
    until = time.monotonic() + ANSWER_S
    data = b""
    while block := answer.read1(_BLOCK_BYTES):
        data += block
        if len(data) > ANSWER_BYTES or time.monotonic() > until:
            return None
    return data


def _reason(data: bytes) -> str:
    """What the body of an error says: ``detail`` or ``title`` (RFC 9457), or its first characters, on one line."""
    text = data.decode(errors="replace")
    with contextlib.suppress(ValueError, RecursionError):
        document = json.loads(data)
        if isinstance(document, dict):
            text = str(document.get("detail") or document.get("title") or document)
    return " ".join(text.split())[:300]
