"""How far a device has come in a session of secure aggregation, as a table. Pure.

Every step is taken once and forwards only: what was revealed for one set of survivors is never revealed for another.

>>> advance(Stage.SHARED, Step.MASK)
<Stage.MASKED: 'masked'>
"""

from __future__ import annotations

import enum
from typing import Final

from skerry_agent.state_table import next_state


class Stage(enum.StrEnum):
    """What the device has given away so far."""

    ADVERTISED = "advertised"
    SHARED = "shared"
    MASKED = "masked"
    CONFIRMED = "confirmed"
    REVEALED = "revealed"


class Step(enum.StrEnum):
    """What it is asked for."""

    SHARE = "share"
    MASK = "mask"
    CONFIRM = "confirm"
    REVEAL = "reveal"


#: {stage: {step: next stage}}.
TABLE: Final[dict[Stage, dict[Step, Stage]]] = {
    Stage.ADVERTISED: {Step.SHARE: Stage.SHARED},
    Stage.SHARED: {Step.MASK: Stage.MASKED},
    Stage.MASKED: {Step.CONFIRM: Stage.CONFIRMED},
    Stage.CONFIRMED: {Step.REVEAL: Stage.REVEALED},
    Stage.REVEALED: {},
}


def advance(stage: Stage, step: Step) -> Stage:
    """The stage after a step; raises IllegalEventError when it is out of turn."""
    return next_state(TABLE, stage, step, subject="a session")
