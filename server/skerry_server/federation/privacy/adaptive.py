"""The clipping norm as a quantile of the norms, estimated privately (Andrew et al. 2019, arXiv 1905.03871). Pure.

Each device gives one bit: was its norm at most the clipping norm? The share of such bits is noised and moves the norm
geometrically, ``C <- C * exp(-rate * (share - quantile))``. The bits cost privacy, too: taken as +1/2 and -1/2 their
sum has sensitivity 1/2, and one round of both releases with the standard deviations ``s`` (count) and ``z_d * C`` (sum)
costs what one release with ``z = (z_d**-2 + (2 s)**-2) ** -1/2`` costs (theorem 1 of the paper). So the noise on the
sum is raised until the pair costs what was asked for.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

#: The norm stays within these: a bug or an attack must not drive it to 0 or infinity.
LOWEST_NORM, HIGHEST_NORM = 1e-6, 1e6


@dataclass(frozen=True)
class AdaptiveClip:
    """Rules of adaptive clipping.

    Attributes:
        quantile: Share of the updates that shall stay as they are, 0 to 1.
        rate: Step, per round.
        count_std: Standard deviation of the noise on the count, above ``noise_multiplier / 2``.
        noise_multiplier: What one round may cost, both releases together.
        participants: Fixed number that the count is divided by.
    """

    quantile: float
    rate: float
    count_std: float
    noise_multiplier: float
    participants: int

    @classmethod
    def of(
        cls, *, quantile: float, rate: float, count_std: float, noise_multiplier: float, participants: int
    ) -> AdaptiveClip:
        """With ``count_std`` 0 a standard deviation is chosen.

        The paper recommends a twentieth of the participants. With few of them that would leave nothing for the sum, so
        it is at least the noise multiplier, which raises the noise on the sum by 15.5 %.

        Raises:
            ValueError: The count's noise is so small that the bits alone cost more than a round may.
        """
        chosen = count_std or max(participants / 20, noise_multiplier)
        if 2 * chosen <= noise_multiplier:
            raise ValueError(f"count_std must be above half the noise multiplier {noise_multiplier:g}, got {chosen:g}")
        return cls(quantile, rate, chosen, noise_multiplier, participants)

    @property
    def sum_multiplier(self) -> float:
        """Noise multiplier of the sum of the updates: more than :attr:`noise_multiplier`, the bits cost the rest."""
        return 1.0 / math.sqrt(self.noise_multiplier**-2 - (2 * self.count_std) ** -2)

    def share(self, below: int, contributions: int, deviate: float) -> float:
        """The noised share of updates that were not clipped.

        Args:
            below: Updates whose norm was at most the clipping norm.
            contributions: Updates.
            deviate: A standard normal deviate.
        """
        return (below - contributions / 2 + self.count_std * deviate) / self.participants + 0.5

    def next(self, clip_norm: float, share: float) -> float:
        """The next round's clipping norm."""
        moved = clip_norm * math.exp(min(50.0, max(-50.0, -self.rate * (share - self.quantile))))
        return min(HIGHEST_NORM, max(LOWEST_NORM, moved))
