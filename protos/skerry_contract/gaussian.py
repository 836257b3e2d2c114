"""Gaussian noise for differential privacy: integers on a grid, from a cryptographic stream.

The stream is ChaCha20 (RFC 8439) under a key that HKDF (RFC 5869) derives from a secret and from what the noise is for;
uniform bits become normal deviates by Box and Muller's method in float64. A deviate times the standard deviation is
rounded to an integer. For integers ``x``, ``x + round(noise) == round(x + noise)``: the result is the Gaussian
mechanism, rounded afterwards, so its guarantee is that of the Gaussian mechanism and no analysis of the discrete
Gaussian (arXiv 2004.00010, 2102.06387) is needed. What remains between this and the ideal is the sampler's resolution:
uniforms have 53 bits, so a deviate is never beyond 8.57 standard deviations (the ideal exceeds them once in 1e17).

A stream is never used twice: the derivation takes the purpose, and whoever noises a sum puts a digest of the sum in it.
Equal sums of one purpose get equal noise, which says nothing new; different sums get independent noise.

>>> a, b = GaussianStream(b"k" * 32, b"one"), GaussianStream(b"k" * 32, b"two")
>>> bool((a.normal(4) == b.normal(4)).any())
False
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

#: Length of a secret that streams are derived from (bytes).
KEY_BYTES = 32

_BLOCK = 1 << 14  # pairs of deviates that are made at a time
_ZEROS = bytes(_BLOCK * 16)
_UNIT = 2.0**-53


class GaussianStream:
    """An endless sequence of independent standard normal deviates; not for use by several threads."""

    def __init__(self, key: bytes, purpose: bytes) -> None:
        """Start it.

        Args:
            key: Secret of :data:`KEY_BYTES` bytes, from a cryptographic source (``secrets.token_bytes``).
            purpose: What the noise is for; a different purpose is an independent stream.

        Raises:
            ValueError: A key of another length.
        """
        if len(key) != KEY_BYTES:
            raise ValueError(f"a noise key has {KEY_BYTES} bytes, got {len(key)}")
        derived = HKDF(algorithm=SHA256(), length=32, salt=None, info=b"skerry-noise\0" + purpose).derive(key)
        self._cipher = Cipher(algorithms.ChaCha20(derived, bytes(16)), mode=None).encryptor()

    def normal(self, count: int) -> npt.NDArray[np.float64]:
        """The next ``count`` deviates; float64 [count]. An odd count throws one away."""
        values = np.empty(2 * ((count + 1) // 2))
        for start in range(0, len(values), 2 * _BLOCK):
            part = values[start : start + 2 * _BLOCK]
            pairs = len(part) // 2
            bits = np.frombuffer(self._cipher.update(_ZEROS[: pairs * 16]), dtype="<u8") >> np.uint64(11)
            radius = np.sqrt(-2.0 * np.log((bits[:pairs] + 1.0) * _UNIT))
            angle = bits[pairs:] * (2.0 * math.pi * _UNIT)
            np.multiply(radius, np.cos(angle), out=part[:pairs])
            np.multiply(radius, np.sin(angle), out=part[pairs:])
        return values[:count]

    def add_integers(self, sums: npt.NDArray[np.int64], std: float) -> None:
        """Add independent rounded deviates of standard deviation ``std`` (in units of the integers) in place.

        Args:
            sums: Flat.
            std: At least 0, at most 2**52, so that float64 holds every integer.

        Raises:
            ValueError: A standard deviation out of range.
        """
        if not 0.0 <= std <= 2.0**52:
            raise ValueError(f"a standard deviation of 0 to 2**52 steps is possible, got {std}")
        for start in range(0, len(sums), 2 * _BLOCK):
            part = sums[start : start + 2 * _BLOCK]
            part += np.rint(std * self.normal(len(part))).astype(np.int64)
