"""One round of asking devices and counting answers: deadline, quorum, stragglers, repetition.

The loop trusts nothing that it carries: an answer counts when it is the first valid one of a device that was asked.
It ends when every device has answered for good; or when the quorum is there and the stragglers had their grace; or at
the deadline. Devices, clock and exchange are given, so every fault can be played in a test.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from skerry_server.federation.exchange import Broadcast, Exchange, Reply
from skerry_server.federation.updates import UpdateRejectedError

logger = logging.getLogger(__name__)

#: Takes the fields of one device's answer; raises UpdateRejectedError to reject it.
Accept = Callable[[str, Mapping[str, object]], None]
#: Devices that take part, with the node that each one is now; None while it is not connected.
Resolve = Callable[[], Mapping[str, int | None]]


class RoundFailedError(Exception):
    """Too few devices answered before the deadline.

    Attributes:
        accepted: How many answers counted.
        quorum: How many were needed.
        failures: Device to what became of it.
    """

    def __init__(self, accepted: int, quorum: int, failures: Mapping[str, str]) -> None:
        self.accepted = accepted
        self.quorum = quorum
        self.failures = dict(failures)
        listed = "; ".join(f"{device}: {reason}" for device, reason in sorted(failures.items())[:5])
        super().__init__(f"{accepted} of at least {quorum} devices answered ({listed or 'no device could be asked'})")


@dataclass(frozen=True)
class RoundRules:
    """When a round ends.

    Attributes:
        quorum: Answers that it needs, at least 1.
        deadline_s: Longest wait for them.
        grace_factor: Once the quorum is there, stragglers get this share of the time that it took ...
        grace_s: ... but at least this long (seconds).
        attempts: How often a device is asked when its answer gets lost or is bad.
        repeat_s: Wait before a device is asked again.
        poll_first_s: Wait between two looks for answers; grows by ``poll_factor`` to ``poll_last_s`` while none comes.
        poll_factor: See there.
        poll_last_s: See there.
        resolve_s: How often devices are matched with nodes.
    """

    quorum: int
    deadline_s: float
    grace_factor: float = 1.0
    grace_s: float = 1.0
    attempts: int = 3
    repeat_s: float = 1.0
    poll_first_s: float = 0.05
    poll_factor: float = 1.3
    poll_last_s: float = 0.5
    resolve_s: float = 1.0


@dataclass(frozen=True)
class Collected:
    """What a round brought.

    Attributes:
        asked: Devices that were asked.
        accepted: Devices whose answer counted, in the order of arrival; those counted before a resumption first.
        failures: Device to why its answer did not count.
        dropped: Answers that belonged to nothing: doubled, late or foreign.
        seconds: How long it took.
    """

    asked: tuple[str, ...]
    accepted: tuple[str, ...]
    failures: dict[str, str]
    dropped: int
    seconds: float


@dataclass
class _Progress:
    """Where each device stands."""

    accepted: list[str]
    asked: dict[str, int] = field(default_factory=dict)
    nodes: dict[str, int] = field(default_factory=dict)
    pending: dict[str, str] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    trouble: dict[str, str] = field(default_factory=dict)
    again_at: dict[str, float] = field(default_factory=dict)
    dropped: Counter[str] = field(default_factory=Counter)

    def waiting(self) -> set[str]:
        return set(self.pending.values())

    def failures(self) -> dict[str, str]:
        silent = dict.fromkeys(self.asked, "no answer")
        every = {**silent, **self.trouble, **self.refused}
        return {device: reason for device, reason in every.items() if device not in self.accepted}


class RoundCollector:
    """Runs rounds over one exchange; one thread."""

    def __init__(
        self,
        exchange: Exchange,
        resolve: Resolve,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
        check: Callable[[], None] = lambda: None,
    ) -> None:
        """Prepare.

        Args:
            exchange: Carries the messages.
            resolve: Asked now and then which devices take part as which nodes.
            clock: Seconds.
            sleep: Waits.
            check: Called between polls; raises to end the round, for example when the campaign was aborted.
        """
        self._exchange = exchange
        self._resolve = resolve
        self._clock = clock
        self._sleep = sleep
        self._check = check

    def collect(
        self, broadcast: Broadcast, rules: RoundRules, accept: Accept, *, already: tuple[str, ...] = ()
    ) -> Collected:
        """Ask every device and count answers.

        Args:
            broadcast: What to ask; its ttl is shortened to what is left of the round.
            rules: When to end.
            accept: Called once per device that counts. When it returns, the answer is safe.
            already: Devices that counted before a resumption; not asked again.

        Raises:
            RoundFailedError: The quorum was not reached.
            ExchangeLostError: The run behind the exchange is gone.
        """
        started = self._clock()
        deadline = started + rules.deadline_s
        progress = _Progress(accepted=list(already))
        ends, next_resolve, delay = deadline, started, rules.poll_first_s
        devices: dict[str, int | None] = {}
        while True:  # the last look for answers is at the end, not before it
            self._check()
            now = self._clock()
            if now < ends:
                if now >= next_resolve:
                    devices = dict(self._resolve())
                    next_resolve = now + rules.resolve_s
                self._ask(replace(broadcast, ttl_s=deadline - now), devices, rules, progress, now)
            replies = self._exchange.receive(progress.pending) if progress.pending else []
            for reply in replies:
                self._take(reply, rules, accept, progress)
            if len(progress.accepted) >= rules.quorum:
                took = self._clock() - started
                ends = min(ends, started + took + max(rules.grace_s, rules.grace_factor * took))
            if now >= ends or self._settled(devices, rules, progress):
                break
            delay = rules.poll_first_s if replies else min(rules.poll_last_s, delay * rules.poll_factor)
            self._sleep(min(delay, max(0.0, ends - self._clock())))
        if len(progress.accepted) < rules.quorum:
            raise RoundFailedError(len(progress.accepted), rules.quorum, progress.failures())
        return Collected(
            asked=tuple(dict.fromkeys([*already, *progress.asked])),
            accepted=tuple(progress.accepted),
            failures=progress.failures(),
            dropped=progress.dropped.total(),
            seconds=self._clock() - started,
        )

    def _ask(
        self,
        broadcast: Broadcast,
        devices: Mapping[str, int | None],
        rules: RoundRules,
        progress: _Progress,
        now: float,
    ) -> None:
        waiting = progress.waiting()
        wanted: dict[int, str] = {}
        for device, node_id in devices.items():
            if node_id is None or device in progress.accepted or device in progress.refused:
                continue
            moved = progress.nodes.get(device) != node_id
            due = device not in waiting and now >= progress.again_at.get(device, now)
            if (moved or due) and progress.asked.get(device, 0) < rules.attempts:
                wanted[node_id] = device
        if not wanted:
            return
        sent = self._exchange.send(broadcast, list(wanted))
        for node_id, device in wanted.items():
            progress.asked[device] = progress.asked.get(device, 0) + 1
            progress.nodes[device] = node_id
            if node_id in sent:
                progress.pending[sent[node_id]] = device
            else:
                self._trouble(device, f"node {node_id} cannot be reached", rules, progress)

    def _take(self, reply: Reply, rules: RoundRules, accept: Accept, progress: _Progress) -> None:
        device = progress.pending.pop(reply.message_id, None)
        if device is None or device in progress.accepted:
            progress.dropped["belongs to nothing"] += 1
            return
        if reply.error is not None and reply.error.refused:
            progress.refused[device] = reply.error.reason
            logger.info("%s refuses: %s", device, reply.error.reason)
            return
        if reply.error is not None:
            self._trouble(device, reply.error.reason, rules, progress)
            return
        try:
            accept(device, reply.fields or {})
        except UpdateRejectedError as error:
            self._trouble(device, f"rejected: {error.reason}", rules, progress)
            return
        progress.accepted.append(device)

    def _trouble(self, device: str, reason: str, rules: RoundRules, progress: _Progress) -> None:
        logger.info("%s: %s", device, reason)
        progress.trouble[device] = reason
        progress.again_at[device] = self._clock() + rules.repeat_s

    @staticmethod
    def _settled(devices: Mapping[str, int | None], rules: RoundRules, progress: _Progress) -> bool:
        """Whether waiting is of no use: nobody has a question, and nobody who could be asked makes a difference."""
        if any(device not in progress.accepted for device in progress.waiting()):
            return False
        enough = len(progress.accepted) >= rules.quorum
        for device, node_id in devices.items():
            done = device in progress.accepted or device in progress.refused
            if done or progress.asked.get(device, 0) >= rules.attempts:
                continue
            if node_id is not None or not enough:  # who is away may come back while answers are missing
                return False
        return enough or bool(devices)
