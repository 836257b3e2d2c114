"""Approvals for the update machine: :class:`~skerry_agent.trust.judge.Judge` on a thread of its own.

A question whose answer was not final stays open: a new index or timestamp from the broker, or time, brings another
answer. Without a question the same events refresh the metadata, so that keys and the time are known when they are
needed. Nothing that the control loop calls waits for the thread, but for :meth:`TufApprovals.close`.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from functools import partial

from skerry_agent.errors import DeviceError
from skerry_agent.trust.errors import GivenUpError
from skerry_agent.trust.judge import Judge
from skerry_agent.trust.mailbox import TrustMailbox
from skerry_agent.update.ports import Approval, ApprovalRequest

log = logging.getLogger(__name__)
#: Shortest time between two refreshes for the same question, and between two looks at an open one (seconds).
PAUSE_S = 2.0
RECHECK_S = 60.0


class TufApprovals:
    """Implements :class:`~skerry_agent.update.ports.Approvals`; the owner starts and closes it."""

    def __init__(
        self,
        judge: Judge,
        mailbox: TrustMailbox,
        *,
        pause_s: float = PAUSE_S,
        recheck_s: float = RECHECK_S,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """Nothing happens before :meth:`start`.

        Args:
            judge: Used by the thread only.
            mailbox: Tells of news.
            pause_s: Shortest time between two refreshes, unless another question comes.
            recheck_s: Time after which an open question is looked at without news.
            monotonic: Seconds.
        """
        self._judge = judge
        self._mailbox = mailbox
        self._pause_s = pause_s
        self._recheck_s = recheck_s
        self._monotonic = monotonic
        self._condition = threading.Condition()
        self._number = 0
        self._question: ApprovalRequest | None = None
        self._answer: Approval | None = None
        self._asked = False
        self._news = False
        self._closing = False
        self._last_s = -float("inf")
        self._thread = threading.Thread(target=self._run, name="trust", daemon=True)
        mailbox.on_news(self.refresh)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def close(self, *, deadline_s: float = 5.0) -> None:
        """Give up everything and join the thread."""
        with self._condition:
            self._closing = True
            self._condition.notify_all()
        self._mailbox.wake()
        if self._thread.ident is not None:
            self._thread.join(timeout=deadline_s)
            if self._thread.is_alive():
                log.error("trust: the thread did not end within %.0f s", deadline_s)

    def ask(self, request: ApprovalRequest) -> None:
        """See :class:`~skerry_agent.update.ports.Approvals`; the same question again keeps its place."""
        with self._condition:
            if request == self._question:
                self._news = True
            else:
                self._number += 1
                self._question, self._asked = request, True
            self._answer = None
            self._condition.notify_all()
        self._mailbox.wake()

    def poll(self) -> Approval | None:
        """See :class:`~skerry_agent.update.ports.Approvals`; after an answer that is not final, others follow."""
        with self._condition:
            answer, self._answer = self._answer, None
        return answer

    def committed(self, task: str, version: int) -> None:
        """See :class:`~skerry_agent.update.ports.Approvals`.

        With damaged floors nothing is written and the release is committed all the same: it was approved and proved,
        and nothing else is approved before the floors are whole.

        Raises:
            OSError: It could not be written down.
        """
        try:
            self._judge.floors.commit(task, version)
        except DeviceError as error:
            log.error("version %d of %s is committed but not written down: %s", version, task, error)

    def stop(self) -> None:
        """See :class:`~skerry_agent.update.ports.Approvals`."""
        with self._condition:
            self._number += 1
            self._question = self._answer = None
            self._asked = False
        self._mailbox.wake()

    def refresh(self) -> None:
        """Have the metadata looked at soon, question or not."""
        with self._condition:
            self._news = True
            self._condition.notify_all()

    def _run(self) -> None:
        while (work := self._next()) is not None:
            number, question = work
            try:
                answer = self._judge.judge(question, partial(self._given_up, number))
            except GivenUpError:
                with self._condition:
                    self._news = True
                continue
            except Exception:
                # A thread that dies of a bug would leave the question open for ever.
                log.exception("trust: the metadata could not be judged")
                answer = Approval(False, False, "the signed metadata could not be judged; see the log")
            self._take(number, answer)

    def _next(self) -> tuple[int, ApprovalRequest | None] | None:
        """Wait until there is something to do; None to end."""
        with self._condition:
            while not self._closing:
                now = self._monotonic()
                due_s = self._last_s + self._pause_s
                if not self._news and self._question is not None:
                    due_s = self._last_s + self._recheck_s
                if self._asked or ((self._news or self._question is not None) and now >= due_s):
                    self._asked = self._news = False
                    return self._number, self._question
                waits = self._news or self._question is not None
                self._condition.wait(due_s - now if waits else None)
        return None

    def _given_up(self, number: int) -> bool:
        return self._closing or number != self._number

    def _take(self, number: int, answer: Approval) -> None:
        with self._condition:
            self._last_s = self._monotonic()
            if number != self._number:
                return
            if self._question is None:
                if answer.detail:
                    log.info("trust: %s", answer.detail)
                return
            self._answer = answer
            if answer.approved or answer.final:
                self._question = None
