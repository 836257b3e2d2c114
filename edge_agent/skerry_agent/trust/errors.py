"""Why a release is not approved."""

from __future__ import annotations

from skerry_agent.errors import AgentError


class TrustError(AgentError):
    """The signed metadata do not allow it.

    Attributes:
        reason: Why, for people.
        final: Whether newer metadata or a right clock cannot change it.
    """

    def __init__(self, reason: str, *, final: bool = False) -> None:
        self.reason = reason
        self.final = final
        super().__init__(reason)


class GivenUpError(TrustError):
    """Nobody waits for the answer any more."""


class NotListedError(TrustError):
    """A file that the broker's index does not name."""


class NotDeliveredError(TrustError):
    """A file that the broker's index names, or the index itself, did not come in time."""


class BelowFloorError(TrustError):
    """Something that verifies but is older than what this device has seen.

    Attributes:
        what: Role, or task.
        version: What came.
        floor: What was seen before.
    """

    def __init__(self, what: str, version: int, floor: int, *, reason: str, final: bool = False) -> None:
        self.what = what
        self.version = version
        self.floor = floor
        super().__init__(reason, final=final)
