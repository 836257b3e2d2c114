"""The exceptions of the model package, by who is at fault.

:class:`UnknownTaskError`, :class:`ParameterError`: the caller. :class:`DataError`: this machine lacks data.
:class:`ExportError`: a task's network that cannot become a device artifact. :class:`BundleError`: broken files.
"""

from __future__ import annotations

from collections.abc import Sequence


class ModelsError(Exception):
    """Root of the errors that the model package raises on purpose."""


class UnknownTaskError(ModelsError):
    """No installed package registers a task of that name.

    Attributes:
        name: What was asked for.
        known: Names that are registered.
    """

    def __init__(self, name: str, known: Sequence[str]) -> None:
        self.name = name
        self.known = tuple(known)
        super().__init__(f"there is no task {name!r}; known tasks: {', '.join(self.known) or 'none'}")


class TaskLoadError(ModelsError):
    """A registered task whose package does not load.

    Attributes:
        name: Name of the task.
        entry_point: ``module:function`` that was tried.
        reason: What went wrong.
    """

    def __init__(self, name: str, entry_point: str, reason: str) -> None:
        self.name = name
        self.entry_point = entry_point
        self.reason = reason
        super().__init__(f"task {name!r} ({entry_point}) does not load: {reason}")


class DataError(ModelsError):
    """Data that a task needs is not there or is not what it should be.

    Attributes:
        what: Which data.
        looked_for: Every place that was tried, with what was found there.
        remedy: How to get it.
    """

    def __init__(self, what: str, *, looked_for: Sequence[str], remedy: str) -> None:
        self.what = what
        self.looked_for = tuple(looked_for)
        self.remedy = remedy
        super().__init__(f"{what}; looked for: {'; '.join(self.looked_for)}; {remedy}")


class ParameterError(ModelsError):
    """Parameters that do not fit the network of their task.

    Attributes:
        field: Which tensor, or "parameters".
        expected: What would have been right.
        got: What came.
    """

    def __init__(self, field: str, *, expected: str, got: object) -> None:
        self.field = field
        self.expected = expected
        self.got = str(got)[:200]
        super().__init__(f"{field}: expected {expected}, got {self.got}")


class ExportError(ModelsError):
    """A network that cannot become the artifact.

    Attributes:
        artifact: Which file was being made ("train_step.onnx").
        reason: Why it cannot.
    """

    def __init__(self, artifact: str, reason: str) -> None:
        self.artifact = artifact
        self.reason = reason
        super().__init__(f"{artifact}: {reason}")


class BundleError(ModelsError):
    """A bundle whose files are missing, foreign or broken.

    Attributes:
        file: Which file.
        reason: What is wrong with it.
    """

    def __init__(self, file: str, reason: str) -> None:
        self.file = file
        self.reason = reason
        super().__init__(f"{file}: {reason}")
