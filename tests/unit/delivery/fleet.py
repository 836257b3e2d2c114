"""A fleet in simulated time: the real carousel, the devices' real pacers, and a broker with a queue per device."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable
from dataclasses import dataclass, field

from skerry_agent.update.pacing import RequestPacer
from skerry_contract.sampling import EVERY_RANK, rank
from skerry_server.delivery.carousel import Carousel, FileKey, Request, Send

FILE = FileKey("ab" * 32, 122_880)
#: Time that a message takes, and time between two looks of the server (seconds).
LATENCY_S = 0.005
SERVER_S = 0.02
#: Chunks that the broker keeps for a device that is behind; the newest are dropped.
QUEUE = 42


@dataclass
class Device:
    """One that wants the file.

    Attributes:
        name: Who.
        missing: Bitmap.
        per_chunk_s: How long it takes to take a chunk.
        joins_at: When it asks for the first time.
        loses: Whether it loses a chunk, by index and by how often that chunk came before.
        deaf: Whether chunks come to it at all, by time; it asks all the same.
        mute: It never says anything after its first request.
        window: What it says it can take.
    """

    name: str
    missing: int
    per_chunk_s: float = 0.001
    joins_at: float = 0.0
    loses: Callable[[int, int], bool] = lambda index, before: False
    deaf: Callable[[float], bool] = lambda now: False
    mute: bool = False
    window: int = 8
    done_at: float | None = None
    pacer: RequestPacer = field(default_factory=RequestPacer)
    queue: list[Send] = field(default_factory=list)
    came: dict[int, int] = field(default_factory=dict)
    requests: int = 0
    most_alone: int = 0
    _woken_at: float = -1.0


class Fleet:
    """Runs until every healthy device is complete."""

    def __init__(self, devices: list[Device], count: int) -> None:
        self.now = 0.0
        self.count = count
        self.carousel = Carousel()
        self.devices = {device.name: device for device in devices}
        self.sends: list[tuple[float, Send]] = []
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._number = itertools.count()
        for device in devices:
            place = rank(device.name, bytes.fromhex(FILE.sha256_hex))
            device.pacer.spread = place / EVERY_RANK
            self._at(device.joins_at, lambda device=device: self._ask(device))  # type: ignore[misc]  # bound now

    def run(self, *, until: Callable[[], bool] | None = None, limit_s: float = 600.0) -> None:
        """Go on until ``until`` says so; by default until everybody that hears is complete."""
        finished = until or (lambda: all(one.done_at is not None for one in self.devices.values()))
        self._at(self.now, self._serve)
        while not finished():
            self.now, _, event = heapq.heappop(self._events)
            if self.now > limit_s:
                left = [one.name for one in self.devices.values() if one.done_at is None]
                raise AssertionError(f"not finished after {limit_s} simulated seconds: {left[:5]}")
            event()

    @property
    def broadcasts(self) -> int:
        return sum(send.device_id is None for _, send in self.sends)

    @property
    def alone(self) -> int:
        return len(self.sends) - self.broadcasts

    def _at(self, time: float, event: Callable[[], None]) -> None:
        heapq.heappush(self._events, (time, next(self._number), event))

    def _serve(self) -> None:
        for send in self.carousel.take(16, self.now):
            self.sends.append((self.now, send))
            self._at(self.now + LATENCY_S, lambda send=send: self._deliver(send))  # type: ignore[misc]  # bound now
        self._at(self.now + SERVER_S, self._serve)

    def _deliver(self, send: Send) -> None:
        for device in [self.devices[send.device_id]] if send.device_id else list(self.devices.values()):
            listens = device.joins_at <= self.now and device.done_at is None and not device.deaf(self.now)
            if listens and len(device.queue) < QUEUE:
                device.queue.append(send)
                if len(device.queue) == 1:
                    self._at(self.now + device.per_chunk_s, lambda device=device: self._take(device))  # type: ignore[misc]  # bound now

    def _take(self, device: Device) -> None:
        send = device.queue.pop(0)
        if device.queue:
            self._at(self.now + device.per_chunk_s, lambda: self._take(device))
        before = device.came.get(send.index, 0)
        device.came[send.index] = before + 1
        if device.done_at is not None or device.loses(send.index, before) or not device.missing >> send.index & 1:
            return
        device.missing &= ~(1 << send.index)
        place = rank(device.name, bytes.fromhex(FILE.sha256_hex))
        device.pacer.heard(self.now, report_every=send.report_every if place < send.report_below else 0)
        if not device.missing:
            device.done_at = self.now
            self._say(device)
            return
        self._wake(device)

    def _wake(self, device: Device) -> None:
        due = max(self.now, device.pacer.due)
        if due != device._woken_at and not device.mute:
            device._woken_at = due
            self._at(due, lambda: self._ask(device))

    def _ask(self, device: Device) -> None:
        if device.done_at is not None:
            return
        if device.pacer.due <= self.now:
            self._say(device)
            device.pacer.asked(self.now)
        self._wake(device)

    def _say(self, device: Device) -> None:
        device.requests += 1
        request = Request(device.name, device.missing, self.count, device.window, device.pacer.quiet_for(self.now))
        self._at(self.now + LATENCY_S, lambda: self.carousel.want(FILE, request, self.now))
