"""Names that both sides use in topics, paths and keys.

Every name is ``[a-z0-9]`` followed by up to 62 of ``[a-z0-9-]``, so that it is safe as an MQTT topic level, a file
name, a DNS label and a certificate common name.
"""

from __future__ import annotations

import re
import secrets

from skerry_contract.errors import WireError

_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,62}\Z")
_SHA256_HEX = re.compile(r"[0-9a-f]{64}\Z")


def check_name(value: str, *, field: str) -> str:
    """Return ``value`` if it is a valid name.

    Args:
        value: The name to check.
        field: What it is called in the error.

    Raises:
        WireError: The name is empty, too long or has other characters.
    """
    if not _NAME.match(value):
        raise WireError(field, expected="1 to 63 characters of a-z, 0-9 and -, not starting with -", got=value)
    return value


def check_sha256_hex(value: str, *, field: str) -> str:
    """Return ``value`` if it is 64 lower-case hexadecimal digits; raise :class:`WireError` otherwise."""
    if not _SHA256_HEX.match(value):
        raise WireError(field, expected="64 lower-case hexadecimal digits", got=value)
    return value


def new_id(prefix: str) -> str:
    """A fresh identifier such as ``campaign-3f9c2a1b7d4e``; 48 random bits."""
    return f"{prefix}-{secrets.token_hex(6)}"
