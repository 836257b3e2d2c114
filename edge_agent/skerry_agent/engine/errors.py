"""Errors of the engine. Each says who can mend it: the application, the operator, or nobody but a new release."""

from __future__ import annotations

from skerry_agent.errors import AgentError, InputError


class SchemaError(InputError):
    """A request with the wrong tensor, type or shape."""


class MissingValueError(InputError):
    """A request with NaN.

    Attributes:
        rows: How many rows have one.
    """

    def __init__(self, field: str, *, expected: str, got: object, rows: int) -> None:
        super().__init__(field, expected=expected, got=got)
        self.rows = rows


class OutOfRangeError(InputError):
    """A request with values outside the range of the input, infinities included.

    Attributes:
        rows: How many rows have one.
    """

    def __init__(self, field: str, *, expected: str, got: object, rows: int) -> None:
        super().__init__(field, expected=expected, got=got)
        self.rows = rows


class NoReleaseError(AgentError):
    """No release is active, so nothing can be answered yet.

    Attributes:
        detail: Why, if a release is there but was refused; empty on a fresh device.
    """

    def __init__(self, detail: str = "") -> None:
        self.detail = detail
        super().__init__(f"no release active{': ' + detail if detail else ''}")


class DeadlineError(AgentError):
    """A request that was not computed, because its answer would have come too late.

    Attributes:
        deadline_us: How long the answer might take.
        expected_us: How long it would take, by the requests under way and the latencies of this moment.
    """

    def __init__(self, deadline_us: float, expected_us: float) -> None:
        self.deadline_us = deadline_us
        self.expected_us = expected_us
        super().__init__(
            f"the answer is expected after {expected_us:.0f} us and would miss its deadline of {deadline_us:.0f} us"
        )


class OverloadedError(AgentError):
    """A request that was not computed, because too many others are under way.

    Attributes:
        in_flight: How many are.
        limit: How many may be.
    """

    def __init__(self, in_flight: int, limit: int) -> None:
        self.in_flight = in_flight
        self.limit = limit
        super().__init__(f"{in_flight} requests are under way, and at most {limit} may be; ask again")


class BackendError(AgentError):
    """An inference runtime that could not build, load or run a model.

    Attributes:
        backend: Name of the backend.
        operation: "build", "load" or "run".
        reason: What it said.
    """

    def __init__(self, backend: str, operation: str, reason: str) -> None:
        self.backend = backend
        self.operation = operation
        self.reason = reason[:500]
        super().__init__(f"{backend} cannot {operation} the model: {self.reason}")
