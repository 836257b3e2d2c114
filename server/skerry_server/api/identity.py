"""API tokens in the store: only their SHA-256 is kept, so that a copy of the database opens nothing."""

from __future__ import annotations

import hashlib
import secrets

import sqlalchemy as sa
from sqlalchemy.orm import Session

from skerry_server.api.access import ROLES, Principal, UnauthenticatedError, bearer_token
from skerry_server.audit import ledger
from skerry_server.clock import now_ms
from skerry_server.errors import ConflictError, InvalidRequestError, NotFoundError
from skerry_server.store.tables import ApiToken

#: Longest name of a token (characters).
NAME_CHARACTERS = 63


def token_digest(token: str) -> str:
    """What the store keeps of a token: hexadecimal SHA-256."""
    return hashlib.sha256(token.encode()).hexdigest()


def authenticate(session: Session, header: str | None) -> Principal:
    """The caller behind an ``authorization`` header.

    Raises:
        UnauthenticatedError: The header is missing or malformed, or the token is unknown or revoked.
    """
    row = session.get(ApiToken, token_digest(bearer_token(header)))
    if row is None or row.revoked:
        raise UnauthenticatedError("this API token is not valid")
    return Principal(name=row.name, role=row.role)


def create_api_token(session: Session, *, name: str, role: str, actor: str) -> str:
    """Make a token; its text is returned here and kept nowhere.

    Args:
        session: A writing session.
        name: Who will use it; the actor in the audit ledger. 1 to 63 printable characters, unique among valid tokens.
        role: One of :data:`~skerry_server.api.access.ROLES`.
        actor: Who asks.

    Raises:
        InvalidRequestError: A bad name or role.
        ConflictError: A valid token of this name exists.
    """
    if not 1 <= len(name) <= NAME_CHARACTERS or not name.isprintable() or name != name.strip():
        raise InvalidRequestError("name", expected=f"1 to {NAME_CHARACTERS} printable characters", got=name)
    if role not in ROLES:
        raise InvalidRequestError("role", expected=" or ".join(ROLES), got=role)
    taken = sa.select(ApiToken.token_sha256).where(ApiToken.name == name, ApiToken.revoked.is_(False))
    if session.execute(taken).first() is not None:
        raise ConflictError(f"there is already an API token named {name!r}; revoke it first")
    token = secrets.token_urlsafe(32)
    session.add(ApiToken(token_sha256=token_digest(token), name=name, role=role, created_ms=now_ms()))
    ledger.append(session, actor=actor, action="api-token.create", subject=name, detail={"role": role})
    return token


def revoke_api_token(session: Session, *, name: str, actor: str) -> None:
    """Make the valid token named ``name`` useless.

    Raises:
        NotFoundError: There is none.
        ConflictError: It is the last valid token of an admin; nobody could make another one.
    """
    valid = session.scalars(sa.select(ApiToken).where(ApiToken.revoked.is_(False))).all()
    row = next((token for token in valid if token.name == name), None)
    if row is None:
        raise NotFoundError("API token", name)
    if row.role == "admin" and sum(token.role == "admin" for token in valid) == 1:
        raise ConflictError(f"{name!r} is the last valid admin token; create another one first")
    row.revoked = True
    ledger.append(session, actor=actor, action="api-token.revoke", subject=name, detail={"role": row.role})
