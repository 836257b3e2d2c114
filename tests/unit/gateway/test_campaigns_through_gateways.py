"""Whom a campaign asks through a gateway, whom directly, and what it says about it."""

from __future__ import annotations

from typing import Any

import pytest
import sqlalchemy as sa

from skerry_contract.site import ADDRESS_LABEL
from skerry_server.clock import now_ms
from skerry_server.context import ServerContext
from skerry_server.federation.campaign_job import load_plan
from skerry_server.federation.controller import CampaignController
from skerry_server.federation.participants.sites import sum_obstacle
from skerry_server.federation.settings import CampaignSettings
from skerry_server.fleet import gateways, service
from skerry_server.store.tables import CampaignParticipant, Device
from unit.federation.campaign_store import Broker, answer, broker, campaign, context, controller, device, start

__all__ = ["broker", "context", "controller"]

ADDRESS = "gw.plant.example:9443"


def put_gateway(context: ServerContext, name: str = "gw", *, site: str = "plant", **changes: Any) -> None:
    values = {"kind": "gateway", "last_seen_ms": now_ms(), "active_release": "", "labelled_samples": 0}
    labels = {"role": "gateway", "site": site, ADDRESS_LABEL: ADDRESS}
    with context.database.transaction() as session:
        session.add(device(name, labels=labels, **{**values, **changes}))


def label(context: ServerContext, **sites: str) -> None:
    with context.database.transaction() as session:
        for name, site in sites.items():
            session.get_one(Device, name).labels = {"site": site}


def rows(context: ServerContext, campaign_id: str) -> dict[str, CampaignParticipant]:
    query = sa.select(CampaignParticipant).where(CampaignParticipant.campaign_id == campaign_id)
    with context.database.reading() as session:
        return {row.device_id: row for row in session.scalars(query)}


def led(broker: Broker) -> dict[str, tuple[str, str]]:
    return {
        name: (command.invitation.gateway_id, command.invitation.superlink_address)
        for name, command, _ in broker.commands
    }


DIRECT = ("", "127.0.0.1:1006")


def test_the_site_goes_through_its_gateway_and_the_others_do_not(
    context: ServerContext, controller: CampaignController, broker: Broker
) -> None:
    put_gateway(context)
    label(context, a="plant", b="plant", c="office")
    campaign_id = start(context)
    controller.step()
    assert led(broker) == {"a": ("gw", ADDRESS), "b": ("gw", ADDRESS), "c": DIRECT}
    answer(context, campaign_id, a="accepted", b="accepted", c="accepted")
    with context.database.reading() as session:
        roster = gateways.roster_of(session, session.get_one(Device, "gw"))
    assert roster["campaigns"] == [
        {"campaign_id": campaign_id, "quorum": 0.5, "grace_factor": 1.0, "members": ["a", "b"]}
    ]
    controller.step()
    row = campaign(context, campaign_id)
    assert (row.state, row.detail) == ("running", "3 devices take part, 2 of them through 1 gateway")
    plan, _, _ = load_plan(context, campaign_id)
    assert (plan.participants, plan.gateways) == (("c", "gw"), {"gw": ("a", "b")})
    gateway = rows(context, campaign_id)["gw"]
    assert (gateway.state, gateway.flower_node_id) == ("accepted", str(ord("g")))


def test_a_gateway_is_no_device_of_any_cohort(context: ServerContext, controller: CampaignController) -> None:
    put_gateway(context)
    with context.database.reading() as session:
        assert service.cohort_device_ids(session, "all") == ["a", "b", "c"]
    campaign_id = start(context)
    controller.step()
    assert sorted(rows(context, campaign_id)) == ["a", "b", "c"]


AWAY: tuple[tuple[str, dict[str, Any]], ...] = (
    ("silent", {"last_seen_ms": 1}),
    ("without a node", {"flower_node_id": "0"}),
    ("never connected", {"online": False}),
    ("revoked", {"revoked": True}),
    ("of another site", {"site": "harbour"}),
)


@pytest.mark.parametrize(("name", "changes"), AWAY, ids=[name for name, _ in AWAY])
def test_without_its_gateway_a_site_is_asked_directly(
    context: ServerContext, controller: CampaignController, broker: Broker, name: str, changes: dict[str, Any]
) -> None:
    put_gateway(context, **changes)
    label(context, a="plant", b="plant", c="plant")
    campaign_id = start(context)
    controller.step()
    assert set(led(broker).values()) == {DIRECT}
    answer(context, campaign_id, a="accepted", b="accepted", c="accepted")
    controller.step()
    told = rows(context, campaign_id).get("gw")
    if name in ("silent", "without a node", "never connected"):
        assert told is not None
        assert (told.state, told.reason_code) == ("excluded", "offline")
    else:
        assert told is None
    assert load_plan(context, campaign_id)[0].gateways == {}


