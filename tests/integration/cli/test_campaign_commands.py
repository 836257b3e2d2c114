"""Campaigns by command line and REST: drafts, pauses, nested settings, what is shown of a campaign."""

from __future__ import annotations

import pytest
import sqlalchemy as sa

from integration.api.seeding import Seeded
from integration.cli.conftest import Skerry
from skerry_server.store.tables import Campaign

RUNNING = "campaign-c4d5e6f70819"


def test_a_campaign_shows_state_phase_spending_and_reasons(skerry: Skerry) -> None:
    shown = skerry("campaign", "show", RUNNING)
    assert shown.code == 0, shown.err
    for text in (
        "round 3: collect",
        "waits for",
        "pause, abort",
        "2.1 MB down, 270.0 kB up, 0.1 min, about 0.06 Wh",
        "1.22 at delta 1e-05",
        "4.98 at delta 1e-05 of a device in 1 of 1 private campaigns",
        "87.5 % with own parameters, 75.0 % without",
        "5 of 7 devices gain, 1 lose (round 2)",
        "2 hot: too warm (press-04: 71 °C, at most 65 °C wanted)",
        "1 offline: not connected (press-08: offline)",
        "the-approver",
    ):
        assert text in shown.out, text
    document = skerry("campaign", "show", RUNNING, "--json").document()
    assert document["phase"] == "collect"
    assert document["spent"] == {
        "bytes_down": 2_100_000, "bytes_up": 270_000, "minutes": 0.05, "energy_wh": pytest.approx(0.06),
        "epsilon": 1.22, "delta": 1e-5,
    }  # fmt: skip
    assert document["personal"] == {
        "round": 2, "devices": 7, "global_accuracy": 0.75, "personal_accuracy": 0.875, "gaining": 5, "losing": 1,
    }  # fmt: skip
    assert [(each["code"], each["devices"]) for each in document["reasons"]] == [
        ("hot", 2), ("offline", 1), ("outside-window", 1), ("quarantined", 1),
    ]  # fmt: skip
    assert document["devices"] == {"accepted": 3, "excluded": 5}
    assert [each["device_id"] for each in document["participants"]][:4] == [
        "press-01",
        "press-02",
        "press-03",
        "press-04",
    ]
    total = document["privacy_total"]
    assert (total["epsilon"], total["campaigns"], total["private"]) == (pytest.approx(4.98, abs=0.01), 1, 1)
    listed = next(row for row in skerry("campaign", "list", "--json").document() if row["id"] == RUNNING)
    assert (listed["phase"], listed["spent"], listed["actions"]) == ("collect", document["spent"], ["pause", "abort"])


def test_a_draft_is_made_approved_paused_and_resumed(skerry: Skerry, seeded: Seeded) -> None:
    assert skerry("campaign", "abort", RUNNING, "--reason", "make room").code == 0
    made = skerry(
        "campaign", "start", "digits", "--draft", "--strategy", "trimmedmean", "--set", "strategy_settings.trim=0.25",
        "--set", "eligibility.require_idle=true", "--set", 'eligibility.window={"start": "22:00", "end": "06:00"}',
        "--set", "per_round=4", "--json", role="operator",
    )  # fmt: skip
    assert made.code == 0, made.err
    document = made.document()
    campaign_id = document["id"]
    assert (document["state"], document["actions"], document["approved_by"]) == ("draft", ["approve", "abort"], "")
    assert document["waits_for"] == "a person to approve it"
    assert document["settings"]["strategy_settings"] == {"trim": 0.25}
    assert document["settings"]["eligibility"] == {"require_idle": True, "window": {"start": "22:00", "end": "06:00"}}
    refused = skerry("campaign", "approve", campaign_id, role="operator")
    assert refused.code == 2
    assert "approver" in refused.err
    assert skerry("campaign", "pause", campaign_id, "--reason", "x").code == 5
    approved = skerry("campaign", "approve", campaign_id, "--json", role="approver").document()
    assert (approved["state"], approved["approved_by"]) == ("approved", "the-approver")
    paused = skerry("campaign", "pause", campaign_id, "--reason", "maintenance", "--json", role="operator").document()
    assert (paused["state"], paused["detail"], paused["actions"]) == ("paused", "maintenance", ["resume", "abort"])
    resumed = skerry("campaign", "resume", campaign_id, "--json", role="operator").document()
    assert (resumed["state"], resumed["finished"]) == ("approved", False)
    rows = skerry("audit", "list", "--limit", "4", "--json").document()
    assert [(row["actor"], row["action"]) for row in rows] == [
        ("the-operator", "campaign.resume-approved"),
        ("the-operator", "campaign.pause"),
        ("the-approver", "campaign.approve"),
        ("the-operator", "campaign.create"),
    ]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--set", "wire=gzip"), "settings.wire: expected one of float32, bfloat16, int8"),
        (("--set", "privacy.mode=magic"), "settings.privacy.mode: expected one of none, central, local"),
        (("--set", "eligibility.window.start=22:00"), "settings.eligibility.window: expected"),
        (("--set", "eligibility.moon=full"), "settings.eligibility.moon: expected one of require_idle"),
        (("--set", "privacy=1", "--set", "privacy.mode=none"), "--set: expected"),
        (("--set", "secure_aggregation=true", "--strategy", "krum"), "settings.secure_aggregation: expected false"),
        (("--strategy", "fedbuff", "--set", "mode=rounds"), "settings.mode: expected buffered with strategy fedbuff"),
        (("--strategy", "magic"), "strategy: expected one of fedavg"),
    ],
)
def test_a_wrong_setting_is_named_and_nothing_is_made(
    skerry: Skerry, seeded: Seeded, arguments: tuple[str, ...], says: str
) -> None:
    def count() -> int:
        with seeded.context.database.reading() as session:
            return session.scalar(sa.select(sa.func.count()).select_from(Campaign)) or 0

    before = count()
    for more in ((), ("--draft",)):
        refused = skerry("campaign", "start", "digits", *arguments, *more)
        assert refused.code == 2, refused.err
        assert says in refused.err
        assert "Traceback" not in refused.err
    assert count() == before


def test_one_campaign_of_a_task_at_a_time(skerry: Skerry) -> None:
    refused = skerry("campaign", "start", "digits")
    assert refused.code == 5
    assert f"campaign {RUNNING} of task digits is still running" in refused.err
