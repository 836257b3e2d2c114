"""``skerry supernode``: nodes of the SuperLink that are no devices of Skerry, such as a stock ``flower-supernode``.

The SuperLink refuses a node whose key is not registered, and its Control API is the operator's alone, so that
``flwr supernode register`` cannot be used. These commands run on the control plane's machine, as the owner of its data
directory, while it runs. Devices are registered by their enrolment and are not touched here.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_pem_public_key,
    load_ssh_public_key,
)

from skerry_server.audit import ledger
from skerry_server.cli.command import group
from skerry_server.config import ServerLayout, default_data_dir, load_config
from skerry_server.errors import ConflictError, InvalidRequestError, NotFoundError, PlatformError
from skerry_server.federation.flower.node_registry import DEVICE_PREFIX, RegisteredNode, RegistryError
from skerry_server.store.database import Database
from skerry_server.superlink import access

if TYPE_CHECKING:
    from skerry_server.federation.flower.nodes import FlowerNodes

#: Largest public key file (bytes).
KEY_BYTES = 8192
#: Longest name of a node.
NAME_CHARACTERS = 64

supernode = group(
    "supernode", help="Nodes of the SuperLink that are no devices: register a stock flower-supernode, list, remove."
)
DataDir = Annotated[Path | None, typer.Option("--data-dir", help="Data directory [SKERRY_SERVER_DIR].")]


@supernode.command("register", epilog="skerry supernode register node1.pub --name lab-1")
def register(
    key: Annotated[Path, typer.Argument(help="Public key: PEM or OpenSSH, EC P-256, P-384 or P-521.")],
    name: Annotated[str, typer.Option("--name", help="What the node is called.")],
    data_dir: DataDir = None,
) -> None:
    """Let a node with this key in."""
    if not 1 <= len(name) <= NAME_CHARACTERS or not name.isprintable() or name.startswith(DEVICE_PREFIX):
        expected = f"1 to {NAME_CHARACTERS} printable characters that do not begin with {DEVICE_PREFIX}"
        raise InvalidRequestError("name", expected=expected, got=name[:80])
    public_key = read_public_key(key)
    layout = _layout(data_dir)
    try:
        if not _nodes(layout).register_as(name, public_key):
            raise ConflictError(f"the SuperLink refuses {key}: it is registered already, or was once removed")
    except RegistryError as error:
        raise _away(error) from error
    _note(layout, "supernode.register", name)
    typer.echo(f"{name} is registered")


@supernode.command("list")
def list_nodes(data_dir: DataDir = None) -> None:
    """List the nodes that are no devices."""
    for node in _operators(_layout(data_dir)):
        typer.echo(f"{node.node_id}\t{node.name}")


@supernode.command("remove", epilog="skerry supernode remove lab-1")
def remove(
    name: Annotated[str, typer.Argument(help="Name of the node.")],
    data_dir: DataDir = None,
) -> None:
    """Cut a node off; its key is never taken again."""
    layout = _layout(data_dir)
    found = [node for node in _operators(layout) if node.name == name]
    if not found:
        raise NotFoundError("supernode", name)
    try:
        for node in found:
            _nodes(layout).unregister(node.node_id)
    except RegistryError as error:
        raise _away(error) from error
    _note(layout, "supernode.remove", name)
    typer.echo(f"{name} is cut off")


def read_public_key(path: Path) -> bytes:
    """A node's public key, as PEM.

    Raises:
        InvalidRequestError: The file is none.
    """
    expected = "a public key, PEM or OpenSSH, on a NIST curve"
    try:
        with path.open("rb") as stream:
            data = stream.read(KEY_BYTES)
        key = load_pem_public_key(data) if data.startswith(b"-----BEGIN") else load_ssh_public_key(data)
    except OSError as error:
        raise InvalidRequestError("key", expected=expected, got=f"{path}: {error.strerror}") from error
    except (ValueError, UnsupportedAlgorithm) as error:
        raise InvalidRequestError("key", expected=expected, got=f"{path}, which cannot be read") from error
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(
        key.curve, ec.SECP256R1 | ec.SECP384R1 | ec.SECP521R1
    ):
        raise InvalidRequestError("key", expected=expected, got=f"{path}, another kind of key")
    return key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def _layout(data_dir: Path | None) -> ServerLayout:
    return ServerLayout((data_dir or default_data_dir()).expanduser().resolve())


def _nodes(layout: ServerLayout) -> FlowerNodes:
    from skerry_server.federation.flower.nodes import FlowerNodes  # a second of imports

    return FlowerNodes(access(load_config(layout), layout))


def _operators(layout: ServerLayout) -> list[RegisteredNode]:
    try:
        nodes = _nodes(layout).nodes()
    except RegistryError as error:
        raise _away(error) from error
    return sorted(
        (node for node in nodes if node.active and not node.name.startswith(DEVICE_PREFIX)), key=lambda node: node.name
    )


def _away(error: RegistryError) -> PlatformError:
    return PlatformError(f"the SuperLink does not answer ({error})", remedy="start it with `skerry up`")


def _note(layout: ServerLayout, action: str, name: str) -> None:
    database = Database(layout.database_url(load_config(layout)))
    try:
        with database.transaction() as session:
            ledger.append(session, actor="operator", action=action, subject=name, detail={})
    finally:
        database.close()
