from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from integration.api.seeding import TOKENS, Seeded, add_job
from integration.cli.conftest import Skerry
from skerry_server.cli.main import app as cli
from skerry_server.cli.main import main
from skerry_server.store.tables import Candidate, Job, Rollout

LISTS = {
    ("device", "list"): "press-01",
    ("cohort", "list"): "north",
    ("task", "list"): "digits",
    ("job", "list"): "job-3",
    ("candidate", "list"): "candidate-2",
    ("release", "list"): "digits-2",
    ("rollout", "list"): "rollout-5b1c90d2a3f4",
    ("campaign", "list"): "campaign-3f9c2a1b7d4e",
    ("incident", "list"): "incident-9d3e5a7c1b20",
    ("policy", "list"): "auto-digits",
    ("champion", "history"): "digits-1",
    ("fitness", "list"): "int8-x86",
    ("fitness", "lessons"): "int8-x86",
    ("audit", "list"): "policy:auto-digits",
    ("token", "list"): "the-operator",
}
SHOWS = [
    ("device", "show", "press-01"),
    ("cohort", "show", "north"),
    ("job", "show", "job-3"),
    ("candidate", "show", "candidate-1"),
    ("release", "show", "digits-1"),
    ("release", "manifest", "digits-1"),
    ("rollout", "show", "rollout-5b1c90d2a3f4"),
    ("campaign", "show", "campaign-3f9c2a1b7d4e"),
    ("incident", "show", "incident-9d3e5a7c1b20"),
]


@pytest.mark.parametrize("command", LISTS, ids=" ".join)
def test_lists_for_people_and_for_programs(skerry: Skerry, command: tuple[str, str]) -> None:
    table = skerry(*command)
    assert table.code == 0, table.err
    assert LISTS[command] in table.out
    document = skerry(*command, "--json")
    assert isinstance(document.document(), list)
    assert LISTS[command] in document.out
    assert document.err == ""


@pytest.mark.parametrize("command", SHOWS, ids=" ".join)
def test_one_thing_for_people_and_for_programs(skerry: Skerry, command: tuple[str, str, str]) -> None:
    details = skerry(*command)
    assert details.code == 0, details.err
    assert command[2] in details.out
    assert isinstance(skerry(*command, "--json").document(), dict)


def test_limits_go_over_pages_and_filters_reach_the_api(skerry: Skerry) -> None:
    assert len(skerry("device", "list", "--limit", "3", "--json").document()) == 3
    south = skerry("device", "list", "--where", "site=south", "--online", "--json").document()
    assert [row["id"] for row in south] == ["press-01", "press-03", "press-05", "press-07"]
    assert [row["id"] for row in skerry("device", "list", "--offline", "--json").document()] == ["press-08"]
    assert [row["id"] for row in skerry("incident", "list", "--state", "proposed", "--json").document()] == [
        "incident-9d3e5a7c1b20"
    ]


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (("device", "show", "nope"), 4, "there is no device 'nope'"),
        (("rollout", "start", "digits-9"), 4, "there is no release 'digits-9'"),
        (("rollout", "start", "digits-2"), 5, "rollout-5b1c90d2a3f4"),
        (("incident", "dismiss", "incident-77aa88bb99cc"), 5, "resolved"),
        (("cohort", "create", "Bad_Name"), 2, "name: expected"),
        (("campaign", "start", "digits", "--strategy", "magic"), 2, "strategy: expected"),
        (("campaign", "start", "digits", "--set", "nonsense"), 2, "--set: expected NAME=VALUE"),
        (("rollout", "start", "digits-2", "--canary-percent", "900"), 2, "900"),
        (("device", "label", "press-01", "--label", "=x"), 2, "--label: expected NAME=VALUE"),
        (("policy", "set", "p", "digits", "--set", "rounds=0"), 2, "settings.rounds: expected"),
        (("train", "start"), 2, "TASK"),
        (("incident", "report", "nope"), 4, "there is no incident 'nope'"),
    ],
)
def test_failures_are_one_clear_line_and_an_exit_code(
    skerry: Skerry, arguments: tuple[str, ...], code: int, says: str
) -> None:
    result = skerry(*arguments)
    assert (result.code, result.out) == (code, "")
    assert result.err.count("\n") == 1
    assert result.err.startswith("skerry: ")
    assert says in result.err


def test_roles_and_tokens(skerry: Skerry, capsys: pytest.CaptureFixture[str]) -> None:
    refused = skerry("incident", "approve", "incident-9d3e5a7c1b20", role="operator")
    assert refused.code == 2
    assert "needs the role 'approver'" in refused.err
    assert main(["device", "list", "--url", skerry.url, "--token", "wrong"]) == 2
    assert "SKERRY_TOKEN" in capsys.readouterr().err


def test_a_control_plane_that_is_away_is_a_platform_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["device", "list", "--url", "http://127.0.0.1:1", "--token", "x"]) == 3
    assert "skerry up" in capsys.readouterr().err
    assert main(["device", "list", "--url", "ftp://x", "--token", "x"]) == 2


