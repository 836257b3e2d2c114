"""Who may do what: roles, principals and the errors of refused access. Pure.

Roles are ordered, each includes the ones before it: a *viewer* reads; an *operator* also runs things (trainings,
campaigns, rollouts, cohorts, enrolment); an *approver* also lets things through that a guard rail holds back
(incidents, publishing); an *admin* also changes the rules (policies, API tokens).

>>> Principal(name="ada", role="operator").may("viewer")
True
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from skerry_server.errors import RequestError

Role = Literal["viewer", "operator", "approver", "admin"]
#: From the least to the most powerful.
ROLES: tuple[Role, ...] = get_args(Role)
#: Longest token that is looked at (characters).
TOKEN_CHARACTERS = 256


class UnauthenticatedError(RequestError):
    """The caller did not show a valid token."""

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(reason)


class ForbiddenError(RequestError):
    """The caller's role does not reach.

    Attributes:
        role: What the caller has.
        needed: The least powerful role that may do it.
    """

    def __init__(self, *, role: str, needed: str) -> None:
        self.role = role
        self.needed = needed
        super().__init__(f"this needs the role {needed!r} or a higher one, the token has {role!r}")


@dataclass(frozen=True)
class Principal:
    """A caller whose token was valid.

    Attributes:
        name: What the audit ledger calls the caller.
        role: One of :data:`ROLES`.
    """

    name: str
    role: str

    def may(self, needed: Role) -> bool:
        """Whether this caller's role is ``needed`` or a higher one; an unknown role may nothing."""
        return self.role in ROLES and ROLES.index(self.role) >= ROLES.index(needed)

    def require(self, needed: Role) -> None:
        """Raise :class:`ForbiddenError` unless :meth:`may`."""
        if not self.may(needed):
            raise ForbiddenError(role=self.role, needed=needed)


def bearer_token(header: str | None) -> str:
    """The token of an ``authorization`` header or metadata value, ``Bearer <token>``.

    Raises:
        UnauthenticatedError: No header, another scheme, or a token that cannot be one.
    """
    if not header:
        raise UnauthenticatedError("an API token is needed: send 'authorization: Bearer <token>'")
    scheme, _, token = header.partition(" ")
    token = token.strip()
    if scheme.lower() != "bearer" or not token:
        raise UnauthenticatedError("expected 'authorization: Bearer <token>'")
    if len(token) > TOKEN_CHARACTERS or not token.isascii() or not token.isprintable():
        raise UnauthenticatedError("this API token is not valid")
    return token
