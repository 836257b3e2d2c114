"""The gateway's end of its own SuperLink: one run stays open from round to round; a lost one is opened anew."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Protocol

from skerry_server.federation.exchange import Broadcast, Exchange, ExchangeLostError
from skerry_server.federation.rounds.round_loop import Accept, Collected, Question, RoundCollector, RoundRules

logger = logging.getLogger(__name__)

#: How often a run is opened anew within one round, and the wait before it (seconds).
OPENINGS = 5
PAUSE_S = 0.5


class DeviceExchange(Exchange, Protocol):
    """An exchange that knows devices by name: :class:`skerry_server.federation.flower.run.FlowerRun`."""

    def devices(self) -> Mapping[str, int]:
        """Connected devices and their nodes."""
        ...

    def close(self) -> None:
        """Let go of it."""
        ...


class SiteLink:
    """Asks the devices of a site; used by one thread."""

    def __init__(
        self,
        open_run: Callable[[], DeviceExchange],
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
        check: Callable[[], None] = lambda: None,
    ) -> None:
        """Connect to nothing yet.

        Args:
            open_run: Opens a run; raises ExchangeLostError.
            clock: Seconds.
            sleep: Waits.
            check: Raises to end a round, when the gateway stops.
        """
        self._open_run = open_run
        self._clock = clock
        self._sleep = sleep
        self._check = check
        self._run: DeviceExchange | None = None

    def collect(
        self,
        question: Broadcast | Question,
        rules: RoundRules,
        accept: Accept,
        *,
        members: tuple[str, ...],
        accepted: Callable[[], tuple[str, ...]],
    ) -> Collected:
        """Ask devices until the rules are met, over as many runs as that takes.

        Args:
            question: What to ask.
            rules: When to end.
            accept: Takes an answer; when it returns, the answer is safe.
            members: Whom.
            accepted: Those who have answered, whenever it is called.

        Raises:
            RoundFailedError: The quorum was not reached.
            ExchangeLostError: The site's SuperLink could not be used.
        """
        until = self._clock() + rules.deadline_s
        for opening in range(OPENINGS):
            try:
                run = self._run = self._run or self._open_run()

                def resolve(run: DeviceExchange = run) -> dict[str, int | None]:
                    connected = run.devices()
                    return {device: connected.get(device) for device in members}

                collector = RoundCollector(run, resolve, clock=self._clock, sleep=self._sleep, check=self._check)
                left = replace(rules, deadline_s=max(0.0, until - self._clock()))
                return collector.collect(question, left, accept, already=accepted())
            except ExchangeLostError as error:
                self.close()
                if opening + 1 == OPENINGS or self._clock() >= until:
                    raise
                logger.warning("the site's run was lost (%s); another is opened", error)
                self._check()
                self._sleep(PAUSE_S)
        raise AssertionError  # the last opening returned or raised

    def close(self) -> None:
        """End the run, if one is open."""
        run, self._run = self._run, None
        if run is not None:
            with contextlib.suppress(ExchangeLostError):
                run.close()
