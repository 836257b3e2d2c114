"""Whether a release may be installed here now: refresh, floors, look-up, in that order, on the calling thread.

Order that makes a power cut harmless: floors are written before keys are believed and before an answer is given; the
time is learnt only from a refresh that held as a whole.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Protocol

from skerry_agent.errors import DeviceError
from skerry_agent.files import DISK, Disk
from skerry_agent.trust.anchor import read_root
from skerry_agent.trust.cache import set_damaged_aside
from skerry_agent.trust.errors import GivenUpError, TrustError
from skerry_agent.trust.floors import FloorsFile
from skerry_agent.trust.keyring import keep_keys
from skerry_agent.trust.mailbox import TrustMailbox
from skerry_agent.trust.places import TrustPlaces
from skerry_agent.update.ports import Approval, ApprovalRequest

log = logging.getLogger(__name__)
#: How long all files of one refresh may take to come (seconds).
DEADLINE_S = 30.0


class Clock(Protocol):
    """What is needed of :class:`~skerry_agent.trusted_clock.TrustedClock`."""

    @property
    def believable(self) -> bool:
        """Whether the local clock is not behind what a signature vouched for."""
        ...

    def now(self) -> datetime:
        """The time to go by (UTC)."""
        ...

    def learn(self, signed_unix_ms: int) -> None:
        """Take a moment that a verified signature vouched for."""
        ...


class Judge:
    """Asks the metadata; used by one thread, but for :attr:`floors`."""

    def __init__(
        self,
        places: TrustPlaces,
        mailbox: TrustMailbox,
        clock: Clock,
        *,
        enrolled: Sequence[str],
        deadline_s: float = DEADLINE_S,
        disk: Disk = DISK,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """Nothing is read before the first question.

        Args:
            places: Where trust lies.
            mailbox: What arrived.
            clock: The time by which metadata expire.
            enrolled: Instruction keys of the enrolment, hexadecimal.
            deadline_s: How long the files may take to come.
            disk: File system.
            monotonic: Seconds, the same as the mailbox's.
        """
        self.floors = FloorsFile(places, disk)
        self._places = places
        self._mailbox = mailbox
        self._clock = clock
        self._enrolled = tuple(enrolled)
        self._deadline_s = deadline_s
        self._disk = disk
        self._monotonic = monotonic

    def judge(self, request: ApprovalRequest | None, given_up: Callable[[], bool] = lambda: False) -> Approval:
        """Refresh, and answer for a release.

        Args:
            request: The release; None: only refresh, which is never approved and final only when it worked.
            given_up: Looked at while waiting for files.

        Raises:
            GivenUpError: ``given_up`` said so.
        """
        try:
            return self._judge(request, given_up)
        except GivenUpError:
            raise
        except TrustError as error:
            doubt = "" if self._clock.believable else "; this device's own clock is behind and not believed"
            return Approval(False, error.final, f"{error.reason}{doubt}")
        except DeviceError as error:
            return Approval(False, False, str(error))
        except OSError as error:
            return Approval(False, False, f"this device's disk: {error.strerror} ({error.filename or 'trust folder'})")

    def _judge(self, request: ApprovalRequest | None, given_up: Callable[[], bool]) -> Approval:
        # Late: python-tuf costs the process memory, and a device that never refreshes does without.
        from skerry_agent.trust.fetcher import MqttFetcher
        from skerry_agent.trust.session import Session

        anchor = read_root(self._places)
        self.floors.load()
        set_damaged_aside(self._places, self._disk)
        fetcher = MqttFetcher(self._mailbox, deadline=self._monotonic() + self._deadline_s, given_up=given_up)
        session = Session(self._places, anchor, fetcher, self._clock.now())
        refreshed = session.refresh()
        self.floors.raise_to(refreshed.seen)
        if refreshed.issued_ms:
            self._clock.learn(refreshed.issued_ms)
        session.check_expiry(self._clock.now())
        if refreshed.instruction_keys and keep_keys(
            self._places, refreshed.instruction_keys, self._enrolled, self._disk
        ):
            log.info("trust: %d instruction keys are trusted now", len(refreshed.instruction_keys))
        if request is None:
            return Approval(False, True, "")
        listing = session.look_up(request.task, request.release_id, request.envelope)
        session.check_expiry(self._clock.now())
        self.floors.approve(session.seen(), listing)
        return Approval(True, True, "", listing.version)
