"""Keeps the node keys of the site's SuperLink equal to the roster: a device of another site is nobody there."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping

from skerry_server.federation.flower.node_registry import NodeRegistry, plan

logger = logging.getLogger(__name__)

#: Most changes in one step.
CHANGES = 200


class SiteKeys:
    """For one thread."""

    def __init__(self, open_registry: Callable[[], NodeRegistry]) -> None:
        """``open_registry`` makes that of the site's SuperLink at the first step; it imports Flower."""
        self._open_registry = open_registry
        self._registry: NodeRegistry | None = None
        self._said: set[str] = set()

    def step(self, wanted: Mapping[str, bytes]) -> int:
        """Make the SuperLink's list equal to ``wanted``; returns how many of those devices are connected.

        Raises:
            RegistryError: The SuperLink cannot be reached.
        """
        registry = self._registry = self._registry or self._open_registry()
        known = registry.nodes()
        changes = plan(wanted, known, limit=CHANGES)
        for node_id in changes.unregister:
            registry.unregister(node_id)
        refused = {device for device, key in changes.register if not registry.register(device, key)}
        for device in sorted({*refused, *changes.burnt} - self._said):
            logger.warning("device %s cannot join: its node key was cut off here once; enrol it again", device)
        self._said = refused | set(changes.burnt)
        if changes.unregister or changes.register:
            logger.info("node keys: %d to register, %d cut off", len(changes.register), len(changes.unregister))
        keys = set(wanted.values())
        return sum(node.online and node.public_key in keys for node in known)
