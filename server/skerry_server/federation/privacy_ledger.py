"""What all private campaigns of a task together have spent of a device's privacy.

A campaign's epsilon says what its own models tell of a device. The next campaign asks the same devices again, so what
counts for a device is the composition of all campaigns that it took part in. The ledger keeps no rows of its own: it is
read from the campaigns and their committed rounds, which are never deleted, so it cannot disagree with them.

A campaign that has ended counts with what it did, one that has not with all that it may yet do. Where devices add the
noise, the round that an aborted campaign had open counts too: its updates had been sent. All campaigns are composed
under one relation, a device's contribution there or not (add or remove, zero-out); the noise of mode "local" is drawn
for the relation "replace", which is stronger, so it is over- and never under-counted. Campaigns without privacy are
counted, but have no epsilon: whoever needs the total to mean something runs none.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import sqlalchemy as sa
from sqlalchemy.orm import Session

from skerry_server.errors import InvalidRequestError
from skerry_server.federation import campaign_machine
from skerry_server.federation.participants.participation import ACCEPTED
from skerry_server.federation.privacy.accountant import ACCOUNTANTS, Spending, composed_epsilon, noise_multiplier_for
from skerry_server.federation.privacy.settings import DEVICE_MODES, PrivacySettings, parse_privacy
from skerry_server.federation.settings import CampaignSettings
from skerry_server.fleet.service import cohort_device_ids
from skerry_server.store.tables import Campaign, CampaignParticipant, CampaignRound

#: Above so many different histories of devices, all campaigns are composed as if one device had been in each.
HISTORIES: Final = 64


@dataclass(frozen=True)
class Charge:
    """What one campaign takes of the devices that took part.

    Attributes:
        campaign_id: Which.
        state: Of it.
        spending: Rounds that count, and their noise.
        delta: At which the campaign states its own epsilon.
        devices: That took part, or may: None while nobody has accepted, so that it counts for every device.
    """

    campaign_id: str
    state: str
    spending: Spending
    delta: float
    devices: frozenset[str] | None


@dataclass(frozen=True)
class Total:
    """Of the devices of a cohort, the one that gave most.

    Attributes:
        epsilon: Composed over its campaigns.
        delta: The smallest of theirs.
        campaigns: How many those are.
        private: Private campaigns of the task in all.
        unprotected: Campaigns of the task that ran without privacy.
    """

    epsilon: float
    delta: float
    campaigns: int
    private: int
    unprotected: int


def total(session: Session, *, task: str, cohort_id: str) -> Total:
    """What is spent, and what campaigns under way may yet spend; raises NotFoundError without that cohort."""
    found, unprotected = charges(session, task)
    epsilon, delta, count = _worst(found, cohort_device_ids(session, cohort_id))
    return Total(epsilon, delta, count, len(found), unprotected)


def check_limit(
    session: Session, *, task: str, cohort_id: str, settings: CampaignSettings, limit: float, campaign_id: str = ""
) -> None:
    """Refuse a private campaign with which a device of the cohort would have spent more than ``limit``.

    Args:
        session: Open transaction.
        task: Of the campaign.
        cohort_id: Likewise.
        settings: Likewise, checked.
        limit: Epsilon over all campaigns of the task; 0: none.
        campaign_id: Of the campaign, if it is in the store already: it counts once.

    Raises:
        InvalidRequestError: It would; with what is spent and what the campaign may spend.
    """
    privacy = parse_privacy(settings.privacy)
    if not limit or not privacy.enabled:
        return
    devices = cohort_device_ids(session, cohort_id)
    before = [each for each in charges(session, task)[0] if each.campaign_id != campaign_id]
    new = Charge("", campaign_machine.DRAFT, planned(privacy, settings.rounds), privacy.delta, None)
    spent, _, count = _worst(before, devices)
    epsilon, delta, _ = _worst([*before, new], devices)
    if epsilon > limit:
        raise InvalidRequestError(
            "settings.privacy",
            expected=f"at most epsilon {limit:g} of a device over all campaigns of {task}, of which {spent:.4g} is "
            f"spent or promised by {count} of them",
            got=f"epsilon {epsilon:.4g} at delta {delta:g} with {new.spending.rounds} rounds at noise multiplier "
            f"{new.spending.noise_multiplier:.4g}",
        )


def planned(privacy: PrivacySettings, rounds: int) -> Spending:
    """All that a campaign may spend: its rounds, or as many of them as its own budget allows."""
    multiplier = privacy.noise_multiplier or noise_multiplier_for(privacy, rounds)
    account, probability = ACCOUNTANTS[privacy.accountant], privacy.sampling_probability
    if privacy.target_epsilon:
        low, high = 0, rounds  # the most rounds within the budget
        while low < high:
            middle = (low + high + 1) // 2
            within = account(Spending(multiplier, middle, probability), privacy.delta) <= privacy.target_epsilon
            low, high = (middle, high) if within else (low, middle - 1)
        rounds = low
    return Spending(multiplier, rounds, probability)


def charges(session: Session, task: str) -> tuple[list[Charge], int]:
    """The charges of a task's private campaigns, oldest first, and how many others there were."""
    campaigns = session.scalars(
        sa.select(Campaign)
        .where(Campaign.task == task, Campaign.state != campaign_machine.DRAFT)
        .order_by(Campaign.created_ms, Campaign.id)
    ).all()
    last = _last_rounds(session, task)
    found: list[Charge] = []
    unprotected = 0
    for campaign in campaigns:
        try:
            privacy = parse_privacy(campaign.settings.get("privacy", {}))
        except InvalidRequestError:  # of another version: what it spent is not known, so it protects nobody
            privacy = PrivacySettings()
        if not privacy.enabled:
            unprotected += campaign.id in last
            continue
        spending = _spending(campaign, privacy, int(campaign.settings["rounds"]), last.get(campaign.id, {}))
        if spending.rounds:
            found.append(Charge(campaign.id, campaign.state, spending, privacy.delta, _devices(session, campaign)))
    return found, unprotected


