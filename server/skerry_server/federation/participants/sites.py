"""Whether a site's gateway may sum for its devices in a campaign. Pure: no I/O.

A gateway tells the weighted mean of its devices' updates and how many they are. That is enough for a campaign that
needs nothing but the weighted mean of all updates; every other campaign asks the devices of the site directly, so that
it gets what it was made for, and says why.
"""

from __future__ import annotations

from skerry_server.federation.participants.eligibility import parse_rules
from skerry_server.federation.settings import SUMS, CampaignSettings


def sum_obstacle(strategy: str, settings: CampaignSettings, *, incident: bool) -> str:
    """Why the devices of a site are asked directly; empty if their gateway may sum for them.

    Args:
        strategy: Of the campaign.
        settings: Of the campaign.
        incident: It answers an incident, whose devices are measured one by one.
    """
    privacy = settings.privacy.get("mode", "none")
    obstacles = {
        f"{strategy} needs each device's update": strategy not in SUMS,
        "secure aggregation is between the devices and the control plane": settings.secure_aggregation,
        f"{privacy} privacy bounds the share of each device in the control plane": privacy not in ("none", "local"),
        "norm_bound judges each device's update": bool(settings.norm_bound),
        "a buffered campaign takes each update when it comes": settings.mode != "rounds",
        "a round chooses among the devices": bool(settings.per_round) or settings.selection != "uniform",
        "participation_cap counts the rounds of each device": bool(settings.participation_cap),
        "each round asks for the conditions of each device": parse_rules(settings.eligibility).asks_for_conditions,
        "the devices of its incident are measured one by one": incident,
    }
    return next((reason for reason, holds in obstacles.items() if holds), "")
