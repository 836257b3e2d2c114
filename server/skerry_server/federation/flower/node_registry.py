"""Which node keys the SuperLink should have, and what to change so that it has them: pure.

The store decides: every device that is not revoked and has a node key may be a node, and nobody else of ours. The
control plane's nodes are told from an operator's own (stock ``flower-supernode``) by their name, which begins with
:data:`DEVICE_PREFIX`; an operator's are left alone.

>>> known = [RegisteredNode(7, b"old", "device/a", active=True), RegisteredNode(8, b"x", "lab", active=True)]
>>> plan({"a": b"new"}, known, limit=10)
Changes(unregister=(7,), register=(('a', b'new'),), burnt=(), more=False)
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol

#: Begins the name of every node that the control plane registered; the device's identifier follows.
DEVICE_PREFIX = "device/"


@dataclass(frozen=True)
class RegisteredNode:
    """A node as the SuperLink knows it.

    Attributes:
        node_id: Its identifier.
        public_key: PEM.
        name: Given when it was registered.
        active: False once it was unregistered; the SuperLink never takes its key again.
        online: It is connected now.
    """

    node_id: int
    public_key: bytes
    name: str
    active: bool
    online: bool = False


@dataclass(frozen=True)
class Changes:
    """What to do now.

    Attributes:
        unregister: Identifiers of nodes.
        register: Devices and their public keys (PEM).
        burnt: Devices whose key was unregistered once; they need a new key, by enrolment.
        more: Whether the bound left something for the next time.
    """

    unregister: tuple[int, ...]
    register: tuple[tuple[str, bytes], ...]
    burnt: tuple[str, ...]
    more: bool


class NodeRegistry(Protocol):
    """The SuperLink's list of node keys."""

    def nodes(self) -> list[RegisteredNode]:
        """All of them, also those that were unregistered.

        Raises:
            RegistryError: It cannot be reached, or refuses.
        """
        ...

    def register(self, device_id: str, public_key: bytes) -> bool:
        """Register a device's key; false if the SuperLink refuses this key (broken, or it had it once).

        Raises:
            RegistryError: It cannot be reached, or refuses for another reason.
        """
        ...

    def unregister(self, node_id: int) -> None:
        """Cut a node off; one that is not there is no error.

        Raises:
            RegistryError: It cannot be reached, or refuses.
        """
        ...


class RegistryError(Exception):
    """The SuperLink could not be asked; another time it may be."""


def plan(
    wanted: Mapping[str, bytes], known: Iterable[RegisteredNode], *, limit: int, skip: Collection[str] = ()
) -> Changes:
    """What makes the SuperLink's list equal to ``wanted``: cutting off comes before letting in.

    Args:
        wanted: Public key (PEM) by device.
        known: The SuperLink's list.
        limit: Most changes at once.
        skip: Devices that are not registered this time: the SuperLink refused their key a moment ago.
    """
    # Devices that share a key would be one node; whoever is first in the order of the names has it.
    owners: dict[bytes, str] = {}
    for device_id in sorted(wanted):
        owners.setdefault(wanted[device_id], device_id)
    unregister: list[int] = []
    taken: set[bytes] = set()
    burnt_keys: set[bytes] = set()
    for node in known:
        if not node.active:
            burnt_keys.add(node.public_key)
        elif node.name.startswith(DEVICE_PREFIX) and owners.get(node.public_key) != node.name[len(DEVICE_PREFIX) :]:
            unregister.append(node.node_id)
            burnt_keys.add(node.public_key)
        else:
            taken.add(node.public_key)
    missing = [(device, key) for key, device in owners.items() if key not in taken]
    burnt = sorted(device for device, key in missing if key in burnt_keys)
    register = sorted((device, key) for device, key in missing if key not in burnt_keys and device not in skip)
    room = max(0, limit - len(unregister))
    return Changes(
        unregister=tuple(sorted(unregister)[:limit]),
        register=tuple(register[:room]),
        burnt=tuple(burnt),
        more=len(unregister) > limit or len(register) > room,
    )
