"""How many devices a campaign must have for its strategy to be defined at all. Pure: no I/O.

Krum with two attackers needs seven updates, a trimmed mean of a tenth needs ten, a secure sum three. A campaign that
could never have them is refused when it is made, and not by its first round.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from skerry_contract.secagg_graph import MINIMUM_DEVICES
from skerry_server.errors import InvalidRequestError
from skerry_server.federation.settings import CampaignSettings
from skerry_server.federation.strategies import least_updates


def require_devices(
    settings: CampaignSettings, *, strategy: str, given: Collection[str], cohort_size: int
) -> CampaignSettings:
    """Settings whose ``minimum_devices`` are enough for the strategy: raised where nobody chose them.

    Args:
        settings: Checked one by one.
        strategy: Its name.
        given: Fields that the request chose itself.
        cohort_size: Devices that could be invited.

    Raises:
        InvalidRequestError: ``per_round``, ``minimum_devices`` or the cohort is below what the strategy needs.
    """
    least, why = least_updates(strategy, settings), f"strategy {strategy}"
    if settings.secure_aggregation and least < MINIMUM_DEVICES:
        least, why = MINIMUM_DEVICES, "secure_aggregation"
    if least <= 1:
        return settings
    if 0 < settings.per_round < least:
        raise InvalidRequestError(
            "settings.per_round", expected=f"0 (everybody) or at least {least} with {why}", got=settings.per_round
        )
    if settings.client_app:
        return settings  # nodes that are no devices take part as well, and nobody knows yet how many
    if settings.minimum_devices < least:
        if "minimum_devices" in given:
            raise InvalidRequestError(
                "settings.minimum_devices", expected=f"at least {least} with {why}", got=settings.minimum_devices
            )
        settings = replace(settings, minimum_devices=least)
    if cohort_size < least:
        raise InvalidRequestError(
            "cohort_id", expected=f"a cohort of at least {least} devices with {why}", got=f"{cohort_size} devices"
        )
    return settings
