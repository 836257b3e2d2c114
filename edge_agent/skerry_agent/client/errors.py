"""What can go wrong for an application that asks the serving process. One class per status of the answer."""

from __future__ import annotations

from skerry_agent.errors import AgentError
from skerry_agent.serving.shared_memory_layout import Status


class ServingError(AgentError):
    """Root of them.

    Attributes:
        detail: What the serving process said, or what the client found.
    """

    def __init__(self, detail: str) -> None:
        self.detail = detail
        super().__init__(detail)


class RefusedRequestError(ServingError):
    """The request is wrong: shape, type, NaN, range, id. The same request never succeeds."""


class UnfitInputError(RefusedRequestError):
    """The input has another type or shape than the release takes; found without asking."""


class NoActiveReleaseError(ServingError):
    """The device has no model yet, or none that it could load."""


class LateError(ServingError):
    """The deadline cannot be met; nothing was computed."""


class BusyError(ServingError):
    """Too many clients, or too much shared memory wanted. Ask again later."""


class FailedError(ServingError):
    """The serving process could not compute the answer, through no fault of the request."""


class ChangedModelError(ServingError):
    """Another release with another input or other classes has taken over since the client last looked."""


class DisconnectedError(ServingError):
    """The serving process is not there, or went away before it answered. The next request connects again."""


class ForbiddenError(ServingError):
    """This process is not of the agent's user or group."""


_BY_STATUS: dict[int, type[ServingError]] = {
    Status.INVALID: RefusedRequestError,
    Status.NO_RELEASE: NoActiveReleaseError,
    Status.DEADLINE: LateError,
    Status.OVERLOADED: BusyError,
    Status.FAILED: FailedError,
    Status.MODEL_CHANGED: ChangedModelError,
    Status.PROTOCOL: FailedError,
    Status.FORBIDDEN: ForbiddenError,
}


def error_of(status: int, detail: str) -> ServingError:
    """The error for a status that is not OK; one that this version does not know is a FailedError."""
    kind = _BY_STATUS.get(status)
    return FailedError(f"status {status}: {detail}") if kind is None else kind(detail)
