"""A database that is away comes back: what a campaign asks of it is tried again, for a while.

Only for actions that may be done twice: a connection that is lost during COMMIT leaves open whether it happened.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import TypeVar

from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError

logger = logging.getLogger(__name__)

T = TypeVar("T")

#: In messages of SQLite that are of the same class as those of an absent database, but of a wrong statement.
_DEFECTS = ("no such", "syntax error", "has no column")

#: First and longest wait between two attempts (seconds).
FIRST_S = 0.1
LONGEST_S = 5.0
#: How long an absent database is waited for (seconds).
PATIENCE_S = 120.0


def is_absence(error: Exception) -> bool:
    """Whether an error says that the database cannot be reached or used now, and not that the statement is wrong."""
    if isinstance(error, OperationalError | InterfaceError):
        return not any(word in str(error.orig) for word in _DEFECTS)
    return isinstance(error, DBAPIError) and error.connection_invalidated


class Patience:
    """Repeats database actions that fail because the database is away."""

    def __init__(
        self,
        *,
        longest_s: float = PATIENCE_S,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """``longest_s``: how long one action may take with its repetitions (seconds)."""
        self._longest_s = longest_s
        self._clock = clock
        self._sleep = sleep

    def run(self, action: Callable[[], T]) -> T:
        """Result of ``action``, an idempotent transaction; raises its last error when patience ends."""
        ends = self._clock() + self._longest_s
        wait = FIRST_S
        while True:
            try:
                return action()
            except (DBAPIError, InterfaceError) as error:
                if not is_absence(error) or self._clock() + wait > ends:
                    raise
                logger.warning("the database is away (%s): trying again in %.1f s", str(error).splitlines()[0], wait)
            self._sleep(wait)
            wait = min(LONGEST_S, wait * 2.0)
