"""What several private campaigns spend of one device: composed, told, and bounded."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import sqlalchemy as sa

from skerry_server.config import ServerConfig
from skerry_server.context import ServerContext
from skerry_server.errors import InvalidRequestError
from skerry_server.federation import privacy_ledger, service
from skerry_server.federation.controller import CampaignController
from skerry_server.federation.privacy.accountant import Spending, composed_epsilon, exact_epsilon
from skerry_server.federation.privacy.settings import parse_privacy
from skerry_server.store.tables import Campaign, CampaignParticipant, CampaignRound
from unit.federation.campaign_store import Broker, campaign, context, start

__all__ = ["context"]

CENTRAL = {"mode": "central", "noise_multiplier": 2.0, "delta": 1e-5}


def test_two_campaigns_without_sampling_compose_like_the_rounds_of_one() -> None:
    both = [Spending(2.0, 3), Spending(1.0, 2)]
    # mu**2 = 3 / 4 + 2 / 1.
    assert composed_epsilon(both, 1e-5) == pytest.approx(exact_epsilon(Spending(1 / math.sqrt(2.75), 1), 1e-5))
    assert composed_epsilon([Spending(2.0, 1)] * 4, 1e-5) == pytest.approx(exact_epsilon(Spending(2.0, 4), 1e-5))
    assert composed_epsilon(both, 1e-5) < sum(exact_epsilon(each, 1e-5) for each in both)
    assert composed_epsilon([Spending(2.0, 0)], 1e-5) == composed_epsilon([], 1e-5) == 0.0


@pytest.mark.soak
def test_the_composition_agrees_with_the_library_and_takes_sampling() -> None:
    dp_accounting = pytest.importorskip("dp_accounting")
    from dp_accounting.pld import PLDAccountant

    library = PLDAccountant()
    library.compose(dp_accounting.GaussianDpEvent(2.0), 3)
    library.compose(dp_accounting.GaussianDpEvent(1.0), 2)
    plain = [Spending(2.0, 3), Spending(1.0, 2)]
    assert composed_epsilon(plain, 1e-5) == pytest.approx(library.get_epsilon(1e-5), rel=1e-3)
    sampled = [Spending(2.0, 3), Spending(1.0, 2, sampling_probability=0.1)]
    assert exact_epsilon(plain[0], 1e-5) < composed_epsilon(sampled, 1e-5) < composed_epsilon(plain, 1e-5)


@pytest.mark.parametrize(
    ("settings", "rounds"),
    [
        ({"noise_multiplier": 2.0}, 9),
        ({"noise_multiplier": 1.0, "target_epsilon": 7.0}, 2),
        ({"target_epsilon": 3.0}, 9),
    ],
)
def test_what_a_campaign_may_spend_ends_at_its_own_budget(settings: dict[str, Any], rounds: int) -> None:
    privacy = parse_privacy({"mode": "central", **settings})
    spending = privacy_ledger.planned(privacy, 9)
    assert spending.rounds == rounds  # 6.57 after two rounds, 8.38 after three: test_privacy_campaign
    if privacy.target_epsilon:
        assert exact_epsilon(spending, privacy.delta) <= privacy.target_epsilon


def ran(
    context: ServerContext, name: str, *, rounds: int, devices: tuple[str, ...], state: str = "finished", **privacy: Any
) -> None:
    """A campaign of the past."""
    with context.database.transaction() as session:
        chosen = parse_privacy({**CENTRAL, **privacy}).as_dict()
        row = Campaign(
            id=name, task="digits", base_release="digits-r1", cohort_id="all", strategy="fedavg", state=state,
            settings={"rounds": 5, "local_epochs": 1, "batch_size": 8, "learning_rate": 0.1, "proximal_mu": 0.0,
                      "secure_aggregation": chosen["mode"] == "distributed", "privacy": chosen},
            flower_run_id="7", created_by="ada", created_ms=1, updated_ms=1,
        )  # fmt: skip
        session.add(row)
        session.flush()
        for device in devices:
            session.add(CampaignParticipant(campaign_id=name, device_id=device, state="accepted"))
        for number in range(1, rounds + 1):
            accountant = {"noise_multiplier": 2.0, "rounds": number, "delta": 1e-5}
            session.add(
                CampaignRound(
                    campaign_id=name, number=number, invited=3, accepted=3, accuracy=0.5, loss=1.0, seconds=1.0,
                    parameters_sha256="0" * 64, privacy=accountant, committed_ms=number,
                )
            )  # fmt: skip


def total(context: ServerContext) -> privacy_ledger.Total:
    with context.database.reading() as session:
        return privacy_ledger.total(session, task="digits", cohort_id="all")


def epsilon(rounds: int) -> Any:
    return pytest.approx(exact_epsilon(Spending(2.0, rounds), 1e-5))


def test_the_device_that_gave_most_counts(context: ServerContext) -> None:
    assert total(context) == privacy_ledger.Total(0.0, 0.0, 0, 0, 0)
    ran(context, "c1", rounds=3, devices=("a", "b"))
    ran(context, "c2", rounds=2, devices=("b", "c"))
    ran(context, "c3", rounds=4, devices=("c",))
    found = total(context)  # a: 3 rounds, b: 5, c: 6
    assert (found.epsilon, found.campaigns, found.private, found.delta) == (epsilon(6), 2, 3, 1e-5)


@pytest.mark.parametrize(
    ("state", "mode", "counted"),
    [
        ("finished", "central", 2),
        ("aborted", "central", 2),  # what was not committed was not published
        ("aborted", "distributed", 3),  # the devices' updates of the open round had been sent
        ("running", "central", 5),  # all that it may yet do
        ("paused", "central", 5),
        ("draft", "central", 0),
    ],
)
def test_a_campaign_counts_by_its_state(context: ServerContext, state: str, mode: str, counted: int) -> None:
    ran(context, "c1", rounds=0 if state == "draft" else 2, devices=("a",), state=state, mode=mode)
    assert total(context).epsilon == epsilon(counted)


def test_a_limit_refuses_the_campaign_that_could_pass_it_with_numbers(context: ServerContext) -> None:
    ran(context, "c1", rounds=3, devices=("a",))
    limit = exact_epsilon(Spending(2.0, 5), 1e-5) + 0.01
    settings = {"rounds": 3, "privacy": CENTRAL}
    with pytest.raises(InvalidRequestError) as caught:
        start(context, settings=settings, epsilon_limit=limit)
    text = str(caught.value)
    assert caught.value.field == "settings.privacy"
    assert f"at most epsilon {limit:g} of a device over all campaigns of digits" in text
    assert f"{exact_epsilon(Spending(2.0, 3), 1e-5):.4g} is spent or promised by 1 of them" in text
    assert f"epsilon {exact_epsilon(Spending(2.0, 6), 1e-5):.4g} at delta 1e-05 with 3 rounds at noise" in text
    with context.database.reading() as session:
        assert session.scalar(sa.select(sa.func.count()).select_from(Campaign)) == 1
    start(context, settings={**settings, "rounds": 2}, epsilon_limit=limit)  # five rounds in all are within
    assert total(context).epsilon == epsilon(5)


def test_a_draft_that_others_have_overtaken_fails_when_it_begins(context: ServerContext) -> None:
    limit = exact_epsilon(Spending(2.0, 5), 1e-5) + 0.01
    config = ServerConfig(**{**context.config.model_dump(), "epsilon_limit": limit})
    with context.database.transaction() as session:
        draft = service.create_campaign(
            session, task="digits", cohort_id="all", strategy="fedavg", actor="ada", epsilon_limit=limit,
            settings={"rounds": 3, "privacy": CENTRAL},
        )  # fmt: skip
    ran(context, "c1", rounds=3, devices=("a",))
    with context.database.transaction() as session:
        service.approve_campaign(session, draft.id, actor="bob")
    broker = Broker()
    CampaignController(replace(context, config=config), broker).step()
    row = campaign(context, draft.id)
    assert row.state == "failed"
    assert "over all campaigns of digits" in row.detail
    assert broker.commands == []


def test_a_limit_asks_nothing_of_a_campaign_without_privacy(context: ServerContext) -> None:
    ran(context, "c1", rounds=3, devices=("a",))
    start(context, settings={"rounds": 3}, epsilon_limit=0.1)
