"""Keeps the SuperLink's registered node keys equal to the store's devices: whoever is enrolled may be a node.

The store is looked at every second; the SuperLink only when that look shows a change, when a step before could not do
everything, and every ten seconds for the case that the SuperLink lost its state. A revoked device is unregistered
first: from then on the SuperLink refuses every request of its node.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

import sqlalchemy as sa

from skerry_server.context import ServerContext
from skerry_server.federation.flower.node_registry import NodeRegistry, RegistryError, plan
from skerry_server.store.database import Database
from skerry_server.store.tables import Device
from skerry_server.superlink import SuperLinkAccess, access

log = logging.getLogger(__name__)

#: The SuperLink's list is read after so long in any case (seconds).
LOOK_S = 10.0
#: Most changes in one step: a few seconds of requests.
CHANGES = 500

#: What tells whether the devices with a key are the same as before: how many, how many revoked, latest enrolment.
_Mark = tuple[int, int, int]


class NodeKeysController:
    """A :class:`skerry_server.controllers.Controller`."""

    def __init__(
        self,
        database: Database,
        open_registry: Callable[[], NodeRegistry],
        *,
        period_s: float = 1.0,
        look_s: float = LOOK_S,
        changes: int = CHANGES,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """Prepare the controller.

        Args:
            database: The store.
            open_registry: Makes the connection at the first step; it imports Flower.
            period_s: See :class:`skerry_server.controllers.Controller`.
            look_s: See :data:`LOOK_S`.
            changes: See :data:`CHANGES`.
            monotonic: Seconds that only go forward.
        """
        self.name = "node-keys"
        self.period_s = period_s
        self._database = database
        self._open_registry = open_registry
        self._look_s = look_s
        self._changes = changes
        self._monotonic = monotonic
        self._registry: NodeRegistry | None = None
        self._settled: _Mark | None = None
        self._next_look = 0.0
        self._unreachable = ""
        #: Devices whose key was refused since nothing was left to do: the others come first.
        self._refused: set[str] = set()
        #: Keys of devices that cannot train, by device: each is said once.
        self._said: dict[str, bytes] = {}

    def step(self) -> None:
        """Make the SuperLink's list equal to the store, or as much of it as one step may.

        A SuperLink that cannot be reached is no failure of the step: it is being started, and comes back by itself.
        """
        mark = self._mark()
        if mark == self._settled and self._monotonic() < self._next_look:
            return
        self._settled = None
        if self._registry is None:
            self._registry = self._open_registry()
        try:
            done = self._reconcile(self._registry)
        except RegistryError as error:
            if str(error) != self._unreachable:
                log.info("node keys wait for the SuperLink: %s", error)
            self._unreachable = str(error)
            return
        self._unreachable = ""
        if done:
            self._settled = mark
            self._next_look = self._monotonic() + self._look_s

    def _reconcile(self, registry: NodeRegistry) -> bool:
        """Returns whether nothing is left to do."""
        wanted = self._wanted()
        self._said = {device: key for device, key in self._said.items() if wanted.get(device) == key}
        changes = plan(wanted, registry.nodes(), limit=self._changes, skip=self._refused)
        for node_id in changes.unregister:
            registry.unregister(node_id)
        for device_id, key in changes.register:
            if not registry.register(device_id, key):
                self._refused.add(device_id)
        for device_id in {*self._refused, *changes.burnt} & set(wanted):
            self._say(device_id, wanted[device_id])
        if changes.unregister or changes.register:
            log.info("node keys: %d to register, %d cut off", len(changes.register), len(changes.unregister))
        if not changes.more:
            self._refused.clear()
        return not changes.more

    def _say(self, device_id: str, key: bytes) -> None:
        if self._said.get(device_id) != key:
            log.warning("device %s cannot train: the SuperLink refuses its node key; enrol it again", device_id)
            self._said[device_id] = key

    def _mark(self) -> _Mark:
        query = sa.select(
            sa.func.count(),
            sa.func.coalesce(sa.func.sum(sa.cast(Device.revoked, sa.Integer)), 0),
            sa.func.coalesce(sa.func.max(Device.enrolled_ms), 0),
        ).where(Device.node_public_key != "")
        with self._database.reading() as session:
            count, revoked, latest = session.execute(query).one()
        return int(count), int(revoked), int(latest)

    def _wanted(self) -> dict[str, bytes]:
        query = sa.select(Device.id, Device.node_public_key).where(
            Device.revoked.is_(False), Device.node_public_key != ""
        )
        with self._database.reading() as session:
            return {device_id: key.encode() for device_id, key in session.execute(query)}


def node_keys_controller(context: ServerContext) -> NodeKeysController:
    """The controller of a data directory."""
    return NodeKeysController(context.database, lambda: _open(access(context.config, context.layout)))


def _open(superlink: SuperLinkAccess) -> NodeRegistry:
    from skerry_server.federation.flower.nodes import FlowerNodes  # Flower is heavy, and not needed without devices

    return FlowerNodes(superlink)