def test_something_that_is_not_a_control_plane_is_told(skerry: Skerry, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["device", "list", "--url", f"{skerry.url}/console", "--token", TOKENS["admin"]]) == 3
    assert "check the address" in capsys.readouterr().err


def test_an_unknown_command_and_no_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["frobnicate"]) == 2
    assert "frobnicate" in capsys.readouterr().err
    assert main(["--help"]) == 0
    assert "rollout" in capsys.readouterr().out


def test_every_command_has_help_an_example_and_json(capsys: pytest.CaptureFixture[str]) -> None:
    seen = 0
    for group in cli.registered_groups:
        assert group.typer_instance is not None
        name = str(group.typer_instance.info.name)
        for info in group.typer_instance.registered_commands:
            assert main([name, str(info.name), "--help"]) == 0
            text = capsys.readouterr().out
            assert "Example:" in text, (name, info.name)
            assert "--json" in text, (name, info.name)
            assert f"skerry {name} {info.name}" in text, (name, info.name)
            seen += 1
    assert seen >= 35


def test_acting_changes_the_store_under_the_callers_name(skerry: Skerry) -> None:
    labelled = skerry("device", "label", "press-01", "--label", "site=east", "--json", role="operator")
    assert labelled.document()["labels"] == {"site": "east"}
    made = skerry("cohort", "create", "east", "--label", "site=east", "--json", role="operator")
    assert made.document()["device_count"] == 1
    approved = skerry(
        "incident", "approve", "incident-9d3e5a7c1b20", "--reason", "new mount", "--json", role="approver"
    )
    assert approved.document()["state"] == "approved"
    policy = skerry("policy", "set", "auto-digits", "digits", "--set", "rounds=3", "--disabled", "--json")
    assert (policy.document()["enabled"], policy.document()["settings"]) == (False, {"rounds": 3})
    job = skerry("train", "start", "digits", "--set", "epochs=2", "--json").document()
    assert job["payload"]["settings"]["epochs"] == 2
    rows = skerry("audit", "list", "--limit", "5", "--json").document()
    assert [(row["actor"], row["action"]) for row in rows] == [
        ("the-admin", "training.start"),
        ("the-admin", "policy.set"),
        ("the-approver", "incident.approve"),
        ("the-operator", "cohort.create"),
        ("the-operator", "device.label"),
    ]
    assert skerry("audit", "verify", "--json").document()["intact"] is True


@pytest.mark.parametrize(
    "command",
    [
        ("rollout", "abort", "rollout-5b1c90d2a3f4"),
        ("campaign", "abort", "campaign-c4d5e6f70819"),
        ("campaign", "pause", "campaign-c4d5e6f70819"),
        ("release", "withdraw", "digits-1"),
    ],
)
def test_what_is_taken_back_needs_a_reason(skerry: Skerry, command: tuple[str, ...]) -> None:
    before = skerry("audit", "list", "--json").document()
    for reason in ((), ("--reason", " ")):
        refused = skerry(*command, *reason)
        assert refused.code == 2
        assert "reason" in refused.err
    assert skerry("audit", "list", "--json").document() == before


def test_tokens_are_made_used_and_revoked(skerry: Skerry, capsys: pytest.CaptureFixture[str]) -> None:
    token = skerry("token", "create", "ada", "--role", "viewer", "--json").document()["token"]
    assert main(["device", "list", "--url", skerry.url, "--token", token, "--json"]) == 0
    assert skerry("token", "revoke", "ada").code == 0
    assert main(["device", "list", "--url", skerry.url, "--token", token]) == 2
    capsys.readouterr()
    enrolment = skerry("device", "token", "--ttl", "600", "--label", "site=north", "--json").document()
    assert enrolment["labels"] == {"site": "north"}
    command = f"skerry-agent enroll --server {enrolment['server']} --token {enrolment['token']} --device-id NAME"
    assert enrolment["command"] == command
    shown = skerry("device", "token").out.splitlines()
    assert shown[-1].startswith(f"skerry-agent enroll --server {enrolment['server']} --token enroll-")  # on one line


def test_a_broken_ledger_is_exit_code_one(skerry: Skerry, seeded: Seeded) -> None:
    with seeded.context.database.engine.begin() as connection:
        connection.exec_driver_sql("UPDATE audit SET actor = 'mallory' WHERE sequence = 4")
    result = skerry("audit", "verify", "--json")
    assert (result.code, result.document()["first_broken"]) == (1, 4)
    assert "from entry 4" in result.err


def _later(seeded: Seeded, change: Callable[[], None]) -> threading.Timer:
    timer = threading.Timer(1.0, change)
    timer.start()
    return timer


