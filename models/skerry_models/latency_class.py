"""How fast the answers of a task must be: what a release promises, and the ladder of a device holds.

A task names its class by an attribute ``latency_class``; one without is interactive.
"""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from skerry_models.task import Task

#: Class to deadline of the 99th percentile (us); 0: none.
LATENCY_CLASSES = {"real-time": 10_000, "interactive": 100_000, "batch": 0}
DEFAULT = "interactive"


@runtime_checkable
class HasLatencyClass(Protocol):
    """A task that names its class."""

    @property
    def latency_class(self) -> str:
        """One of :data:`LATENCY_CLASSES`."""
        ...


def deadline_us(task: Task) -> int:
    """Deadline of a task's answers (us); 0 if it has none.

    Raises:
        ValueError: The task names a class that there is not.
    """
    name = task.latency_class if isinstance(task, HasLatencyClass) else DEFAULT
    if name not in LATENCY_CLASSES:
        raise ValueError(f"task {task.name}: latency_class is {name!r}, not one of {', '.join(LATENCY_CLASSES)}")
    return LATENCY_CLASSES[name]
