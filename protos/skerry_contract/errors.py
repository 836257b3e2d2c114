"""The exceptions of the contract, by who is at fault.

Programmer errors are ``ValueError``; what another machine sent is a :class:`ContractError`.
"""

from __future__ import annotations


class ContractError(Exception):
    """Root of everything that the other side of the wire can cause."""


class WireError(ContractError):
    """Bytes or values from the wire that break the contract.

    Attributes:
        field: Which field, as a dotted path (``manifest.files[2].size``).
        expected: What would have been right.
        got: What came, shortened to at most 200 characters.
    """

    def __init__(self, field: str, *, expected: str, got: object) -> None:
        self.field = field
        self.expected = expected
        text = repr(got) if isinstance(got, str | bytes) else str(got)
        self.got = text if len(text) <= 200 else text[:197] + "..."
        super().__init__(f"{field}: expected {expected}, got {self.got}")


class SignatureError(ContractError):
    """An envelope whose signatures do not make it trustworthy.

    Attributes:
        kind: Kind of the envelope ("release", "desired").
        reason: Why it is refused.
    """

    def __init__(self, kind: str, reason: str) -> None:
        self.kind = kind
        self.reason = reason
        super().__init__(f"signed {kind}: {reason}")
