"""Forms that this device made of a signed graph so that the next start is faster. They are never trusted.

A kept form lies in a file that is named by everything it depends on and begins with the digest of its content, which
tells rot from use; it tells nothing about who wrote it. So a model that is loaded from one has to pass the golden check
like any other, the signed file is read and hashed all the same, and at any doubt the kept form is deleted and the
signed file used. Whoever can write into the slots can also change the agent's settings and keys beside them.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from skerry_agent.files import write_atomically

_DIGEST = 32
#: Largest kept form that is read (bytes).
FORM_BYTES = 1 << 30


def form_key(*parts: str) -> str:
    """Name of a form that depends on ``parts``: 64 hexadecimal digits."""
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def read_form(path: Path) -> bytes | None:
    """Content of a kept form; None if there is none. One that rotted is deleted."""
    try:
        if not _DIGEST < path.stat().st_size <= FORM_BYTES:
            raise ValueError("no content")
        data = path.read_bytes()
        if hashlib.sha256(data[_DIGEST:]).digest() != data[:_DIGEST]:
            raise ValueError("rotten")
    except FileNotFoundError:
        return None
    except (OSError, ValueError):
        path.unlink(missing_ok=True)
        return None
    return data[_DIGEST:]


def write_form(path: Path, content: bytes) -> None:
    """Keep a form; raises OSError, and then keeps nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, hashlib.sha256(content).digest() + content)
