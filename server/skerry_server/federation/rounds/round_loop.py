"""One round of asking devices and counting answers: deadline, quorum, stragglers, repetition.

The loop trusts nothing that it carries: an answer counts when it is the first valid one of a device that was asked.
It ends when every device has answered for good, or as many have as are wanted; or when the quorum is there and the
stragglers had their grace; or at the deadline. Devices, clock and exchange are given, so every fault can be played in a
test.

Over-selection: ``at_once`` devices are kept at work, of which the first ``enough`` count. Who refuses, is away or is
silent for too long is replaced by the next one in the order in which the devices are given.
"""

from __future__ import annotations

import logging
import math
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Protocol

from skerry_server.federation.exchange import Broadcast, Exchange, Reply, Waits
from skerry_server.federation.rounds.updates import UpdateRejectedError

logger = logging.getLogger(__name__)

#: Takes the fields of one device's answer; raises UpdateRejectedError to reject it.
Accept = Callable[[str, Mapping[str, object]], None]
#: Devices that take part, in the order in which they are asked, with the node that each one is now; None while it is
#: not connected.
Resolve = Callable[[], Mapping[str, int | None]]


class Question(Protocol):
    """What each device is asked; the lifetime of the messages is the round's."""

    def broadcast(self, device_id: str) -> Broadcast:
        """The question for a device; devices that get the same object are asked together."""
        ...

    def sent(self, device_id: str) -> None:
        """The question is on its way to a device."""
        ...

    def troubled(self, device_id: str, reason: str) -> bool:
        """Hears of an answer that did not count; returns whether the next question is another one that helps.

        Such a device is asked again at once, even when it refused.
        """
        ...


@dataclass(frozen=True)
class SameQuestion:
    """One question for every device."""

    message: Broadcast

    def broadcast(self, device_id: str) -> Broadcast:
        """See :class:`Question`."""
        return self.message

    def sent(self, device_id: str) -> None:
        """See :class:`Question`."""

    def troubled(self, device_id: str, reason: str) -> bool:
        """See :class:`Question`."""
        return False


