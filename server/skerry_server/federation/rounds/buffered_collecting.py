"""Buffered asynchronous collecting (FedBuff, arXiv 2106.06639): nobody waits for the slowest.

A device gets the newest model as soon as it is free and sends its update whenever it is done; a version is committed as
soon as ``enough`` updates are there (what came together with the last of them counts too). Questions outlive versions:
an update that is late by some versions counts with its staleness, which the strategy weighs. A device counts once per
version, so the fast ones do not own it; after its update it waits for the next version.

The journal is that of synchronous rounds. What a killed process had asked is asked again by its successor.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from skerry_server.federation.exchange import Broadcast, Exchange, Reply, Waits
from skerry_server.federation.rounds.downlink import DownLink
from skerry_server.federation.rounds.open_round import OpenRound
from skerry_server.federation.rounds.round_loop import Collected, Resolve, RoundFailedError, RoundRules
from skerry_server.federation.rounds.updates import UpdateRejectedError

logger = logging.getLogger(__name__)

#: An update that is more versions behind than this is rejected, unless the strategy says otherwise.
MAXIMUM_STALENESS = 20


@dataclass(frozen=True)
class _Asked:
    """A question on its way: whom, from which version on, how many bytes, until when."""

    device_id: str
    base: int
    size: int
    expires: float


@dataclass
class _Version:
    """What happened since the last commit."""

    asked: set[str] = field(default_factory=set)
    failures: dict[str, str] = field(default_factory=dict)
    attempts: dict[str, int] = field(default_factory=dict)
    dropped: int = 0


class BufferedCollecting:
    """Keeps devices at work over versions; a :class:`~.collecting.Collecting`, used by one thread."""

    def __init__(
        self,
        exchange: Exchange,
        *,
        maximum_staleness: int = MAXIMUM_STALENESS,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
        check: Callable[[], None] = lambda: None,
    ) -> None:
        """See :class:`~.round_loop.RoundCollector`; ``maximum_staleness``: versions that an update may be behind."""
        self._exchange = exchange
        self._maximum_staleness = maximum_staleness
        self._clock = clock
        self._sleep = sleep
        self._check = check
        self._pending: dict[str, _Asked] = {}
        self._again_at: dict[str, float] = {}

    def collect(self, open_round: OpenRound, question: DownLink, rules: RoundRules, resolve: Resolve) -> Collected:
        """Collect ``rules.enough`` updates, or the quorum at the deadline; see :class:`~.collecting.Collecting`."""
        started = self._clock()
        deadline = started + rules.deadline_s
        version = _Version()
        already = len(open_round.accepted)
        devices: Mapping[str, int | None] = {}
        next_resolve, delay = started, rules.poll_first_s
        while len(open_round.accepted) < max(1, rules.enough):
            self._check()
            now = self._clock()
            if now >= next_resolve:
                devices, next_resolve = resolve(), now + rules.resolve_s
            self._expire(now, version)
            self._ask(open_round, question, rules, devices, version)
            replies = self._exchange.receive(self._pending) if self._pending else []
            for reply in replies:
                self._take(reply, open_round, question, rules, version)
            if now >= deadline:
                break
            delay = rules.poll_first_s if replies else min(rules.poll_last_s, delay * rules.poll_factor)
            if len(open_round.accepted) < max(1, rules.enough):
                left = max(0.0, deadline - self._clock())
                if isinstance(self._exchange, Waits) and self._pending:
                    self._exchange.wait(min(rules.resolve_s, left))  # it returns with the first answer
                else:
                    self._sleep(min(delay, left))
        if len(open_round.accepted) < rules.quorum:
            silent = {asked.device_id: "no answer" for asked in self._pending.values()}
            raise RoundFailedError(len(open_round.accepted), rules.quorum, {**silent, **version.failures})
        counted = set(open_round.accepted)
        return Collected(
            asked=tuple(dict.fromkeys([*open_round.accepted[:already], *sorted(version.asked | counted)])),
            accepted=tuple(open_round.accepted),
            failures={device: reason for device, reason in version.failures.items() if device not in counted},
            dropped=version.dropped,
            seconds=self._clock() - started,
        )

    def _rest(self, delay: float, rules: RoundRules, left: float) -> None:
        if isinstance(self._exchange, Waits) and self._pending:
            self._exchange.wait(min(rules.resolve_s, left))  # it returns with the first answer
        else:
            self._sleep(min(delay, left))

    def _expire(self, now: float, version: _Version) -> None:
        for message_id, asked in list(self._pending.items()):
            if now >= asked.expires:
                del self._pending[message_id]
                version.failures[asked.device_id] = "no answer"

    def _ask(
        self,
        open_round: OpenRound,
        question: DownLink,
        rules: RoundRules,
        devices: Mapping[str, int | None],
        version: _Version,
    ) -> None:
        """Give the newest model to every device that is free, as many as may work at once."""
        now = self._clock()
        working = {asked.device_id for asked in self._pending.values()}
        room = (rules.at_once or len(devices)) - len(working)
        groups: dict[int, tuple[Broadcast, dict[int, str]]] = {}
        for device, node_id in devices.items():
            if room <= 0:
                break
            if node_id is None or device in working or device in open_round.accepted:
                continue
            if version.attempts.get(device, 0) >= rules.attempts or now < self._again_at.get(device, now):
                continue
            message = question.broadcast(device)
            groups.setdefault(id(message), (message, {}))[1][node_id] = device
            room -= 1
        for message, nodes in groups.values():
            sent = self._exchange.send(replace(message, ttl_s=rules.deadline_s), list(nodes))
            for node_id, device in nodes.items():
                version.attempts[device] = version.attempts.get(device, 0) + 1
                if node_id not in sent:
                    self._trouble(device, f"node {node_id} cannot be reached", rules, version)
                    continue
                before = question.sent_bytes.get(device, 0)
                question.sent(device)
                version.asked.add(device)
                size = question.sent_bytes[device] - before
                self._pending[sent[node_id]] = _Asked(device, open_round.start.number, size, now + rules.deadline_s)

    def _take(
        self, reply: Reply, open_round: OpenRound, question: DownLink, rules: RoundRules, version: _Version
    ) -> None:
        asked = self._pending.pop(reply.message_id, None)
        if asked is None:
            version.dropped += 1
            return
        device = asked.device_id
        if reply.error is not None:
            helps = question.troubled(device, reply.error.reason)
            if reply.error.refused and not helps:
                version.attempts[device] = rules.attempts  # it is asked again for the next version
            self._trouble(device, reply.error.reason, rules, version, wait_s=0.0 if helps else rules.repeat_s)
            return
        staleness = open_round.start.number - asked.base
        try:
            if staleness > self._maximum_staleness:
                raise UpdateRejectedError(f"{staleness} versions behind, more than {self._maximum_staleness}")
            open_round.take(device, reply.fields or {}, base=asked.base, sent=asked.size)
        except UpdateRejectedError as error:
            reason = f"rejected: {error.reason}"
            question.troubled(device, reason)
            self._trouble(device, reason, rules, version)
            return
        version.failures.pop(device, None)

    def _trouble(
        self, device: str, reason: str, rules: RoundRules, version: _Version, *, wait_s: float | None = None
    ) -> None:
        logger.info("%s: %s", device, reason)
        version.failures[device] = reason
        self._again_at[device] = self._clock() + (rules.repeat_s if wait_s is None else wait_s)
