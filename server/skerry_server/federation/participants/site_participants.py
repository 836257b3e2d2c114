"""Which devices of a campaign take part through their site's gateway, and the gateways as participants.

The choice is made once, when a device is invited, and holds as long as the campaign does: a device that was asked by
two would be counted by two. A gateway needs no consent of its own; it takes part when the first of its devices has
accepted through it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import sqlalchemy as sa
from sqlalchemy.orm import Session

from skerry_contract.campaign import NEEDS_EACH
from skerry_contract.site import SITE_LABEL
from skerry_server.federation.participants.participation import ACCEPTED, EXCLUDED
from skerry_server.federation.participants.sites import sum_obstacle
from skerry_server.federation.settings import CampaignSettings, load_settings
from skerry_server.fleet import gateways
from skerry_server.store.tables import Campaign, CampaignParticipant, Device


@dataclass(frozen=True)
class Sites:
    """Where the devices of a campaign are asked.

    Attributes:
        obstacle: Why no gateway may sum for this campaign; empty if they may.
        gateways: Site to its gateways.
        site_of: Device to its site; without those that have none.
        at_ms: The moment that decides which gateways are connected.
    """

    obstacle: str
    gateways: Mapping[str, Sequence[Device]] = field(default_factory=dict)
    site_of: Mapping[str, str] = field(default_factory=dict)
    at_ms: int = 0

    @classmethod
    def of(cls, session: Session, campaign: Campaign, settings: CampaignSettings, *, at_ms: int) -> Sites:
        """As the store says now."""
        found = gateways.site_gateways(session)
        obstacle = sum_obstacle(campaign.strategy, settings, incident=bool(campaign.incident_id))
        if obstacle or not found:
            return cls(obstacle, found)
        site = Device.labels[SITE_LABEL].as_string()
        query = sa.select(Device.id, site).where(site.in_(found), Device.kind != gateways.GATEWAY)
        return cls(obstacle, found, {device: str(name) for device, name in session.execute(query)}, at_ms)

    def gateway_of(self, device_id: str) -> str:
        """The gateway that a device is invited through; empty: it is asked directly."""
        if self.obstacle or device_id not in self.site_of:
            return ""
        chosen = gateways.choose(device_id, self.gateways[self.site_of[device_id]], at_ms=self.at_ms)
        return "" if chosen is None else chosen.id


def join(session: Session, campaign: Campaign, devices: Iterable[CampaignParticipant], *, at_ms: int) -> str:
    """Make participants of the gateways of a campaign that begins; those that are not needed stay out with a reason.

    Args:
        session: An open transaction.
        campaign: That begins.
        devices: Its devices.
        at_ms: Now.

    Returns:
        How many devices take part through gateways, for people; empty for none.
    """
    rows = list(devices)
    used = {row.gateway_id for row in rows if row.gateway_id and row.state == ACCEPTED}
    sites = Sites.of(session, campaign, load_settings(campaign.settings), at_ms=at_ms)
    concerned = _sites_of(session, [row.device_id for row in rows])
    for site, each in sites.gateways.items():
        for gateway in each:
            if gateway.id not in used and site not in concerned:
                continue
            row = session.get(CampaignParticipant, (campaign.id, gateway.id))
            if row is None:
                row = CampaignParticipant(campaign_id=campaign.id, device_id=gateway.id, state=EXCLUDED)
                session.add(row)
            row.flower_node_id = gateway.flower_node_id
            if gateway.id in used:
                row.state, row.reason_code, row.reason = ACCEPTED, "", ""
            elif sites.obstacle:
                row.reason_code, row.reason = NEEDS_EACH, sites.obstacle
            elif not gateways.connected(gateway, at_ms=at_ms):
                row.reason_code, row.reason = "offline", "its devices are asked directly"
            else:
                row.reason_code, row.reason = "declined", "none of its devices accepted through it"
    session.flush()
    count = sum(bool(row.gateway_id) for row in rows if row.state == ACCEPTED)
    return f", {count} of them through {len(used)} gateway{'s' * (len(used) > 1)}" if used else ""


def _sites_of(session: Session, device_ids: Sequence[str]) -> set[str]:
    site = Device.labels[SITE_LABEL].as_string()
    query = sa.select(site).where(Device.id.in_(device_ids), site.is_not(None)).distinct()
    return set(session.scalars(query))
