"""What the server believes of one device that wants one file. Pure; bitmaps are integers, bit i for chunk i.

A chunk that the device lacks is in exactly one of three places: still to be sent (``needs``), broadcast and not
confirmed (``flying``), or sent to it alone and not confirmed (``alone``). Only the device's own bitmap confirms.

A chunk on its way counts as lost, and is to be sent again, in two cases. The messages of a topic arrive in order (MQTT
5, section 4.6), so whoever lacks a chunk and has a later one has lost it. And whoever has heard nothing for
:data:`LOST_S` will not hear what was sent longer ago than twice the time that a chunk usually takes, a time that the
reports of the fleet tell (:class:`Journey`): with many devices a busy broker needs many seconds for one.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from skerry_server.delivery.pacing import Window

#: After so long without a chunk a device has lost what was sent to it before (seconds).
LOST_S = 1.0


def members(bits: int, count: int) -> npt.NDArray[np.intp]:
    """Indices of the set bits of a bitmap of ``count`` bits, ascending."""
    data = np.frombuffer(bits.to_bytes(-(-count // 8), "little"), dtype=np.uint8)
    return np.flatnonzero(np.unpackbits(data, count=count, bitorder="little"))


def bitmap(indices: npt.NDArray[np.intp], count: int) -> int:
    """The bitmap of some indices below ``count``."""
    flags = np.zeros(count, dtype=np.uint8)
    flags[indices] = 1
    return int.from_bytes(np.packbits(flags, bitorder="little").tobytes(), "little")


@dataclass
class Journey:
    """How long chunks take from the server to a confirmation, as a sender of TCP knows its round trips.

    Attributes:
        usual_s: The longest of late (seconds).
    """

    usual_s: float = 0.0

    def took(self, seconds: float) -> None:
        """A chunk was confirmed."""
        self.usual_s = max(seconds, 0.9 * self.usual_s + 0.1 * seconds)

    @property
    def patience_s(self) -> float:
        """After how long a chunk that is waited for will not come any more (seconds)."""
        return max(LOST_S, 2.0 * self.usual_s)


class Broadcasts:
    """Every chunk's last broadcast in one delivery of a file.

    Attributes:
        sent: Broadcasts so far; they are numbered from 1.
        last_at: Time of the last one.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self.sent = 0
        self.last_at = -float("inf")
        self._numbers = np.zeros(count, dtype=np.int64)
        self._times = np.full(count, -np.inf)

    def add(self, index: int, now: float) -> None:
        """Chunk ``index`` is broadcast."""
        self.sent += 1
        self.last_at = now
        self._numbers[index] = self.sent
        self._times[index] = now

    def since(self, time: float) -> int:
        """Bitmap of the chunks that were broadcast after ``time``."""
        return bitmap(np.flatnonzero(self._times > time), self.count) if self.last_at > time else 0

    def latest(self, bits: int) -> int:
        """Number of the latest broadcast among some chunks; 0 of none."""
        return int(self._numbers[members(bits, self.count)].max(initial=0))

    def latest_at(self, bits: int) -> float:
        """Time of the latest broadcast among some chunks."""
        return float(self._times[members(bits, self.count)].max(initial=-np.inf))

    def oldest(self, bits: int) -> int:
        """Number of the oldest among the last broadcasts of some chunks; 0 of none."""
        return int(self._numbers[members(bits, self.count)].min()) if bits else 0

    def before(self, bits: int, *, number: int, time: float) -> int:
        """Those of some chunks whose last broadcast is earlier than ``number``, or not later than ``time``."""
        indices = members(bits, self.count)
        gone = (self._numbers[indices] < number) | (self._times[indices] <= time)
        return bitmap(indices[gone], self.count)


@dataclass
class Receiver:
    """One device.

    Attributes:
        rank: Its place in the draw for the sample.
        window: What it may be sent alone.
        lacks: Bitmap of what it lacked when it spoke last.
        needs: Bitmap of chunks to be sent.
        flying: Bitmap of chunks that were broadcast and are not confirmed.
        alone: Chunks sent to it alone and not confirmed, in their order, with their times.
        heard_at: Time of its last request.
        unmoved_since: Since when it has been sent broadcasts and has confirmed none; None if it has been sent none.
        sampled: Whether it is asked to report.
        expected_from: Broadcasts after this number count for its lead.
        oldest: Number of the oldest broadcast that is flying; 0 if none is.
        moved: It has confirmed something.
        stalled: It stood still while others waited for it, and has not taken anything since: what it lacks is sent to
            it alone.
    """

    rank: int
    window: Window
    lacks: int
    needs: int
    flying: int
    heard_at: float
    unmoved_since: float | None = None
    alone: dict[int, float] = field(default_factory=dict)
    sampled: bool = False
    expected_from: int = 0
    oldest: int = 0
    moved: bool = False
    stalled: bool = False

    def lead(self, sent: int) -> int:
        """How many broadcasts ahead of it the server is."""
        return sent - max(self.oldest - 1, self.expected_from) if self.flying else 0

    @property
    def shares(self) -> int:
        """Bitmap of the chunks that it needs as others do."""
        return 0 if self.stalled else self.needs

    def broadcast(self, bit: int, number: int, now: float) -> None:
        """One of the chunks that it shares was broadcast."""
        if self.unmoved_since is None:
            self.unmoved_since = now
        self.needs &= ~bit
        self.oldest = self.oldest if self.flying else number
        self.flying |= bit

    def sent_alone(self, index: int, now: float) -> None:
        """One of the chunks that it needs was sent to it alone."""
        self.needs &= ~(1 << index)
        self.alone[index] = now

    def report(self, missing: int, quiet_s: float, broadcasts: Broadcasts, journey: Journey, now: float) -> None:
        """Take in what the device says that it lacks; what it has not lost is left where it is.

        Args:
            missing: Bitmap.
            quiet_s: For how long it has heard nothing.
            broadcasts: Of its file.
            journey: Of its file; learns from what is confirmed at once.
            now: The time.
        """
        arrived = [index for index in self.alone if not missing >> index & 1]
        confirmed = self.flying & ~missing
        if self.sampled and confirmed and quiet_s < LOST_S / 2:
            journey.took(now - broadcasts.latest_at(confirmed))
        cutoff = now - journey.patience_s if quiet_s >= LOST_S else -float("inf")
        flying = self.flying & missing
        lost = broadcasts.before(flying, number=broadcasts.latest(confirmed), time=cutoff) if flying else 0
        self.flying = flying & ~lost
        self.oldest = broadcasts.oldest(self.flying)
        self._report_alone(missing, arrived, cutoff)
        on_its_way = self.flying
        for index in self.alone:
            on_its_way |= 1 << index
        self.needs = missing & ~on_its_way
        self.heard_at = now
        if self.lacks & ~missing:
            self.unmoved_since = now if self.flying else None
            self.moved, self.stalled = True, False
        self.lacks = missing

    def _report_alone(self, missing: int, arrived: list[int], cutoff: float) -> None:
        last = arrived[-1] if arrived else None
        passed = last is not None  # what comes before the last one that arrived
        left: dict[int, float] = {}
        lost = False
        for index, time in self.alone.items():
            passed = passed and index != last
            if not missing >> index & 1:
                continue
            if passed or time <= cutoff:
                lost = True
            else:
                left[index] = time
        self.alone = left
        if lost:
            self.window.lost()
        elif arrived:
            self.window.confirmed()

    def give_up(self) -> None:
        """It stands still: forget what it lacks until it asks again."""
        self.needs = self.flying = self.oldest = 0
        self.alone.clear()
        self.unmoved_since = None
        self.window.size = 1
        self.stalled = True
