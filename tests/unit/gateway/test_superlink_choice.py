"""Where a device trains: an invitation leads it to a gateway, a gateway that is away sends it home."""

from __future__ import annotations

from pathlib import Path

import pytest

from skerry_agent.control.campaigns import Invitations
from skerry_agent.policy.eligibility import Conditions, Limits
from skerry_agent.training.superlink_choice import AWAY_S, HOME_S, LOOK_S, SuperLinkChoice, follow
from skerry_contract.v1.telemetry_pb2 import CampaignInvitation, CampaignResponse, Command

LIMITS = Limits(temperature_c=85.0, battery_percent=30.0, p99_ms=200.0)
HOME, GATEWAY = "fleet.example:9092", "gw.plant.example:9443"


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def invitation(address: str = GATEWAY, gateway_id: str = "gw", campaign_id: str = "c1") -> CampaignInvitation:
    return CampaignInvitation(campaign_id=campaign_id, superlink_address=address, gateway_id=gateway_id)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def choice(tmp_path: Path, clock: Clock) -> SuperLinkChoice:
    return SuperLinkChoice(HOME, tmp_path / "superlink.json", clock=clock)


def lead(tmp_path: Path, clock: Clock, sent: CampaignInvitation) -> None:
    follow(tmp_path / "superlink.json", sent)
    clock.now += LOOK_S


def test_an_invitation_leads_there_and_the_next_one_home(tmp_path: Path, clock: Clock, choice: SuperLinkChoice) -> None:
    assert choice.address() == HOME
    lead(tmp_path, clock, invitation())
    assert choice.address() == GATEWAY
    assert SuperLinkChoice(HOME, tmp_path / "superlink.json", clock=clock).address() == GATEWAY  # after a restart
    lead(tmp_path, clock, invitation("fleet.example:9092", "", "c2"))
    assert choice.address() == HOME


@pytest.mark.parametrize("address", ["", "nowhere", "http://evil:1", "a b:1", "gw:1\nx"])
def test_an_address_that_is_none_leads_home(
    tmp_path: Path, clock: Clock, choice: SuperLinkChoice, address: str
) -> None:
    lead(tmp_path, clock, invitation(address))
    assert choice.address() == HOME


def test_a_gateway_that_is_away_is_given_up_for_a_while(tmp_path: Path, clock: Clock, choice: SuperLinkChoice) -> None:
    lead(tmp_path, clock, invitation())
    assert choice.address() == GATEWAY
    choice.link(GATEWAY, up=True)
    choice.link(GATEWAY, up=False)
    clock.now += AWAY_S
    assert choice.address() == GATEWAY
    choice.link(GATEWAY, up=False)  # told again: it is away since the first time
    clock.now += 1.0
    assert choice.address() == HOME
    choice.link(HOME, up=True)
    clock.now += HOME_S - 1.0
    assert choice.address() == HOME
    clock.now += 1.0
    assert choice.address() == GATEWAY
    choice.link(GATEWAY, up=True)
    clock.now += 10 * AWAY_S
    assert choice.address() == GATEWAY


def test_a_short_absence_moves_nobody(tmp_path: Path, clock: Clock, choice: SuperLinkChoice) -> None:
    lead(tmp_path, clock, invitation())
    for _ in range(5):
        choice.link(GATEWAY, up=False)
        clock.now += AWAY_S - 1.0
        choice.link(GATEWAY, up=True)
        assert choice.address() == GATEWAY


def test_a_new_invitation_ends_the_time_at_home(tmp_path: Path, clock: Clock, choice: SuperLinkChoice) -> None:
    lead(tmp_path, clock, invitation())
    assert choice.address() == GATEWAY
    choice.link(GATEWAY, up=False)
    clock.now += AWAY_S + 1.0
    assert choice.address() == HOME
    clock.now += AWAY_S + 1.0
    assert choice.address() == HOME
    lead(tmp_path, clock, invitation(campaign_id="c2"))
    assert choice.address() == GATEWAY


def test_a_broken_file_leads_home(tmp_path: Path, choice: SuperLinkChoice) -> None:
    (tmp_path / "superlink.json").write_bytes(b"{")
    assert choice.address() == HOME


def answer(sent: CampaignInvitation, on_accepted: list[str], *, labelled: int, full: bool = False) -> list[bool]:
    answers: list[bool] = []

    def respond(response: CampaignResponse) -> bool:
        answers.append(response.accepted)
        return True

    def accepted(heard: CampaignInvitation) -> None:
        if full:
            raise OSError(28, "no space")
        on_accepted.append(heard.gateway_id)

    sent.task, sent.release_id, sent.train_step_sha256, sent.minimum_samples = "t", "r", b"s" * 32, 10
    invitations = Invitations(LIMITS, respond=respond, on_accepted=accepted)
    invitations.command(Command(command_id="c1", invitation=sent).SerializeToString(), now_s=0.0, now_ms=0)
    conditions = Conditions(
        temperature_c=None,
        battery_percent=None,
        charging=True,
        p99_us=0,
        release_id="r",
        task="t",
        train_step_sha256=b"s" * 32,
        labelled_samples=labelled,
        flower_node_id=7,
        updating=False,
    )
    invitations.step(conditions, now_s=99.0, now_ms=0)
    return answers


def test_only_who_accepts_follows_and_who_cannot_does_not_accept() -> None:
    heard: list[str] = []
    assert answer(invitation(), heard, labelled=50) == [True]
    assert answer(invitation(), heard, labelled=3) == [False]
    assert heard == ["gw"]
    assert answer(invitation(), heard, labelled=50, full=True) == []
