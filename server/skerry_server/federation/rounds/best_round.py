"""Which round's model is the result of a campaign. Pure: no I/O.

A plain campaign takes the round that is best on the server's holdout. A campaign that answers an incident was started
because some devices see data that the holdout does not have: there the best on those devices wins, among the rounds
that have not lost more on the holdout than the gates would forgive.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from skerry_server.federation.rounds.journal import RoundRecord

#: Loss of holdout accuracy, against the base model, that is accepted for the sake of the devices.
HOLDOUT_TOLERANCE = 0.02


def best_round(
    rounds: Sequence[RoundRecord], *, base_accuracy: float, cohort_accuracy: Mapping[int, float] | None = None
) -> RoundRecord:
    """The round whose model is the result.

    Args:
        rounds: At least one, in order.
        base_accuracy: Of the model that the campaign started from, on the holdout.
        cohort_accuracy: Round to accuracy on the devices of the incident; None or empty without an incident. Rounds
            without a figure do not compete on it.

    Raises:
        ValueError: There is no round.
    """
    if not rounds:
        raise ValueError("there is no round to choose from")
    figures = cohort_accuracy or {}
    acceptable = [
        record for record in rounds if record.number in figures and record.accuracy >= base_accuracy - HOLDOUT_TOLERANCE
    ]
    if acceptable:
        return max(acceptable, key=lambda record: (figures[record.number], record.accuracy, -record.number))
    return max(rounds, key=lambda record: (record.accuracy, -record.number))