def _last_rounds(session: Session, task: str) -> dict[str, Mapping[str, object]]:
    """Campaign to the accountant's state after its last committed round."""
    newest = (
        sa.select(CampaignRound.campaign_id, sa.func.max(CampaignRound.number).label("number"))
        .join(Campaign, Campaign.id == CampaignRound.campaign_id)
        .where(Campaign.task == task)
        .group_by(CampaignRound.campaign_id)
        .subquery()
    )
    query = sa.select(CampaignRound.campaign_id, CampaignRound.privacy).join(
        newest, sa.and_(newest.c.campaign_id == CampaignRound.campaign_id, newest.c.number == CampaignRound.number)
    )
    return {row.campaign_id: row.privacy for row in session.execute(query)}


def _spending(campaign: Campaign, privacy: PrivacySettings, rounds: int, done: Mapping[str, object]) -> Spending:
    under_way = campaign.state in campaign_machine.ACTIVE and campaign.state != campaign_machine.GATING
    if under_way:
        return planned(privacy, rounds)
    multiplier = float(str(done.get("noise_multiplier", 0.0))) or privacy.noise_multiplier
    committed = int(str(done.get("rounds", 0)))
    cut_off = campaign.state in (campaign_machine.ABORTED, campaign_machine.FAILED) and campaign.flower_run_id != ""
    if cut_off and privacy.mode in DEVICE_MODES and committed < rounds:
        committed += 1
        multiplier = multiplier or noise_multiplier_for(privacy, rounds)
    return Spending(multiplier or 1.0, committed, privacy.sampling_probability)


def _devices(session: Session, campaign: Campaign) -> frozenset[str] | None:
    if campaign.state in (campaign_machine.APPROVED, campaign_machine.RECRUITING, campaign_machine.PAUSED):
        return None  # who else accepts is not known yet
    query = sa.select(CampaignParticipant.device_id).where(
        CampaignParticipant.campaign_id == campaign.id, CampaignParticipant.state == ACCEPTED
    )
    return frozenset(session.scalars(query))


def _worst(found: list[Charge], devices: list[str]) -> tuple[float, float, int]:
    """Epsilon, delta and number of campaigns of the device that has spent most."""
    histories = {
        tuple(place for place, each in enumerate(found) if each.devices is None or device in each.devices)
        for device in devices
    }
    if not devices or len(histories) > HISTORIES:
        histories = {tuple(range(len(found)))}
    delta = min((each.delta for each in found), default=0.0)
    return max(
        (composed_epsilon([found[place].spending for place in history], delta), delta, len(history))
        if history
        else (0.0, delta, 0)
        for history in histories
    )
