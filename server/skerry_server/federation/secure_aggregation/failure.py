"""How a round of secure aggregation fails."""

from __future__ import annotations

from collections.abc import Mapping

from skerry_server.federation.rounds.round_loop import RoundFailedError


class SecureRoundFailedError(RoundFailedError):
    """The sum cannot be had.

    Attributes:
        phase: Of :mod:`~skerry_server.federation.secure_aggregation.secure_machine`, in which it ended.
        reason: Why; names a device where one is to blame.
        liars: Device to what is wrong with what it sent.
        revealed: Shares may have been revealed: the devices take part in no other session of this round, so the
            campaign must go on with the next round number.
    """

    def __init__(
        self,
        phase: str,
        reason: str,
        *,
        accepted: int = 0,
        quorum: int = 0,
        failures: Mapping[str, str] | None = None,
        liars: Mapping[str, str] | None = None,
        revealed: bool = False,
    ) -> None:
        super().__init__(accepted, quorum, failures or {})
        self.phase = phase
        self.reason = reason
        self.liars = dict(liars or {})
        self.revealed = self.used_up = revealed
        self.args = (f"secure aggregation, {phase}: {reason}",)
