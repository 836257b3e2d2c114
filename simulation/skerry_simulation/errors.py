"""What can go wrong on the workstation, by who is at fault."""

from __future__ import annotations


class SimulationError(Exception):
    """Root of the errors that the simulation raises on purpose."""


class ScenarioError(SimulationError):
    """A scenario or an argument is wrong.

    Attributes:
        field: Which one.
        expected: What would have been right.
        got: What came.
    """

    def __init__(self, field: str, *, expected: str, got: object) -> None:
        self.field = field
        self.expected = expected
        self.got = str(got)[:200]
        super().__init__(f"{field}: expected {expected}, got {self.got}")


class StepError(SimulationError):
    """A step of a run did not get where it should in its time, or ended badly.

    Attributes:
        step: What was being done.
        reason: What was seen last.
    """

    def __init__(self, step: str, reason: str) -> None:
        self.step = step
        self.reason = reason
        super().__init__(f"{step}: {reason}")
