"""What crosses the wire between the control plane and a device, and nothing else.

Invariants: every size and count that comes from the wire is bounded before memory is taken for it; hostile or
broken input raises :class:`~skerry_contract.errors.WireError` with the field, what was expected and what came.
"""

from skerry_contract.errors import ContractError, SignatureError, WireError

__all__ = ["ContractError", "SignatureError", "WireError"]
