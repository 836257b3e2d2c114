"""Which chunk is sent next, and to whom. Pure; times are monotonic seconds.

Devices say what they lack of a file. For a short time the server gathers, so that devices which were told of a release
together are served together; then it passes through the file and broadcasts every chunk that enough devices lack
(:func:`~skerry_server.delivery.pacing.broadcast_from`), no faster than the slowest quartile takes it. A device that
joins in the middle of a pass gets what is ahead with the others. After a pass devices say what they lost, and once
everybody has spoken or :data:`SETTLE_S` has passed the next one begins: what many lack is broadcast again, what few
lack is sent to each of them alone.

Invariants:

* Nothing counts as delivered because it was sent, only because a bitmap says so.
* A chunk is never sent to a device that it may still reach: see :mod:`skerry_server.delivery.receiver`.
* At most :data:`ALONE` chunks are on their way to single devices.
* A device that stands still holds a pass up for at most :data:`~skerry_server.delivery.pacing.STALL_S`, and only if a
  quarter of the sample does; one that is silent for :data:`FORGET_S` is forgotten and asks again.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from skerry_contract.sampling import EVERY_RANK, rank
from skerry_server.delivery.pacing import (
    LEAD,
    REPORT_EVERY,
    SAMPLE,
    STALL_S,
    Window,
    broadcast_from,
    quartile_lead,
)
from skerry_server.delivery.receiver import Broadcasts, Journey, Receiver, bitmap, members

#: The server gathers devices for a file that nobody was asking for until none has come for so long, and at most
#: (seconds).
GATHER_S = 0.1
GATHER_MOST_S = 0.5
#: A chunk that was broadcast so shortly before a device's first request is taken to be on its way to it (seconds).
LISTENING_S = 1.0
#: After a pass, how long devices have to say what they lost (seconds); longer than they are quiet before they ask.
SETTLE_S = 1.5
#: Chunks sent to one device each that are not confirmed, of all files and devices: the broker keeps each in its memory,
#: where a broadcast is kept once. Half of them are for devices that have confirmed something before. After so long
#: (seconds) the broker is taken to have passed them on or dropped them.
ALONE = 192
ALONE_S = 30.0
#: How long a device may be silent, longer than it ever waits before it asks again (seconds).
FORGET_S = 90.0
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
class Request:
    """What a device says of one file.

    Attributes:
        device_id: Who.
        missing: Bitmap of the chunks that it lacks; 0 lets it go.
        count: Chunks of the file.
        window: Messages that it can take at once.
        quiet_s: For how long it has heard nothing of the file (seconds).
    """

    device_id: str
    missing: int
    count: int
    window: int = 8
    quiet_s: float = 0.0


@dataclass(frozen=True)
class Send:
    """One message to be published.

    Attributes:
        file: Which file.
        index: Which chunk.
        device_id: The only device that gets it; None for a broadcast.
        report_below: Devices whose rank is below it report.
        report_every: After so many new chunks.
    """

    file: FileKey
    index: int
    device_id: str | None
    report_below: int
    report_every: int


class BusyError(Exception):
    """More files or devices than are served at once; the device asks again later."""


class _Delivery:
    """One file on its way to its devices."""

    def __init__(self, file: FileKey, count: int, now: float) -> None:
        self.file = file
        self.receivers: dict[str, Receiver] = {}
        self.count = count
        self._broadcasts = Broadcasts(count)
        self._journey = Journey()
        self._lacking = np.zeros(count, dtype=np.int32)  # devices that share the need of each chunk
        self._passing = False
        self._passed_at = -float("inf")
        self._position = 0
        self._few = 0  # chunks that are sent to each who needs them alone
        self._turn = True
        self._first_at = self._joined_at = now
        self._below = EVERY_RANK
        self._drawn = False

    def take_in(self, request: Request, now: float) -> None:
        """A device says what it lacks; ``request.missing`` is not 0."""
        receiver = self.receivers.get(request.device_id)
        if receiver is None:
            # A device listens before it asks: what was broadcast while its request was on its way comes to it too.
            flying = request.missing & self._broadcasts.since(now - LISTENING_S)
            receiver = Receiver(
                rank=rank(request.device_id, bytes.fromhex(self.file.sha256_hex)),
                window=Window(1),
                lacks=request.missing,
                needs=request.missing & ~flying,
                flying=flying,
                heard_at=now,
                expected_from=self._broadcasts.sent,
                oldest=self._broadcasts.oldest(flying),
            )
            self.receivers[request.device_id] = receiver
            self._recount(0, receiver.shares)
            self._joined_at = now
            self._drawn = False
        else:
            before = receiver.shares
            receiver.report(request.missing, request.quiet_s, self._broadcasts, self._journey, now)
            self._recount(before, receiver.shares)
        receiver.window.allow(request.window)

    def leave(self, device_id: str) -> None:
        """A device has everything, or is gone."""
        receiver = self.receivers.pop(device_id, None)
        if receiver is not None:
            self._recount(receiver.shares, 0)
            self._drawn = False

    def alone(self, since: float) -> int:
        """Chunks that were sent to one device each after ``since`` and are not confirmed."""
        return sum(time > since for one in self.receivers.values() if one.alone for time in one.alone.values())

    def next(self, now: float, *, alone: int) -> Send | None:
        """The next message, which counts as sent; None while nothing may be.

        Args:
            now: The time.
            alone: Chunks that are on their way to single devices, of all files.
        """
        if now < min(self._joined_at + GATHER_S, self._first_at + GATHER_MOST_S):
            return None
        if not self._passing and self._settled(now):
            many = self._many()
            self._passing, self._position = bool(many.any()), 0
            self._few = bitmap(np.flatnonzero(~many & (self._lacking > 0)), self.count)
        self._turn = not self._turn
        if self._turn:
            return self._alone(now, alone) or self._broadcast(now)
        return self._broadcast(now) or self._alone(now, alone)

    def forget_silent(self, now: float) -> None:
        """Let devices go that have said nothing for long."""
        for name in [name for name, one in self.receivers.items() if now - one.heard_at > FORGET_S]:
            self.leave(name)

    def _recount(self, before: int, after: int) -> None:
        if gone := before & ~after:
            self._lacking[members(gone, self.count)] -= 1
        if new := after & ~before:
            self._lacking[members(new, self.count)] += 1

    def _many(self) -> npt.NDArray[np.bool_]:
        """Of each chunk, whether so many lack it that it is broadcast."""
        return self._lacking >= self._broadcast_from()

    def _broadcast_from(self) -> int:
        return broadcast_from(sum(not one.stalled for one in self.receivers.values()))

    def _settled(self, now: float) -> bool:
        """Whether everybody has spoken after the last pass, or had the time to."""
        return now >= self._passed_at + SETTLE_S or not any(one.flying for one in self.receivers.values())

    def _keeps_up(self, now: float) -> bool:
        """Whether the slowest quartile does; those who hold it up for too long are given up."""
        self._draw()
        sample = [one for one in self.receivers.values() if one.sampled and not one.stalled]
        sent = self._broadcasts.sent
        if quartile_lead(one.lead(sent) for one in sample) < LEAD:
            return True
        for one in sample:
            if one.lead(sent) >= LEAD and one.unmoved_since is not None and now >= one.unmoved_since + STALL_S:
                self._recount(one.shares, 0)
                one.give_up()
                self._drawn = False
        return False

    def _draw(self) -> None:
        """Choose the sample anew after devices came or went."""
        if self._drawn:
            return
        alive = [one for one in self.receivers.values() if not one.stalled]
        ranks = heapq.nsmallest(SAMPLE, (one.rank for one in alive))
        self._below = ranks[-1] + 1 if len(alive) > SAMPLE else EVERY_RANK
        for one in self.receivers.values():
            chosen = one.rank < self._below
            if chosen and not one.sampled:
                one.expected_from = self._broadcasts.sent
            one.sampled = chosen
        self._drawn = True

    def _broadcast(self, now: float) -> Send | None:
        if not self._passing or not self._keeps_up(now):
            return None
        many = self._many()[self._position :]
        if not many.any():
            self._passing, self._passed_at = False, now
            return None
        index = self._position + int(many.argmax())
        self._position = index + 1
        self._broadcasts.add(index, now)
        self._lacking[index] = 0
        bit = 1 << index
        for one in self.receivers.values():
            if one.shares & bit:
                one.broadcast(bit, self._broadcasts.sent, now)
        return Send(self.file, index, None, self._below, REPORT_EVERY)

    def _alone(self, now: float, alone: int) -> Send | None:
        if alone >= ALONE:
            return None
        least = self._broadcast_from()
        for name, one in self.receivers.items():
            bits = one.needs if one.stalled else one.needs & self._few
            if bits and len(one.alone) < one.window.size and (one.moved or alone < ALONE // 2):
                index = (bits & -bits).bit_length() - 1
                if not one.stalled:
                    if self._lacking[index] >= least:  # more have come to lack it since the pass began
                        continue
                    self._lacking[index] -= 1
                one.sent_alone(index, now)
                self.receivers[name] = self.receivers.pop(name)  # to the end: devices take turns
                return Send(self.file, index, name, EVERY_RANK, one.window.report_every)
        return None


class Carousel:
    """Everything that is asked for. Owned by one thread."""

    def __init__(self) -> None:
        self._deliveries: dict[FileKey, _Delivery] = {}
        self._swept_at = -float("inf")

    def want(self, file: FileKey, request: Request, now: float) -> None:
        """Take in what a device says that it lacks.

        Raises:
            BusyError: Too many files, or too many devices for this one; nothing is changed.
        """
        delivery = self._deliveries.get(file)
        if not request.missing:
            if delivery is not None:
                delivery.leave(request.device_id)
                self._end_if_done(delivery)
            return
        if delivery is None:
            if len(self._deliveries) >= FILES:
                raise BusyError(f"{FILES} files are being delivered")
            delivery = self._deliveries[file] = _Delivery(file, request.count, now)
        if request.device_id not in delivery.receivers and len(delivery.receivers) >= DEVICES:
            raise BusyError(f"{DEVICES} devices are waiting for this file")
        delivery.take_in(request, now)

    def take(self, count: int, now: float) -> list[Send]:
        """The next ``count`` messages at most, one of each file in turn; they count as sent."""
        self._sweep(now)
        sends: list[Send] = []
        alone = sum(delivery.alone(now - ALONE_S) for delivery in self._deliveries.values())
        quiet = 0
        while len(sends) < count and quiet < len(self._deliveries):
            file, delivery = next(iter(self._deliveries.items()))
            del self._deliveries[file]  # to the end: files take turns
            self._deliveries[file] = delivery
            send = delivery.next(now, alone=alone)
            quiet = 0 if send else quiet + 1
            if send:
                sends.append(send)
                alone += send.device_id is not None
        return sends

    def count_of(self, file: FileKey) -> int | None:
        """Chunks of a file that is being delivered; None of any other."""
        delivery = self._deliveries.get(file)
        return None if delivery is None else delivery.count

    def drop(self, file: FileKey) -> list[str]:
        """Forget a file; returns the devices that were waiting for it."""
        delivery = self._deliveries.pop(file, None)
        return [] if delivery is None else list(delivery.receivers)

    @property
    def devices(self) -> int:
        """Devices that lack something, counted once per file."""
        return sum(len(delivery.receivers) for delivery in self._deliveries.values())

    @property
    def idle(self) -> bool:
        """Whether nobody lacks anything."""
        return not self._deliveries

    def _end_if_done(self, delivery: _Delivery) -> None:
        if not delivery.receivers:
            del self._deliveries[delivery.file]

    def _sweep(self, now: float) -> None:
        if now - self._swept_at < 1.0:
            return
        self._swept_at = now
        for delivery in list(self._deliveries.values()):
            delivery.forget_silent(now)
            self._end_if_done(delivery)
