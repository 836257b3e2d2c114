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
