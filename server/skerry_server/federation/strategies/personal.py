"""Parameters that stay on the device: FedBN (Li et al., arXiv 2102.07623) and FedPer (Arivazhagan et al., 1912.00818).

Everything else is averaged as by FedAvg. FedBN keeps the normalisation layers, scale and shift as well as statistics:
they carry what differs between the devices' sensors. FedPer keeps the last layers, the personal head. The server's copy
of a personal parameter stays what the base release has: it is what a new device starts from.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from skerry_contract.tensors import Array
from skerry_server.errors import InvalidRequestError
from skerry_server.federation.strategies.base import MeanAggregation, RoundStrategy, matching
from skerry_server.federation.strategies.protocol import Aggregation, LocalRules, StrategyState

#: How the parts of module names that stand for a normalisation layer begin or end.
_NORMALISATION = ("norm", "bn", "batchnorm", "layernorm", "groupnorm")


def normalisation_patterns(names: Sequence[str]) -> tuple[str, ...]:
    """Patterns of the normalisation layers: those with running statistics, and those whose name says so.

    >>> normalisation_patterns(["stem.weight", "stem.1.weight", "stem.1.running_mean", "norm2.bias"])
    ('stem.1.*', 'norm2.*')
    """
    modules = dict.fromkeys(name.rpartition(".")[0] for name in names if "." in name)
    gathered = {name.rpartition(".")[0] for name in names if name.endswith(".running_mean")}

    def normalises(module: str) -> bool:
        last = module.rpartition(".")[2].rstrip("0123456789_").lower()
        return module in gathered or last.endswith(_NORMALISATION)

    return tuple(f"{module}.*" for module in modules if normalises(module))


def head_patterns(names: Sequence[str]) -> tuple[str, ...]:
    """The pattern of the last module.

    >>> head_patterns(["first.weight", "first.bias", "head.weight", "head.bias"])
    ('head.*',)
    """
    module = names[-1].rpartition(".")[0] if names else ""
    return (f"{module}.*",) if module else ()


class PersonalParameters(RoundStrategy):
    """FedAvg of what is shared."""

    def __init__(self, name: str, patterns: Sequence[str]) -> None:
        """Choose.

        Args:
            name: "fedbn" or "fedper".
            patterns: Of the personal parameters; empty: found in the model.
        """
        self.name = name
        self._patterns = tuple(patterns)

    def _of(self, model: Mapping[str, Array]) -> tuple[str, ...]:
        if self._patterns:
            return self._patterns
        names = list(model)
        return normalisation_patterns(names) if self.name == "fedbn" else head_patterns(names)

    def local_rules(self, round_number: int, model: Mapping[str, Array]) -> LocalRules:
        """See :class:`.protocol.Strategy`."""
        return LocalRules(personal=self._of(model))

    def start(self, model: Mapping[str, Array], *, participants: int = 0) -> StrategyState:
        """See :class:`.protocol.Strategy`; some parameters must be personal and some shared."""
        personal = matching(list(model), self._of(model))
        if not personal or len(personal) == len(model):
            raise InvalidRequestError(
                "settings.strategy_settings.personal",
                expected=f"patterns of some, not all of {', '.join(model)}"[:400],
                got=", ".join(self._patterns) or f"nothing, and {self.name} finds none itself",
            )
        return StrategyState()

    def aggregation(self, model: Mapping[str, Array], state: StrategyState, *, scratch: Path) -> Aggregation:
        """See :class:`.protocol.Strategy`."""
        return MeanAggregation(model, personal=matching(list(model), self._of(model)))
