"""How the updates of a round are brought: the seam between an open round and whoever asks the devices."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Protocol

from skerry_server.federation.exchange import Exchange
from skerry_server.federation.rounds.downlink import DownLink
from skerry_server.federation.rounds.open_round import OpenRound
from skerry_server.federation.rounds.round_loop import Collected, Resolve, RoundCollector, RoundRules


class Collecting(Protocol):
    """Brings updates to a round."""

    def collect(self, open_round: OpenRound, question: DownLink, rules: RoundRules, resolve: Resolve) -> Collected:
        """Ask devices until the rules are met; everything that counts was taken by ``open_round``.

        Args:
            open_round: Takes the updates; those that it has are not asked for again.
            question: What each device is asked; counts the bytes.
            rules: When to end.
            resolve: Devices in the order in which they are asked, with their nodes.

        Raises:
            RoundFailedError: The quorum was not reached.
            ExchangeLostError: The run behind the exchange is gone.
        """
        ...


#: Makes what collects over an exchange.
MakeCollecting = Callable[[Exchange], Collecting]


class PlainCollecting:
    """Every device sends its own update."""

    def __init__(
        self,
        exchange: Exchange,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
        check: Callable[[], None] = lambda: None,
    ) -> None:
        """See :class:`~.round_loop.RoundCollector`."""
        self._exchange = exchange
        self._clock = clock
        self._sleep = sleep
        self._check = check

    def collect(self, open_round: OpenRound, question: DownLink, rules: RoundRules, resolve: Resolve) -> Collected:
        """See :class:`Collecting`."""

        def accept(device_id: str, fields: Mapping[str, object]) -> None:
            open_round.take(device_id, fields, sent=question.sent_bytes.get(device_id, 0))

        collector = RoundCollector(self._exchange, resolve, clock=self._clock, sleep=self._sleep, check=self._check)
        return collector.collect(question, rules, accept, already=tuple(open_round.accepted))
