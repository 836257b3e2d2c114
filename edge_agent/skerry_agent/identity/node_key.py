"""The key by which the Flower SuperLink knows this device.

Made on the device (EC P-384, the curve of Flower's own keys), kept in ``identity/node-key.pem`` for the owner only, and
never sent: enrolment hands over the public half, the control plane registers it at the SuperLink, and every request of
the node is signed. The key outlives releases, renewals and restarts. Every enrolment makes a new one, because the
SuperLink never again takes a key that it has cut off.

flwr is not imported here: enrolment needs the public half and must stay light.
"""

from __future__ import annotations

from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)

from skerry_agent.config import AgentLayout
from skerry_agent.errors import DeviceError
from skerry_agent.files import DISK, Disk

#: Name of the key file below the identity folder.
NODE_KEY = "node-key.pem"
_REMEDY = "remove it and enrol the device again: the SuperLink will know it by a new key"


def node_key_path(layout: AgentLayout) -> Path:
    """Where the private key is."""
    return layout.identity / NODE_KEY


def new_node_key() -> ec.EllipticCurvePrivateKey:
    """A key that nobody knows yet."""
    return ec.generate_private_key(ec.SECP384R1())


def public_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    """The public half (PEM, SubjectPublicKeyInfo), as the SuperLink registers it."""
    return key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def write_node_key(layout: AgentLayout, key: ec.EllipticCurvePrivateKey, *, disk: Disk = DISK) -> None:
    """Replace the key of the device by this one, for its owner only.

    Raises:
        OSError: It cannot be written; the old one stands.
    """
    path = node_key_path(layout)
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    disk.write_atomically(path, key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()), mode=0o600)


def load_node_key(layout: AgentLayout, *, disk: Disk = DISK) -> ec.EllipticCurvePrivateKey:
    """Read the private key; a device that has none gets one.

    Raises:
        DeviceError: The file is broken, holds another kind of key, or cannot be read or written.
    """
    path = node_key_path(layout)
    try:
        return _read(path)
    except FileNotFoundError:
        key = new_node_key()
    except OSError as error:
        raise DeviceError(f"{path} cannot be read ({error.strerror})", remedy="correct its permissions") from error
    try:
        write_node_key(layout, key, disk=disk)
    except OSError as error:
        raise DeviceError(f"{path} cannot be written ({error.strerror})", remedy="free space on the disk") from error
    return key


def node_public_key(layout: AgentLayout, *, disk: Disk = DISK) -> bytes:
    """The public half of the device's key, see :func:`public_pem`; makes the key if there is none.

    Raises:
        DeviceError: See :func:`load_node_key`.
    """
    return public_pem(load_node_key(layout, disk=disk))


def _read(path: Path) -> ec.EllipticCurvePrivateKey:
    data = path.read_bytes()
    try:
        key = load_pem_private_key(data, None)
    except (ValueError, TypeError) as error:
        raise DeviceError(f"{path} is broken ({error})", remedy=_REMEDY) from error
    if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, ec.SECP384R1):
        raise DeviceError(f"{path} holds another kind of key than EC P-384", remedy=_REMEDY)
    return key
