"""mosquitto's password hashes and password file.

``$7$<iterations>$<salt>$<hash>``: PBKDF2 with HMAC-SHA-512 (RFC 8018), salt and hash in base64, as mosquitto_passwd
writes it. Every password here is 256 random bits, so the iteration count only has to be what mosquitto expects.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import secrets
from collections.abc import Mapping

#: mosquitto's own default.
ITERATIONS = 101
_SALT_BYTES = 12
_HASH_BYTES = 64


def hash_password(password: str) -> str:
    """Hash with a fresh salt."""
    return _format(password, secrets.token_bytes(_SALT_BYTES), ITERATIONS)


def matches(password: str, hashed: str) -> bool:
    """Whether ``hashed`` is a hash of ``password``; False for anything that is not a ``$7$`` hash."""
    try:
        _, kind, iterations, salt, _ = hashed.split("$")
        if kind != "7":
            return False
        expected = _format(password, base64.b64decode(salt, validate=True), int(iterations))
    except (ValueError, binascii.Error):
        return False
    return hmac.compare_digest(expected, hashed)


def render(hashes: Mapping[str, str]) -> bytes:
    """The password file: a line per user, sorted, so that equal contents are equal bytes."""
    return "".join(f"{user}:{hashes[user]}\n" for user in sorted(hashes)).encode()


def parse(data: bytes) -> dict[str, str]:
    """User to hash; lines that are none are left out."""
    lines = (line.partition(":") for line in data.decode(errors="replace").splitlines())
    return {user: hashed for user, colon, hashed in lines if colon and user and hashed}


def _format(password: str, salt: bytes, iterations: int) -> str:
    digest = hashlib.pbkdf2_hmac("sha512", password.encode(), salt, iterations, _HASH_BYTES)
    return f"$7${iterations}${base64.b64encode(salt).decode()}${base64.b64encode(digest).decode()}"
