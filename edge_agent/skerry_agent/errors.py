"""The exceptions of the agent, by who is at fault.

:class:`InputError`: the application that asked. :class:`ArtifactError`: what came from the registry.
:class:`DeviceError`: this machine (a full disk, a busy port, a missing file).
"""

from __future__ import annotations


class AgentError(Exception):
    """Root of the errors that the agent raises on purpose."""


class InputError(AgentError):
    """A request that cannot be answered.

    Attributes:
        field: Which tensor or field.
        expected: What would have been right.
        got: What came.
    """

    def __init__(self, field: str, *, expected: str, got: object) -> None:
        self.field = field
        self.expected = expected
        self.got = str(got)[:200]
        super().__init__(f"{field}: expected {expected}, got {self.got}")


class ArtifactError(AgentError):
    """A release that must not be used.

    Attributes:
        release_id: Which one; empty if that is not known.
        reason: Why.
    """

    def __init__(self, release_id: str, reason: str) -> None:
        self.release_id = release_id
        self.reason = reason
        super().__init__(f"release {release_id or '?'}: {reason}")


class DeviceError(AgentError):
    """This machine cannot do it.

    Attributes:
        what: What failed.
        remedy: What helps.
    """

    def __init__(self, what: str, *, remedy: str) -> None:
        self.what = what
        self.remedy = remedy
        super().__init__(f"{what}: {remedy}")