def test_a_gateway_that_goes_while_its_devices_are_invited_keeps_them(
    context: ServerContext, controller: CampaignController, broker: Broker
) -> None:
    put_gateway(context)
    label(context, a="plant", b="plant")
    campaign_id = start(context)
    controller.step()
    with context.database.transaction() as session:
        session.get_one(Device, "gw").last_seen_ms = 1
    controller._sent_ms.clear()  # it is time to invite again
    broker.commands.clear()
    controller.step()
    assert led(broker)["a"] == ("gw", ADDRESS)  # who may have accepted already is not led elsewhere
    with context.database.reading() as session:
        assert session.get_one(Device, "gw").online is False
    assert rows(context, campaign_id)["a"].gateway_id == "gw"


def test_two_gateways_share_a_site(context: ServerContext, controller: CampaignController, broker: Broker) -> None:
    names = [f"press-{index}" for index in range(12)]
    put_gateway(context, "gw")
    put_gateway(context, "gx")
    with context.database.transaction() as session:
        for index, name in enumerate(names):
            session.add(device(name, labels={"site": "plant"}, flower_node_id=str(1000 + index)))
    start(context)
    controller.step()
    through = {led(broker)[name][0] for name in names}
    assert through == {"gw", "gx"}


def test_a_campaign_that_needs_each_update_says_so(
    context: ServerContext, controller: CampaignController, broker: Broker
) -> None:
    put_gateway(context)
    label(context, a="plant", b="plant", c="plant")
    campaign_id = start(context, strategy="median")
    controller.step()
    assert set(led(broker).values()) == {DIRECT}
    answer(context, campaign_id, a="accepted", b="accepted", c="accepted")
    controller.step()
    gateway = rows(context, campaign_id)["gw"]
    assert (gateway.state, gateway.reason_code) == ("excluded", "needs-each")
    assert gateway.reason == "median needs each device's update"


def settings(**changes: Any) -> CampaignSettings:
    values: dict[str, Any] = {"rounds": 2, "local_epochs": 1, "batch_size": 8, "learning_rate": 0.1}
    return CampaignSettings(**{**values, "proximal_mu": 0.0, **changes})


SUMMABLE = ("fedavg", "fedprox", "fedavgm", "fedadam", "fedyogi", "fedadagrad", "fedbn", "fedper")
EACH = ("scaffold", "fedbuff", "qfedavg", "krum", "multikrum", "bulyan", "trimmedmean", "median", "geometricmedian")


def test_every_strategy_is_one_or_the_other() -> None:
    for strategy in SUMMABLE:
        assert sum_obstacle(strategy, settings(), incident=False) == ""
    for strategy in EACH:
        assert sum_obstacle(strategy, settings(), incident=False) == f"{strategy} needs each device's update"


OBSTACLES: tuple[tuple[dict[str, Any], str], ...] = (
    ({"privacy": {"mode": "local"}}, ""),
    ({"wire": "int8", "down_wire": "int4"}, ""),
    ({"eligibility": {"maximum_age_minutes": 5.0}}, ""),
    ({"privacy": {"mode": "central"}}, "central privacy"),
    ({"privacy": {"mode": "distributed"}}, "distributed privacy"),
    ({"secure_aggregation": True}, "secure aggregation"),
    ({"norm_bound": 3.0}, "norm_bound"),
    ({"per_round": 2}, "a round chooses"),
    ({"selection": "oort"}, "a round chooses"),
    ({"participation_cap": 1}, "participation_cap"),
    ({"eligibility": {"require_idle": True}}, "each round asks"),
    ({"mode": "buffered"}, "a buffered campaign"),
)


@pytest.mark.parametrize(("changes", "reason"), OBSTACLES, ids=[str(changes) for changes, _ in OBSTACLES])
def test_what_a_mean_of_a_site_would_break(changes: dict[str, Any], reason: str) -> None:
    found = sum_obstacle("fedavg", settings(**changes), incident=False)
    assert found.startswith(reason)
    assert bool(found) == bool(reason)


def test_the_devices_of_an_incident_are_measured_one_by_one() -> None:
    assert "incident" in sum_obstacle("fedavg", settings(), incident=True)
