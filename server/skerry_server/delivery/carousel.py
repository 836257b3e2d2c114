"""Which chunk is sent next, and to whom. Pure; times are monotonic seconds.

Devices announce what they lack of a file. For a short time the server gathers, so that devices which were told of a
release together are served together; then it goes through the file in order. A chunk that at least
:data:`BROADCAST_DEVICES` devices lack is broadcast once, one that a single device lacks is sent to it alone. A device
that joins in the middle of a pass gets what is ahead with the others, and what it missed in the next pass.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

#: Devices that must lack a chunk before it is broadcast.
BROADCAST_DEVICES = 2
#: How long the server gathers requests for a file that nobody was asking for (seconds).
GATHER_S = 0.15
#: Files and devices per file that are served at once.
FILES = 1_024
DEVICES = 10_000


@dataclass(frozen=True, order=True)
class FileKey:
    """A file cut in a certain way.

    Attributes:
        sha256_hex: Digest of the file.
        chunk_bytes: Size of every chunk but the last.
    """

    sha256_hex: str
    chunk_bytes: int


@dataclass(frozen=True)
class Send:
    """One message to be published.

    Attributes:
        file: Which file.
        index: Which chunk.
        device_id: The only device that lacks it; None for a broadcast.
    """

    file: FileKey
    index: int
    device_id: str | None


class BusyError(Exception):
    """More files or devices than are served at once; the device asks again later."""


@dataclass
class _Demand:
    """Missing chunks of one file, a bit per chunk, by device."""

    ready_at: float
    missing: dict[str, int] = field(default_factory=dict)
    position: int = 0

    def lowest(self) -> tuple[int, list[str]]:
        """The next chunk of the pass that somebody lacks, and who; the pass begins anew at the end of the file."""
        anybody = 0
        for bits in self.missing.values():
            anybody |= bits
        ahead = anybody >> self.position << self.position
        chosen = ahead or anybody
        bit = chosen & -chosen
        return bit.bit_length() - 1, [device for device, bits in self.missing.items() if bits & bit]


class Carousel:
    """Everything that is asked for. Owned by one thread."""

    def __init__(self) -> None:
        self._demands: dict[FileKey, _Demand] = {}

    def want(self, file: FileKey, device_id: str, missing: Iterable[int], now: float) -> None:
        """Replace what ``device_id`` lacks of ``file``.

        Raises:
            BusyError: Too many files, or too many devices for this one; nothing is changed.
        """
        bits = 0
        for index in missing:
            bits |= 1 << index
        demand = self._demands.get(file)
        if demand is None:
            if not bits:
                return
            if len(self._demands) >= FILES:
                raise BusyError(f"{FILES} files are being delivered")
            demand = self._demands[file] = _Demand(ready_at=now + GATHER_S)
        if bits and device_id not in demand.missing and len(demand.missing) >= DEVICES:
            raise BusyError(f"{DEVICES} devices are waiting for this file")
        if bits:
            demand.missing[device_id] = bits
        else:
            demand.missing.pop(device_id, None)
        if not demand.missing:
            del self._demands[file]

    def take(self, count: int, now: float) -> list[Send]:
        """The next ``count`` messages at most, a chunk of each file in turn; they count as sent."""
        sends: list[Send] = []
        while len(sends) < count:
            ready = [(file, demand) for file, demand in self._demands.items() if demand.ready_at <= now]
            if not ready:
                break
            for file, demand in ready[: count - len(sends)]:
                sends.extend(self._next(file, demand))
        return sends

    def _next(self, file: FileKey, demand: _Demand) -> list[Send]:
        index, devices = demand.lowest()
        demand.position = index + 1
        for device in devices:
            demand.missing[device] &= ~(1 << index)
            if not demand.missing[device]:
                del demand.missing[device]
        # The file goes to the end of the queue, or out of it.
        del self._demands[file]
        if demand.missing:
            self._demands[file] = demand
        if len(devices) >= BROADCAST_DEVICES:
            return [Send(file, index, None)]
        return [Send(file, index, device) for device in devices]

    def drop(self, file: FileKey) -> list[str]:
        """Forget a file; returns the devices that were waiting for it."""
        demand = self._demands.pop(file, None)
        return [] if demand is None else list(demand.missing)

    @property
    def devices(self) -> int:
        """Devices that wait for something, counted once per file."""
        return sum(len(demand.missing) for demand in self._demands.values())

    @property
    def idle(self) -> bool:
        """Whether nobody waits for anything."""
        return not self._demands
