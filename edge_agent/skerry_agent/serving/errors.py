"""Errors of the doors, beside those of the engine."""

from __future__ import annotations

from skerry_agent.errors import AgentError


class UnknownModelError(AgentError):
    """A request for another model, or another version, than the one that is served.

    Attributes:
        name: Asked for.
        served: What is served.
    """

    def __init__(self, name: str, served: str) -> None:
        self.name = name[:200]
        self.served = served
        super().__init__(f"unknown model {self.name!r}; this device serves {served}")


class TooLargeError(AgentError):
    """A request larger than any valid one can be.

    Attributes:
        limit: Largest accepted size (bytes).
    """

    def __init__(self, what: str, limit: int) -> None:
        self.limit = limit
        super().__init__(f"{what}: larger than {limit} bytes, the largest valid request")


class UnsupportedEncodingError(AgentError):
    """A request body in an encoding that the door does not read."""

    def __init__(self, encoding: str) -> None:
        super().__init__(f"Content-Encoding: expected identity, got {encoding[:80]!r}")
