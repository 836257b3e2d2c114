"""What is learned, and how it becomes something a device can run. Torch lives here and nowhere else.

Invariants: a :class:`~skerry_models.task.Task` is the only description of a problem (network, data, drift features,
defaults); raw units go into every exported graph; the same parameters always give the same files.
Submodules that need torch import it themselves, so that ``skerry_models.task`` and ``skerry_models.gates`` stay cheap.
"""

from skerry_models.errors import BundleError, DataError, ExportError, ModelsError, ParameterError, UnknownTaskError

__all__ = ["BundleError", "DataError", "ExportError", "ModelsError", "ParameterError", "UnknownTaskError"]
