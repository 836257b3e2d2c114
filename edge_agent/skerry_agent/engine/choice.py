"""``choice.json`` in a slot: what the chooser found, so that serving starts without measuring again.

It is a hint, not a fact: it counts only for the same bundle, the same version of the runtime and a variant that the
signed manifest allows here, and the model that it names still has to pass the golden check.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from skerry_agent.files import write_atomically

CHOICE = "choice.json"


@dataclass(frozen=True)
class Choice:
    """The variant to serve.

    Attributes:
        bundle_sha256: Hexadecimal digest of the bundle that it was measured on.
        variant: Name of the variant.
        backend: Name of the backend.
        backend_version: Version that the backend's probe gave.
        latency_us: Median latency of one row.
        p99_us: 99th percentile.
    """

    bundle_sha256: str
    variant: str
    backend: str
    backend_version: str
    latency_us: float
    p99_us: float


def read_choice(folder: Path) -> Choice | None:
    """The choice of a slot, or None if there is no readable one."""
    try:
        document = json.loads((folder / CHOICE).read_bytes())
        return Choice(
            bundle_sha256=str(document["bundle_sha256"]),
            variant=str(document["variant"]),
            backend=str(document["backend"]),
            backend_version=str(document["backend_version"]),
            latency_us=float(document["latency_us"]),
            p99_us=float(document["p99_us"]),
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None


def write_choice(folder: Path, choice: Choice) -> None:
    """Keep a choice; raises OSError."""
    write_atomically(folder / CHOICE, json.dumps(asdict(choice), sort_keys=True).encode())
