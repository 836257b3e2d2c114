"""What every round of a campaign is made with, and what it starts from. Plain values."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from skerry_contract.tensors import Array
from skerry_server.federation.rounds.calibration_source import CalibrationSource
from skerry_server.federation.rounds.carried import Carried
from skerry_server.federation.rounds.journal import CampaignJournal, State
from skerry_server.federation.rounds.round_privacy import RoundPrivacy
from skerry_server.federation.settings import CampaignSettings
from skerry_server.federation.strategies.protocol import Strategy


@dataclass(frozen=True)
class CampaignPlan:
    """What a campaign is to do.

    Attributes:
        campaign_id: Its name.
        task: What is learned.
        settings: As started.
        participants: Devices that accepted, and gateways in the place of those that they sum for.
        train_step_sha256: Hexadecimal digest of the train step that they must use.
        base: Wire form of the base release's parameters.
        incident_devices: Devices of the incident that the campaign answers; empty without one.
        gateways: Those of the participants that sum for a site, with the devices that accepted through them.
    """

    campaign_id: str
    task: str
    settings: CampaignSettings
    participants: tuple[str, ...]
    train_step_sha256: str
    base: bytes = field(repr=False)
    incident_devices: tuple[str, ...] = ()
    gateways: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class Holdout:
    """How good a model is on the server's holdout: accuracy, macro F1, mean cross entropy."""

    accuracy: float
    macro_f1: float
    loss: float


#: Judges a model in the forms that devices run: figures by metric name; see :mod:`~.deployed`.
Judge = Callable[[Mapping[str, Array]], dict[str, float]]


@dataclass(frozen=True)
class Workshop:
    """What every round of a campaign is made with.

    Attributes:
        plan: What to do.
        strategy: How updates become a model.
        journal: What survives.
        privacy: Of the campaign.
        evaluate: Measures a state on the holdout.
        judge: Judges it as deployed; None: never.
        calibration: How the result's INT8 ranges come from the devices; None: they do not.
        clock: Seconds.
        on_phase: Hears of a round's phase as it begins.
    """

    plan: CampaignPlan
    strategy: Strategy
    journal: CampaignJournal
    privacy: RoundPrivacy
    evaluate: Callable[[Mapping[str, Array]], Holdout]
    judge: Judge | None = None
    calibration: CalibrationSource | None = None
    clock: Callable[[], float] = time.monotonic
    on_phase: Callable[[int, str], None] = lambda number, phase: None


@dataclass(frozen=True)
class Version:
    """A committed model.

    Attributes:
        number: Of the round that made it; 0 is the base release.
        model: The parameters.
        sha256: Digest of their wire form.
        carried: What goes with it.
    """

    number: int
    model: State = field(repr=False)
    sha256: str
    carried: Carried = field(repr=False)
