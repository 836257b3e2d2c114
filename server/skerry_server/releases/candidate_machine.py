"""The lives of candidates and releases. Pure: no I/O.

A candidate is built until its gates have run; one that failed is kept and says why. A release is available until
somebody withdraws it; devices that run it go on running it.
"""

from __future__ import annotations

from skerry_server.errors import ConflictError

BUILT = "built"
PASSED = "passed"
REJECTED = "rejected"
RELEASED = "released"

AVAILABLE = "available"
WITHDRAWN = "withdrawn"

#: {state: {event: next state}}. "rejected" and "released" are ends.
CANDIDATE: dict[str, dict[str, str]] = {
    BUILT: {"gates-passed": PASSED, "gates-failed": REJECTED},
    PASSED: {"publish": RELEASED},
    REJECTED: {},
    RELEASED: {},
}

#: "withdrawn" is an end: who wants the model again publishes it as a new release.
RELEASE: dict[str, dict[str, str]] = {
    AVAILABLE: {"withdraw": WITHDRAWN},
    WITHDRAWN: {},
}


def advance(machine: dict[str, dict[str, str]], state: str, event: str, *, subject: str) -> str:
    """The state after ``event``.

    Args:
        machine: :data:`CANDIDATE` or :data:`RELEASE`.
        state: Where it is.
        event: What happens.
        subject: Named in the error ("candidate candidate-1f").

    Raises:
        ConflictError: The event is not possible in that state.
    """
    following = machine[state].get(event)
    if following is None:
        raise ConflictError(f"{subject} is {state}: {event!r} is not possible")
    return following