class RoundFailedError(Exception):
    """Too few devices answered before the deadline.

    Attributes:
        accepted: How many answers counted.
        quorum: How many were needed.
        failures: Device to what became of it.
        used_up: The devices will not answer this round again, whoever asks: the campaign goes on with the next one.
    """

    used_up = False

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
        enough: The round ends as soon as so many answers counted; 0: every device is waited for.
        at_once: How many devices are kept at work, answers that counted included; 0: all.
        patience_s: A device that is silent for so long is replaced by another one where ``at_once`` holds others back;
            its answer still counts (seconds).
        growing: More devices may be given later, so that too few answers are waited for until the deadline.
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
    enough: int = 0
    at_once: int = 0
    patience_s: float = math.inf
    growing: bool = False


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
    asked_at: dict[str, float] = field(default_factory=dict)
    dropped: Counter[str] = field(default_factory=Counter)

    def waiting(self) -> set[str]:
        return set(self.pending.values())

    def at_work(self, now: float, patience_s: float) -> int:
        """Devices that counted, and those whose answer may be expected."""
        expected = {device for device in self.waiting() if now - self.asked_at[device] < patience_s}
        return len(expected.union(self.accepted))

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
        self, question: Broadcast | Question, rules: RoundRules, accept: Accept, *, already: tuple[str, ...] = ()
    ) -> Collected:
        """Ask every device and count answers.

        Args:
            question: What to ask, the same for all or by device; its ttl is what is left of the round.
            rules: When to end.
            accept: Called once per device that counts. When it returns, the answer is safe.
            already: Devices that counted before a resumption; not asked again.

        Raises:
            RoundFailedError: The quorum was not reached.
            ExchangeLostError: The run behind the exchange is gone.
        """
        asking = SameQuestion(question) if isinstance(question, Broadcast) else question
        started = self._clock()
        deadline = started + rules.deadline_s
        progress = _Progress(accepted=list(already))
        ends, next_resolve, delay = deadline, started, rules.poll_first_s
        devices: dict[str, int | None] = {}
        while True:  # the last look for answers is at the end, not before it
            self._check()
            now = self._clock()
            if now < ends and not self._enough(rules, progress):
                if now >= next_resolve:
                    devices = dict(self._resolve())
                    next_resolve = now + rules.resolve_s
                self._ask(asking, deadline - now, devices, rules, progress)
            replies = self._exchange.receive(progress.pending) if progress.pending else []
            for reply in replies:
                if self._enough(rules, progress):
                    break  # what comes after the first k is not wanted, and is not journalled
                self._take(reply, asking, rules, accept, progress)
            if len(progress.accepted) >= rules.quorum:
                took = self._clock() - started
                ends = min(ends, started + took + max(rules.grace_s, rules.grace_factor * took))
            if now >= ends or self._enough(rules, progress) or self._settled(devices, rules, progress):
                break
            delay = rules.poll_first_s if replies else min(rules.poll_last_s, delay * rules.poll_factor)
            left = max(0.0, ends - self._clock())
            if isinstance(self._exchange, Waits) and progress.pending:
                self._exchange.wait(min(rules.resolve_s, left))  # it returns with the first answer
            else:
                self._sleep(min(delay, left))
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
        asking: Question,
        ttl_s: float,
        devices: Mapping[str, int | None],
        rules: RoundRules,
        progress: _Progress,
    ) -> None:
        now = self._clock()
        room = rules.at_once - progress.at_work(now, rules.patience_s) if rules.at_once else len(devices)
        waiting = progress.waiting()
        wanted: dict[str, int] = {}
        for device, node_id in devices.items():
            if room <= 0:
                break
            if node_id is None or device in progress.accepted or device in progress.refused:
                continue
            moved = device in progress.nodes and progress.nodes[device] != node_id
            due = device not in waiting and now >= progress.again_at.get(device, now)
            if (moved or due) and progress.asked.get(device, 0) < rules.attempts:
                wanted[device] = node_id
                room -= device not in waiting
        groups: dict[int, tuple[Broadcast, dict[int, str]]] = {}
        for device, node_id in wanted.items():
            message = asking.broadcast(device)
            groups.setdefault(id(message), (message, {}))[1][node_id] = device
        for message, nodes in groups.values():
            self._send(replace(message, ttl_s=ttl_s), nodes, asking, rules, progress)

    def _send(
        self, message: Broadcast, nodes: Mapping[int, str], asking: Question, rules: RoundRules, progress: _Progress
    ) -> None:
        sent = self._exchange.send(message, list(nodes))
        for node_id, device in nodes.items():
            progress.asked[device] = progress.asked.get(device, 0) + 1
            progress.nodes[device] = node_id
            if node_id in sent:
                progress.pending[sent[node_id]] = device
                progress.asked_at[device] = self._clock()
                asking.sent(device)
            else:
                self._trouble(device, f"node {node_id} cannot be reached", rules, progress)

    def _take(self, reply: Reply, asking: Question, rules: RoundRules, accept: Accept, progress: _Progress) -> None:
        device = progress.pending.pop(reply.message_id, None)
        if device is None or device in progress.accepted:
            progress.dropped["belongs to nothing"] += 1
            return
        if reply.error is not None:
            reason = reply.error.reason
            if asking.troubled(device, reason):
                self._trouble(device, reason, rules, progress, wait_s=0.0)
            elif reply.error.refused:
                progress.refused[device] = reason
                logger.info("%s refuses: %s", device, reason)
            else:
                self._trouble(device, reason, rules, progress)
            return
        try:
            accept(device, reply.fields or {})
        except UpdateRejectedError as error:
            reason = f"rejected: {error.reason}"
            asking.troubled(device, reason)
            self._trouble(device, reason, rules, progress)
            return
        progress.accepted.append(device)

    def _trouble(
        self, device: str, reason: str, rules: RoundRules, progress: _Progress, *, wait_s: float | None = None
    ) -> None:
        logger.info("%s: %s", device, reason)
        progress.trouble[device] = reason
        progress.again_at[device] = self._clock() + (rules.repeat_s if wait_s is None else wait_s)

    @staticmethod
    def _enough(rules: RoundRules, progress: _Progress) -> bool:
        return rules.enough > 0 and len(progress.accepted) >= rules.enough

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
        return enough or (bool(devices) and not rules.growing)
