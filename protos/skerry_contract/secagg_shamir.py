"""Shamir's secret sharing (CACM 22(11), 1979) over the integers modulo 2^255 - 19.

Any ``threshold`` shares give the secret, fewer say nothing about it. The field holds every X25519 private key that
:func:`new_secret` makes, and shares are as long as secrets: 32 bytes, little endian. Python's integers take time that
depends on their values; who can measure that on a device owns the device already.

>>> secret = new_secret()
>>> shares = split(secret, 5, 3)
>>> combine({1: shares[0], 3: shares[2], 5: shares[4]}) == secret
True
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from functools import lru_cache

from skerry_contract.errors import WireError

#: The modulus.
PRIME = (1 << 255) - 19
#: Length of a secret and of a share (bytes).
SECRET_BYTES = 32
#: Most shares of a secret.
SHARES = 1024


def new_secret() -> bytes:
    """32 bytes below the modulus, uniform, for keys and seeds."""
    return secrets.randbelow(PRIME).to_bytes(SECRET_BYTES, "little")


def split(secret: bytes, count: int, threshold: int) -> list[bytes]:
    """Shares of ``secret``.

    Args:
        secret: From :func:`new_secret`.
        count: How many shares, at most :data:`SHARES`; the one at index i belongs to the point i + 1.
        threshold: How many give the secret back, 1 to ``count``.

    Raises:
        ValueError: An argument is out of its range.
    """
    if not 1 <= threshold <= count <= SHARES:
        raise ValueError(f"a threshold of {threshold} of {count} shares is not in 1 to {SHARES}")
    value = int.from_bytes(secret, "little")
    if len(secret) != SECRET_BYTES or value >= PRIME:
        raise ValueError("a secret must be 32 bytes below 2^255 - 19")
    coefficients = [*(secrets.randbelow(PRIME) for _ in range(threshold - 1)), value]
    return [_evaluate(coefficients, point).to_bytes(SECRET_BYTES, "little") for point in range(1, count + 1)]


def combine(shares: Mapping[int, bytes]) -> bytes:
    """The secret of which these are at least ``threshold`` shares; with fewer or false ones, another value.

    Args:
        shares: Point to share.

    Raises:
        WireError: No share, a point out of range, or a share that is not an element of the field.
    """
    if not 1 <= len(shares) <= SHARES:
        raise WireError("shares", expected=f"1 to {SHARES} shares", got=len(shares))
    values: list[int] = []
    for point, share in shares.items():
        value = int.from_bytes(share, "little")
        if not 1 <= point <= SHARES or len(share) != SECRET_BYTES or value >= PRIME:
            raise WireError(f"shares[{point}]", expected="32 bytes below 2^255 - 19", got=f"{len(share)} bytes")
        values.append(value)
    factors = _factors(tuple(shares))
    total = sum(value * factor for value, factor in zip(values, factors, strict=True))
    return (total % PRIME).to_bytes(SECRET_BYTES, "little")


@lru_cache(maxsize=256)
def _factors(points: tuple[int, ...]) -> tuple[int, ...]:
    """Lagrange's polynomials at 0. A session asks for the same points again and again."""
    factors: list[int] = []
    for point in points:
        above, below = 1, 1
        for other in points:
            if other != point:
                above = above * other % PRIME
                below = below * (other - point) % PRIME
        factors.append(above * pow(below, -1, PRIME) % PRIME)
    return tuple(factors)


def _evaluate(coefficients: list[int], point: int) -> int:
    """Horner's scheme, highest power first."""
    value = 0
    for coefficient in coefficients:
        value = (value * point + coefficient) % PRIME
    return value
