"""A session whose survivors are fixed, as bytes for the journal: what is needed to unmask its sum.

There is no secret of a device in it: keys are public, shares are sealed, and the sum is masked.
"""

from __future__ import annotations

import json

import numpy as np
from cryptography import x509

from skerry_contract.errors import WireError
from skerry_contract.secagg_codec import bitmap
from skerry_contract.secagg_ring import VectorLayout
from skerry_contract.secagg_roster import Roster
from skerry_contract.secure_aggregation import KeysInstruction
from skerry_contract.tensors import Array, decode_bundle, encode_bundle
from skerry_server.federation.secure_aggregation.session import SecureSession


def encode_session(session: SecureSession) -> bytes:
    """The session at the phase "confirm", before anybody confirmed."""
    size = len(session.roster)
    numbers = {"terms": session.terms.to_fields(), "seconds": session.seconds, "liars": session.liars}
    parts = {
        "numbers": json.dumps(numbers).encode(),
        "roster": session.roster.encode(),
        "context": session.context,
        "members": bitmap(session.members, size),
        "survivors": bitmap(session.survivors, size),
        "total": session.ring.pack(session.total),
    }
    for owner, dealing in session.dealt.items():
        holders = session.graph.holders(owner)
        parts[f"dealt-{owner}"] = dealing.seed_commitment + b"".join(dealing.parts[holder] for holder in holders)
    return encode_bundle({name: np.frombuffer(data, dtype=np.uint8) for name, data in parts.items()})


def decode_session(data: bytes, layout: VectorLayout, authority: x509.Certificate) -> SecureSession:
    """What :func:`encode_session` wrote.

    Raises:
        WireError: It is broken, or of another model.
    """
    arrays: dict[str, Array] = decode_bundle(data)
    parts = {name: array.tobytes() for name, array in arrays.items()}
    try:
        numbers = json.loads(parts["numbers"])
        session = SecureSession(KeysInstruction.from_fields(numbers["terms"]), layout, authority)
        session.restore(
            roster=Roster.decode(parts["roster"], session.terms.digest),
            context=parts["context"],
            members=parts["members"],
            survivors=parts["survivors"],
            total=parts["total"],
            dealt={int(name[6:]): part for name, part in parts.items() if name.startswith("dealt-")},
        )
        session.seconds = float(numbers["seconds"])
        session.liars.update({str(name): str(reason) for name, reason in numbers["liars"].items()})
    except (KeyError, TypeError, ValueError) as error:
        raise WireError(
            "session", expected="a session of this version", got=f"{type(error).__name__}: {error}"
        ) from error
    return session
