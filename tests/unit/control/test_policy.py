"""The device's last word: eligibility, invitations, sensors, pausing, health counters."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from skerry_agent.config import AgentLayout
from skerry_agent.control.campaigns import PATIENCE_S, WAITING, Invitations
from skerry_agent.control.health import HealthMeter, increase
from skerry_agent.errors import DeviceError
from skerry_agent.policy.eligibility import Conditions, Limits, device_obstacle, invitation_obstacle
from skerry_agent.policy.labelled import count_labelled
from skerry_agent.policy.pause import TrainingPause
from skerry_agent.policy.reporting import WindowPolicy, WindowPolicyFile, read_window_policy
from skerry_agent.policy.sensors import Power, power, temperature_c
from skerry_agent.training.labelled_store import LabelledStore
from skerry_contract.errors import WireError
from skerry_contract.v1.agent_local_pb2 import ServingStatus
from skerry_contract.v1.telemetry_pb2 import CampaignInvitation, CampaignResponse, Command

LIMITS = Limits(temperature_c=80.0, battery_percent=30.0, p99_ms=10.0)
FIT = Conditions(
    temperature_c=50.0,
    battery_percent=80.0,
    charging=False,
    p99_us=5_000,
    release_id="digits-1",
    task="digits",
    train_step_sha256=b"t" * 32,
    labelled_samples=200,
    flower_node_id=2**63 + 5,
    updating=False,
)
INVITATION = CampaignInvitation(
    campaign_id="campaign-1",
    task="digits",
    release_id="digits-1",
    train_step_sha256=b"t" * 32,
    minimum_samples=200,
    expires_unix_ms=1_000,
)


@pytest.mark.parametrize(
    ("changes", "reason", "passes"),
    [
        ({}, None, None),
        ({"temperature_c": 80.0}, None, None),
        ({"temperature_c": 80.6}, "too hot: 81 °C, limit 80 °C", False),
        ({"temperature_c": None, "battery_percent": None}, None, None),
        ({"battery_percent": 29.0}, "battery low: 29 %, limit 30 %", False),
        ({"battery_percent": 29.0, "charging": True}, None, None),
        ({"p99_us": 10_001}, "answers are slow: p99 10.0 ms, limit 10.0 ms", False),
        ({"release_id": ""}, "no release answers", True),
        ({"updating": True}, "an update is under way", True),
        ({"flower_node_id": 0}, "the training process has no Flower node yet", True),
        ({"labelled_samples": 199}, "199 labelled samples, 200 are needed", False),
        ({"task": "har"}, "the device does har, not digits", False),
        ({"release_id": "digits-2"}, "release digits-2 answers, not digits-1", True),
        ({"train_step_sha256": b""}, "the release has another training step", False),
    ],
)
def test_invitation(changes: dict[str, object], reason: str | None, passes: bool | None) -> None:
    obstacle = invitation_obstacle(INVITATION, replace(FIT, **changes), LIMITS, now_ms=1_000)  # type: ignore[arg-type]
    assert (None if obstacle is None else obstacle.reason) == reason
    assert (None if obstacle is None else obstacle.passes) == passes


def test_an_expired_invitation_is_declined() -> None:
    obstacle = invitation_obstacle(INVITATION, FIT, LIMITS, now_ms=1_001)
    assert obstacle is not None
    assert obstacle.reason == "the invitation has expired"
    assert device_obstacle(FIT, LIMITS) is None


class Answers:
    def __init__(self) -> None:
        self.room = True
        self.sent: list[CampaignResponse] = []

    def __call__(self, response: CampaignResponse) -> bool:
        if self.room:
            self.sent.append(response)
        return self.room


def command(campaign_id: str = "campaign-1", expires_unix_ms: int = 0) -> bytes:
    invitation = CampaignInvitation()
    invitation.CopyFrom(INVITATION)
    invitation.campaign_id = campaign_id
    return Command(command_id="c1", expires_unix_ms=expires_unix_ms, invitation=invitation).SerializeToString()


def test_an_invitation_is_answered_once() -> None:
    answers = Answers()
    invitations = Invitations(LIMITS, respond=answers)
    for now in (0.0, 1.0, 2.0):
        invitations.command(command(), now_s=now, now_ms=500)
        invitations.step(FIT, now_s=now, now_ms=500)
    assert [(sent.accepted, sent.reason, sent.flower_node_id, sent.labelled_samples) for sent in answers.sent] == [
        (True, "", 2**63 + 5, 200)
    ]


def test_what_may_pass_is_waited_out_and_then_declined() -> None:
    answers = Answers()
    invitations = Invitations(LIMITS, respond=answers)
    invitations.command(command(), now_s=0.0, now_ms=500)
    unready = replace(FIT, flower_node_id=0)
    invitations.step(unready, now_s=PATIENCE_S - 0.1, now_ms=500)
    assert answers.sent == []
    assert invitations.waiting
    invitations.step(unready, now_s=PATIENCE_S, now_ms=500)
    assert [(sent.accepted, sent.reason) for sent in answers.sent] == [
        (False, "the training process has no Flower node yet")
    ]
    assert not invitations.waiting


def test_what_passes_in_time_is_accepted() -> None:
    answers = Answers()
    invitations = Invitations(LIMITS, respond=answers)
    invitations.command(command(), now_s=0.0, now_ms=500)
    invitations.step(replace(FIT, updating=True), now_s=1.0, now_ms=500)
    invitations.step(FIT, now_s=2.0, now_ms=500)
    assert [sent.accepted for sent in answers.sent] == [True]


def test_an_answer_that_the_disk_has_no_room_for_is_given_later() -> None:
    answers = Answers()
    answers.room = False
    invitations = Invitations(LIMITS, respond=answers)
    invitations.command(command(), now_s=0.0, now_ms=500)
    invitations.step(FIT, now_s=0.0, now_ms=500)
    answers.room = True
    invitations.step(FIT, now_s=1.0, now_ms=500)
    assert [sent.accepted for sent in answers.sent] == [True]


@pytest.mark.parametrize(
    "payload", [b"\xff\xff", Command(command_id="c1").SerializeToString(), command("Not A Name")], ids=str
)
def test_a_bad_command_is_refused(payload: bytes) -> None:
    invitations = Invitations(LIMITS, respond=Answers())
    with pytest.raises(WireError):
        invitations.command(payload, now_s=0.0, now_ms=0)
    assert not invitations.waiting


def test_an_expired_command_is_ignored_and_waiting_ones_are_bounded() -> None:
    invitations = Invitations(LIMITS, respond=Answers())
    invitations.command(command(expires_unix_ms=10), now_s=0.0, now_ms=11)
    assert not invitations.waiting
    for number in range(WAITING):
        invitations.command(command(f"campaign-{number}"), now_s=0.0, now_ms=0)
    with pytest.raises(WireError, match="at most 16"):
        invitations.command(command("one-more"), now_s=0.0, now_ms=0)


def sysfs(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def test_the_hottest_plausible_zone_counts(tmp_path: Path) -> None:
    zones = {"0/temp": "45000\n", "1/temp": "71500\n", "2/temp": "-274000\n", "3/temp": "broken", "4/type": "x"}
    root = sysfs(tmp_path, {f"thermal/thermal_zone{name}": text for name, text in zones.items()})
    assert temperature_c(root) == 71.5
    assert temperature_c(tmp_path / "nothing") is None


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, Power(None, charging=False)),
        ({"AC/type": "Mains", "AC/online": "1"}, Power(None, charging=True)),
        ({"BAT0/type": "Battery", "BAT0/capacity": "55", "BAT0/status": "Discharging"}, Power(55.0, charging=False)),
        (
            {
                "BAT0/type": "Battery",
                "BAT0/capacity": "55",
                "BAT0/status": "Charging",
                "BAT1/type": "Battery",
                "BAT1/capacity": "20",
                "mouse/type": "Battery",
                "mouse/scope": "Device",
                "mouse/capacity": "3",
            },
            Power(20.0, charging=True),
        ),
        ({"BAT0/type": "Battery", "BAT0/capacity": "?"}, Power(None, charging=False)),
    ],
)
def test_power(tmp_path: Path, files: dict[str, str], expected: Power) -> None:
    assert power(sysfs(tmp_path, {f"power_supply/{name}": text for name, text in files.items()})) == expected


def test_strain_pauses_training_and_its_end_resumes_it(tmp_path: Path) -> None:
    layout = AgentLayout(tmp_path)
    pause, file = TrainingPause(layout), tmp_path / "run" / "pause-training"
    pause.follow(FIT, LIMITS)
    assert not file.exists()
    pause.follow(replace(FIT, temperature_c=95.0), LIMITS)
    assert file.read_text() == "hot: too hot: 95 °C, limit 80 °C"
    TrainingPause(layout).follow(FIT, LIMITS)
    assert not file.exists(), "a pause that a killed process left ends with the strain"


def test_health_is_what_happened_in_the_period() -> None:
    meter = HealthMeter("boot-1", 100.0, {})

    def report(at: float, requests: int, errors: int) -> tuple[int, int, int]:
        status = ServingStatus(release_id="digits-1", requests=requests, errors=errors, latency_p99_us=900)
        made = meter.report(status, at, outbox_depth=7, temperature_c=41.5, training=True)
        assert (made.boot_id, made.release_id, made.latency_p99_us, made.outbox_depth) == ("boot-1", "digits-1", 900, 7)
        return made.period_ms, made.requests, made.errors

    assert report(130.0, 100, 1) == (30_000, 100, 1)
    assert report(160.0, 250, 1) == (30_000, 150, 0)
    assert report(190.5, 40, 2) == (30_500, 40, 1), "serving was started again and counts from 0"
    away = meter.report(None, 200.0, outbox_depth=0, temperature_c=0.0, training=False)
    assert (away.release_id, away.requests, away.period_ms) == ("", 0, 9_500)
    assert report(210.0, 60, 2)[1:] == (20, 0), "nothing is lost while it does not answer"
    assert (increase(5, 5), increase(5, 4), increase(0, 9)) == (0, 4, 9)


def test_labelled_samples_are_counted_in_the_store_that_serving_writes(tmp_path: Path) -> None:
    path = tmp_path / "labelled.sqlite"
    assert count_labelled(path) == 0
    store = LabelledStore(path, 5)
    assert count_labelled(path) == 0
    for number in range(7):
        store.add(f"request-{number}", np.zeros(3, np.float32), number % 2)
    assert count_labelled(path) == store.count() == 5
    store.add("another-shape", np.zeros((2, 2), np.float32), 0)
    assert count_labelled(path) == store.count() == len(store.load()[1]) == 1, "training takes one shape"
    broken = tmp_path / "broken.sqlite"
    broken.write_bytes(b"no database" * 200)
    with pytest.raises(DeviceError, match="labelled samples"):
        count_labelled(broken)


def test_wanted_windows_are_written_when_they_change_and_read_back(tmp_path: Path) -> None:
    layout = AgentLayout(tmp_path)
    assert read_window_policy(layout) == WindowPolicy(0, 0)
    file = WindowPolicyFile(layout)
    file.follow(WindowPolicy())
    assert not layout.reporting_file.exists(), "what holds anyway needs no file"
    file.follow(WindowPolicy(50, 2_000))
    assert read_window_policy(layout) == WindowPolicy(50, 2_000)
    written = layout.reporting_file.stat().st_ino
    for again in (file, WindowPolicyFile(layout)):
        again.follow(WindowPolicy(50, 2_000))
    assert layout.reporting_file.stat().st_ino == written, "an unchanged policy wears no flash"
    WindowPolicyFile(layout).follow(WindowPolicy())
    assert read_window_policy(layout) == WindowPolicy(0, 0)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{",
        '{"window_requests": 5}',
        '{"window_requests": "5", "window_ms": 1}',
        '{"window_requests": -1, "window_ms": 1}',
        '{"window_requests": 4294967296, "window_ms": 1}',
        '{"window_requests": true, "window_ms": 1}',
    ],
)
def test_a_broken_file_of_windows_leaves_the_own_configuration(tmp_path: Path, text: str) -> None:
    layout = AgentLayout(tmp_path)
    layout.run.mkdir()
    layout.reporting_file.write_text(text)
    assert read_window_policy(layout) == WindowPolicy(0, 0)


def test_windows_that_could_not_be_written_are_written_later(tmp_path: Path) -> None:
    layout = AgentLayout(tmp_path)
    layout.run.write_text("in the way of the folder")
    file = WindowPolicyFile(layout)
    file.follow(WindowPolicy(50, 0))
    assert read_window_policy(layout) == WindowPolicy(0, 0)
    layout.run.unlink()
    file.follow(WindowPolicy(50, 0))
    assert read_window_policy(layout) == WindowPolicy(50, 0)
