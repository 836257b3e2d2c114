"""A campaign that could never have the updates that its strategy needs is refused when it is made."""

from __future__ import annotations

from typing import Any

import pytest
import sqlalchemy as sa

from skerry_server.context import ServerContext
from skerry_server.errors import InvalidRequestError
from skerry_server.store.tables import Campaign
from unit.federation.campaign_store import campaign, context, start

__all__ = ["context"]


@pytest.mark.parametrize(
    ("strategy", "settings", "field", "expected", "got"),
    [
        (
            "krum",
            {"strategy_settings": {"byzantine": 1}},
            "cohort_id",
            "at least 5 devices with strategy krum",
            "3 dev",
        ),
        ("trimmedmean", {"strategy_settings": {"trim": 0.1}}, "cohort_id", "at least 10 devices", "3 devices"),
        ("median", {"minimum_devices": 2}, "settings.minimum_devices", "at least 3 with strategy median", "2"),
        ("median", {"per_round": 2}, "settings.per_round", "0 (everybody) or at least 3 with strategy median", "2"),
        ("fedavg", {"secure_aggregation": True, "per_round": 2}, "settings.per_round", "with secure_aggregation", "2"),
        (
            "fedavg",
            {"secure_aggregation": True, "minimum_devices": 1},
            "settings.minimum_devices",
            "at least 3 with secure_aggregation",
            "1",
        ),
    ],
)
def test_too_few_devices_are_refused_by_field(
    context: ServerContext, strategy: str, settings: dict[str, Any], field: str, expected: str, got: str
) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        start(context, strategy=strategy, settings={"rounds": 1, **settings})
    assert caught.value.field == field
    assert expected in str(caught.value)
    assert got in str(caught.value)
    with context.database.reading() as session:
        assert session.scalar(sa.select(sa.func.count()).select_from(Campaign)) == 0


@pytest.mark.parametrize(
    ("strategy", "settings", "minimum"),
    [
        ("fedavg", {}, 2),
        ("fedprox", {}, 2),
        ("median", {}, 3),
        ("median", {"minimum_devices": 3, "per_round": 3}, 3),
        ("fedadam", {"secure_aggregation": True}, 3),
        ("median", {"client_app": "package.module:app"}, 2),  # other nodes may make up the number
    ],
)
def test_what_nobody_chose_is_enough_for_the_strategy(
    context: ServerContext, strategy: str, settings: dict[str, Any], minimum: int
) -> None:
    campaign_id = start(context, strategy=strategy, settings={"rounds": 1, **settings})
    assert campaign(context, campaign_id).settings["minimum_devices"] == minimum