@pytest.mark.parametrize(
    ("state", "code", "says"), [("finished", 0, ""), ("rolled_back", 1, "rollout-5b1c90d2a3f4 is rolled_back")]
)
def test_waiting_for_a_rollout_ends_with_it(skerry: Skerry, seeded: Seeded, state: str, code: int, says: str) -> None:
    def end() -> None:
        with seeded.context.database.transaction() as session:
            rollout = session.get(Rollout, "rollout-5b1c90d2a3f4")
            assert rollout is not None
            rollout.state = state

    timer = _later(seeded, end)
    result = skerry("rollout", "show", "rollout-5b1c90d2a3f4", "--wait", "--timeout", "60", "--json")
    timer.join()
    assert result.code == code
    assert result.document()["state"] == state  # the last state is printed in both cases
    assert says in result.err
    assert "fleet, 1 failed, 2 healthy" in result.err


def test_waiting_for_gates_then_publishing(skerry: Skerry, seeded: Seeded) -> None:
    with seeded.context.database.transaction() as session:
        session.add(
            Candidate(
                id="candidate-9", task="digits", origin="central", state="built", parameters_sha256="", created_ms=1
            )
        )

    def judge() -> None:
        with seeded.context.database.transaction() as session:
            candidate = session.get(Candidate, "candidate-9")
            assert candidate is not None
            gate = {"name": "accuracy", "passed": False, "value": 0.5, "limit": 0.9, "detail": "below the champion"}
            candidate.state, candidate.gates = "rejected", {"gates": [gate]}

    timer = _later(seeded, judge)
    result = skerry("candidate", "show", "candidate-9", "--wait", "--timeout", "60")
    timer.join()
    assert result.code == 1
    assert "FAILED accuracy 0.5 (limit 0.9) below the champion" in result.out
    assert "did not pass: accuracy" in result.err
    assert skerry("candidate", "publish", "candidate-9").code == 5
    assert skerry("candidate", "publish", "candidate-9", "--wait").code == 1


def test_waiting_has_a_deadline_and_what_was_waited_for_goes_on(skerry: Skerry, seeded: Seeded) -> None:
    result = skerry("campaign", "show", "campaign-c4d5e6f70819", "--wait", "--timeout", "1")
    assert result.code == 1
    assert "has not ended within 1 s; it goes on" in result.err
    assert skerry("campaign", "show", "campaign-c4d5e6f70819", "--json").document()["finished"] is False


def test_a_report_is_written_to_a_file(skerry: Skerry, seeded: Seeded, tmp_path: Path) -> None:
    digest = seeded.context.artifacts.put_bytes("<h1>Ä</h1>".encode())
    with seeded.context.database.transaction() as session:
        add_job(session, "job-r", kind="drift-report", state="queued", payload={"incident_id": "incident-9d3e5a7c1b20"})

    def write() -> None:
        with seeded.context.database.transaction() as session:
            job = session.get(Job, "job-r")
            assert job is not None
            job.state, job.result = "done", {"html_sha256": digest}

    timer = _later(seeded, write)
    target = tmp_path / "drift.html"
    result = skerry("incident", "report", "incident-9d3e5a7c1b20", "--output", str(target), "--json")
    timer.join()
    assert result.code == 0, result.err
    assert target.read_text(encoding="utf-8") == "<h1>Ä</h1>"
    assert result.document()["bytes"] == len("<h1>Ä</h1>".encode())


def test_the_data_directory_says_where_and_who(
    skerry: Skerry, seeded: Seeded, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("SKERRY_URL", "SKERRY_TOKEN", "SKERRY_SERVER_DIR"):
        monkeypatch.delenv(name, raising=False)
    config = seeded.context.config.model_copy(update={"api_port": int(skerry.url.rsplit(":", 1)[1])})
    seeded.context.layout.config.write_text(config.model_dump_json())
    assert main(["device", "list", "--data-dir", str(seeded.folder), "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)) == 8
    monkeypatch.setenv("SKERRY_SERVER_DIR", str(seeded.folder))
    assert main(["device", "list", "--json"]) == 0
    capsys.readouterr()
    seeded.context.layout.admin_token.unlink()
    assert main(["device", "list"]) == 3
    assert "admin-token" in capsys.readouterr().err
    assert main(["device", "list", "--data-dir", str(seeded.folder / "nowhere")]) == 3
    assert "skerry up" in capsys.readouterr().err


def test_the_console_script_in_a_process_of_its_own(url: str) -> None:
    environment = os.environ | {"SKERRY_URL": url, "SKERRY_TOKEN": TOKENS["viewer"], "PYTHONUNBUFFERED": "1"}
    command = [sys.executable, "-c", "from skerry_server.cli.main import run; run()"]
    good = subprocess.run(
        [*command, "device", "list", "--json"], capture_output=True, env=environment, timeout=90, check=False
    )
    assert (good.returncode, len(json.loads(good.stdout))) == (0, 8)
    bad = subprocess.run(
        [*command, "device", "show", "nope"], capture_output=True, env=environment, timeout=90, check=False
    )
    assert (bad.returncode, bad.stdout) == (4, b"")
    assert bad.stderr == b"skerry: there is no device 'nope'\n"
    with subprocess.Popen(
        [*command, "device", "list", "--json"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment
    ) as gone:
        assert gone.stdout is not None
        gone.stdout.close()  # as `| head -0` does
        assert gone.stderr is not None
        assert b"Traceback" not in gone.stderr.read()
