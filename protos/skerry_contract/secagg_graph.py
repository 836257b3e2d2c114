"""Who shares masks and secrets with whom, and how many must stay. Pure.

Up to :data:`COMPLETE` devices everybody is everybody's neighbour (Bonawitz et al., CCS 2017, arXiv 1611.04482). Above,
each has :data:`DEGREE` neighbours on a ring whose order nobody chooses: it follows from a digest over all keys (Bell et
al., CCS 2020, eprint 2020/704: a Harary graph under a random permutation).

The threshold is above two thirds in both cases: with more signatures than that, two different sets of survivors cannot
both be confirmed while fewer than a third of the devices collude.
"""

from __future__ import annotations

import hashlib

#: Fewest devices whose sum hides anything.
MINIMUM_DEVICES = 3
#: Most devices of a session.
MAXIMUM_DEVICES = 1024
#: Up to here the graph is complete.
COMPLETE = 160
#: Neighbours of a device above that, an even number.
DEGREE = 128
#: Shares that recover a secret among DEGREE neighbours and the device itself, see :func:`threshold`.
_SPARSE_THRESHOLD = 57


def quorum(devices: int) -> int:
    """How many devices must confirm and answer: more than two thirds."""
    return 2 * devices // 3 + 1


def threshold(devices: int) -> int:
    """How many shares give a secret back.

    In a complete graph it equals :func:`quorum`. In a sparse one it lies between the neighbours of a device that
    collude and those that stay: with a fifth of the devices colluding and 30 % lost, both at random, 57 leaves either
    side a chance of at most 2^-34 per device for up to 1024 devices (hypergeometric tails; ``test_secagg_graph``
    computes them).
    """
    return quorum(devices) if devices <= COMPLETE else _SPARSE_THRESHOLD


class Graph:
    """Who holds shares of whose secrets: neighbours, and each device for itself."""

    def __init__(self, devices: int, seed: bytes) -> None:
        """Build.

        Args:
            devices: How many there are, 1 to :data:`MAXIMUM_DEVICES`.
            seed: Digest that orders the ring; says nothing in a complete graph.

        Raises:
            ValueError: Too few or too many devices.
        """
        if not 1 <= devices <= MAXIMUM_DEVICES:
            raise ValueError(f"{devices} devices; 1 to {MAXIMUM_DEVICES} are possible")
        self.devices = devices
        self.threshold = threshold(devices)
        self._ring = sorted(range(devices), key=lambda index: _place(index, seed))
        self._places = {index: place for place, index in enumerate(self._ring)}

    def holders(self, index: int) -> list[int]:
        """The neighbours of a device and itself, ascending. Neighbourhood is mutual."""
        if self.devices <= COMPLETE:
            return list(range(self.devices))
        place = self._places[index]
        return sorted(self._ring[(place + step) % self.devices] for step in range(-DEGREE // 2, DEGREE // 2 + 1))


def _place(index: int, seed: bytes) -> bytes:
    return hashlib.sha256(b"skerry-secagg-ring-v1\0" + seed + index.to_bytes(4, "big")).digest()
