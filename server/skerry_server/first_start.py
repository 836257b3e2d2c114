"""What ``skerry up`` does once for a data directory, and makes sure of at every start.

Every step can be repeated: a start that was killed half way is finished by the next one. Nothing that exists is made
anew, so ports, keys and tokens stay what devices and operators were told.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from pydantic import ValidationError

from skerry_server import ports, server_identity
from skerry_server.audit import ledger
from skerry_server.clock import now_ms
from skerry_server.config import ServerConfig, ServerLayout, complete_config
from skerry_server.errors import InvalidRequestError, PlatformError
from skerry_server.files import write_atomically
from skerry_server.fleet.service import ensure_everything
from skerry_server.releases.signing import load_or_create_key
from skerry_server.store.database import Database
from skerry_server.store.migrate import upgrade
from skerry_server.store.tables import ApiToken
from skerry_server.trust import service as trust

_PORT_FIELDS = (
    "api_port",
    "grpc_port",
    "broker_port",
    "broker_tls_port",
    "broker_data_port",
    "device_port",
    "superlink_port",
)

#: Name of the first administrator's token.
ADMIN = "admin"


@dataclass(frozen=True)
class Prepared:
    """A data directory that can be run.

    Attributes:
        config: Its configuration.
        layout: Its paths.
        new_admin_token: The administrator's token if this start made it, else empty.
    """

    config: ServerConfig
    layout: ServerLayout
    new_admin_token: str


def make_folders(layout: ServerLayout) -> None:
    """Make the folders; raises PlatformError if that is not possible."""
    try:
        for folder in (
            layout.root,
            layout.keys,
            layout.pki,
            layout.broker,
            layout.superlink,
            layout.jobs,
            layout.logs,
            layout.run,
        ):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise PlatformError(
            f"the data directory {layout.root} cannot be made ({error.strerror})",
            remedy="choose another with --data-dir, or correct its permissions",
        ) from error


def prepare(layout: ServerLayout, changes: Mapping[str, Any]) -> Prepared:
    """Make a data directory complete. The caller holds its lock.

    Args:
        layout: Paths of the data directory, folders made.
        changes: Settings given on the command line; they are written down and kept.

    Raises:
        PlatformError: Something cannot be read, written or upgraded.
        InvalidRequestError: A setting in ``changes`` is out of range.
    """
    try:
        config = _configuration(layout, changes)
        for path in (layout.server_password, layout.operator_password):
            if not path.exists():
                write_atomically(path, secrets.token_urlsafe(32).encode())
        load_or_create_key(layout)
        server_identity.ensure(config, layout)
        trust.ensure(layout, config.trust)
        upgrade(layout.database_url(config))
        database = Database(layout.database_url(config))
        try:
            token = _fill(database, layout)
        finally:
            database.close()
    except OSError as error:
        raise PlatformError(
            f"the data directory {layout.root} cannot be set up ({error})", remedy="check its permissions and the disk"
        ) from error
    return Prepared(config, layout, token)


def _configuration(layout: ServerLayout, changes: Mapping[str, Any]) -> ServerConfig:
    before: ServerConfig | None = None
    if layout.config.exists():
        before = complete_config(layout, lambda names: _chosen_ports(names, str(changes.get("host", "127.0.0.1"))))
        document = before.model_dump() | dict(changes)
    else:
        document = _chosen_ports(_PORT_FIELDS, str(changes.get("host", "127.0.0.1"))) | dict(changes)
    try:
        changed = ServerConfig.model_validate(document)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"])
        raise InvalidRequestError(name, expected=first["msg"], got=first["input"]) from error
    text = (changed.model_dump_json(indent=2) + "\n").encode()
    if before is None or text != layout.config.read_bytes():
        write_atomically(layout.config, text)
    return changed


def _chosen_ports(names: Sequence[str], host: str) -> dict[str, int]:
    return dict(zip(names, ports.free_ports(host, len(names)), strict=True))


def _fill(database: Database, layout: ServerLayout) -> str:
    """Rows that must exist; returns the administrator's token if it was made now."""
    with database.transaction() as session:
        ensure_everything(session)
        known = session.scalar(
            sa.select(ApiToken.token_sha256).where(ApiToken.role == "admin", ApiToken.revoked.is_(False)).limit(1)
        )
        if known is not None:
            return ""
        # The file comes first: a token that is in the store but nowhere else would lock everybody out.
        token = _read_token(layout.admin_token) or f"skerry-{secrets.token_urlsafe(32)}"
        write_atomically(layout.admin_token, (token + "\n").encode())
        digest = hashlib.sha256(token.encode()).hexdigest()
        session.add(ApiToken(token_sha256=digest, name=ADMIN, role="admin", created_ms=now_ms()))
        ledger.append(session, actor="system", action="api-token.create", subject=ADMIN, detail={"role": "admin"})
        return token


def _read_token(path: Path) -> str:
    return path.read_text().strip() if path.exists() else ""
