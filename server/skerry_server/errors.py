"""The exceptions of the control plane, by who is at fault.

:class:`RequestError` is the caller's fault and is told to the caller; :class:`PlatformError` is the environment's
(a busy port, a missing program, a full disk) and names what to do. Anything else is a defect of ours.
"""

from __future__ import annotations


class SkerryError(Exception):
    """Root of the errors that the control plane raises on purpose."""


class RequestError(SkerryError):
    """The request cannot be carried out; nothing was changed."""


class NotFoundError(RequestError):
    """There is no such thing.

    Attributes:
        kind: What was looked for ("device").
        identifier: Its identifier.
    """

    def __init__(self, kind: str, identifier: str) -> None:
        self.kind = kind
        self.identifier = identifier
        super().__init__(f"there is no {kind} {identifier!r}")


class InvalidRequestError(RequestError):
    """A field of the request is wrong.

    Attributes:
        field: Which one.
        expected: What would have been right.
        got: What came.
    """

    def __init__(self, field: str, *, expected: str, got: object) -> None:
        self.field = field
        self.expected = expected
        self.got = str(got)[:200]
        super().__init__(f"{field}: expected {expected}, got {self.got!r}")


class ConflictError(RequestError):
    """The thing exists but is in a state in which this cannot be done."""


class RefusedError(RequestError):
    """Whoever asks has no right to it.

    Attributes:
        reason: Why not.
    """

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(reason)


class PlatformError(SkerryError):
    """The machine lacks something.

    Attributes:
        what: What failed.
        remedy: What the operator can do.
    """

    def __init__(self, what: str, *, remedy: str) -> None:
        self.what = what
        self.remedy = remedy
        super().__init__(f"{what}: {remedy}")
