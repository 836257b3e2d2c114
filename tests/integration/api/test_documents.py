"""What single resources look like, and that bad input is refused by name with nothing changed."""

from __future__ import annotations

import base64
from typing import Any

import pytest
from starlette.testclient import TestClient

from integration.api.seeding import TOKENS, Seeded, add_campaign, add_job, add_release
from skerry_contract.signing import Ed25519Verifier
from skerry_contract.v1.common_pb2 import SignedEnvelope
from skerry_server.audit import ledger
from skerry_server.fleet.authority import CertificateAuthority
from skerry_server.store.tables import Incident, Job


def test_a_device_tells_accuracy_of_the_release_that_it_runs(client: TestClient) -> None:
    device = client.get("/v1/devices/press-02").json()
    assert device["accuracy"] == {
        "labelled": 250,
        "correct": device["accuracy"]["correct"],
        "value": device["accuracy"]["correct"] / 250,
    }
    assert device["labels"] == {"site": "north", "line": "2"}
    assert device["health"]["latency_p99_us"] == 1030
    assert device["desired"] == {"release": "", "rollout": "", "sequence": 0, "published": True}


def test_labels_are_replaced_and_written_down(client: TestClient, seeded: Seeded) -> None:
    answer = client.put("/v1/devices/press-02/labels", json={"labels": {"site": "east"}})
    assert answer.json()["labels"] == {"site": "east"}
    assert client.get("/v1/cohorts/north").json()["device_count"] == 3
    newest = client.get("/v1/audit?page_size=1").json()["items"][0]
    assert (newest["actor"], newest["subject"]) == ("the-admin", "press-02")


def test_a_rollout_shows_canaries_first_and_whether_it_has_ended(client: TestClient) -> None:
    running = client.get("/v1/rollouts/rollout-5b1c90d2a3f4").json()
    assert [device["stage"] for device in running["devices"]] == ["canary"] + ["fleet"] * 7
    assert (running["finished"], running["succeeded"]) == (False, False)
    ended = client.get("/v1/rollouts/rollout-11aa22bb33cc").json()
    assert (ended["finished"], ended["succeeded"]) == (True, True)


def test_a_campaign_has_its_rounds_in_order(client: TestClient) -> None:
    campaign = client.get("/v1/campaigns/campaign-3f9c2a1b7d4e").json()
    assert [row["accuracy"] for row in campaign["rounds"]] == [0.903, 0.916, 0.924, 0.931, 0.935]
    assert (campaign["rounds_planned"], campaign["finished"], campaign["succeeded"]) == (5, True, True)
    assert [(row["device_id"], row["state"], row["reason"]) for row in campaign["participants"]] == [
        ("press-01", "accepted", "")
    ]


def test_a_failed_campaign_is_finished_but_has_not_succeeded(client: TestClient, seeded: Seeded) -> None:
    with seeded.context.database.transaction() as session:
        add_campaign(session, "campaign-bad", [], state="failed", settings={})
    campaign = client.get("/v1/campaigns/campaign-bad").json()
    assert (campaign["finished"], campaign["succeeded"], campaign["rounds_planned"]) == (True, False, 0)


def test_the_manifest_is_what_devices_verify(client: TestClient, seeded: Seeded) -> None:
    manifest = client.get("/v1/releases/digits-2/manifest").json()
    assert [file["path"] for file in manifest["files"]] == ["infer.onnx"]
    envelope = SignedEnvelope.FromString(base64.b64decode(manifest["envelope_base64"]))
    assert Ed25519Verifier([seeded.context.signer.public_key]).verify("release", envelope)
    assert manifest["signed_by"] == [envelope.signatures[0].key_id]


def test_an_incident_says_what_a_person_may_do(client: TestClient) -> None:
    by_id = {row["id"]: row for row in client.get("/v1/incidents").json()["items"]}
    assert by_id["incident-9d3e5a7c1b20"]["actions"] == ["approve", "dismiss"]
    assert by_id["incident-4c00d1e2f3a4"]["actions"] == []  # its cure is under way
    assert by_id["incident-77aa88bb99cc"] | {"finished": True, "actions": []} == by_id["incident-77aa88bb99cc"]


def test_broken_data_is_never_offered_for_approval(client: TestClient, seeded: Seeded) -> None:
    with seeded.context.database.transaction() as session:
        incident = session.get(Incident, "incident-77aa88bb99cc")
        assert incident is not None
        incident.state = "detected"
    assert client.get("/v1/incidents/incident-77aa88bb99cc").json()["actions"] == ["dismiss"]
    assert client.post("/v1/incidents/incident-77aa88bb99cc/approve", json={}).status_code == 409


def test_the_drift_matrix(client: TestClient) -> None:
    matrix = client.get("/v1/drift", params={"task": "digits"}).json()
    assert matrix["features"][:2] == ["ink", "rows"]
    first = matrix["devices"][0]
    assert (first["device_id"], first["status"]) == ("press-01", "drift")
    assert first["cells"]["contrast"] == {
        "psi": pytest.approx(0.32),
        "psi_corrected": 0.31,
        "p": 0.5,
        "q": 0.001,
        "severity": "critical",
        "flagged": True,
    }
    assert client.get("/v1/drift", params={"task": "har"}).json() == {"task": "har", "features": [], "devices": []}
    assert client.get("/v1/drift").json()["error"]["field"] == "task"


def test_a_verdict_about_another_release_is_not_shown(client: TestClient) -> None:
    assert len(client.get("/v1/drift?task=digits").json()["devices"]) == 8
    summary = client.get("/v1/summary").json()
    drift = next(stage for stage in summary["loop"] if stage["key"] == "drift")
    assert drift["value"] == "3/8"


def test_the_summary_counts_what_there_is(client: TestClient) -> None:
    summary = client.get("/v1/summary").json()
    assert summary["fleet"] == {
        "total": 8,
        "online": 7,
        "updating": 4,
        "labelled_samples": sum(180 + 31 * i for i in range(8)),
    }
    assert summary["champions"] == {"digits": "digits-1"}
    assert (summary["caller"], summary["role"]) == ("the-admin", "admin")
    moods = {stage["key"]: stage["mood"] for stage in summary["loop"]}
    assert moods == {
        "train": "idle",
        "gates": "idle",
        "release": "good",
        "rollout": "busy",
        "fleet": "busy",
        "drift": "attention",
        "incident": "attention",
        "campaign": "busy",
    }


def test_tasks_know_their_champion(client: TestClient) -> None:
    tasks = {row["name"]: row for row in client.get("/v1/tasks").json()["items"]}
    assert tasks["digits"] == {"name": "digits", "champion": "digits-1", "releases": 2}
    assert tasks["har"]["releases"] == 0


def test_figures_that_are_not_finite_become_null(client: TestClient, seeded: Seeded) -> None:
    with seeded.context.database.transaction() as session:
        add_release(session, seeded.context, 9, metrics={"accuracy": float("nan"), "loss": float("inf"), "note": "x"})
        add_job(session, "job-nan", progress={"loss": float("nan"), "rounds": [float("inf"), 1]})
    assert client.get("/v1/releases/digits-9").json()["metrics"] == {"accuracy": None, "loss": None}
    assert client.get("/v1/jobs/job-nan").json()["progress"] == {"loss": None, "rounds": [None, 1]}


def test_the_audit_ledger_verifies_and_says_where_it_does_not(client: TestClient, seeded: Seeded) -> None:
    assert client.get("/v1/audit/verify").json() == {"intact": True, "entries": 10, "first_broken": None}
    with seeded.context.database.engine.begin() as connection:
        connection.exec_driver_sql("UPDATE audit SET actor = 'mallory' WHERE sequence = 4")
    assert client.get("/v1/audit/verify").json() == {"intact": False, "entries": 10, "first_broken": 4}


def test_a_report_is_asked_for_once_and_read_in_a_sandbox(client: TestClient, seeded: Seeded) -> None:
    path = "/v1/incidents/incident-9d3e5a7c1b20/report"
    assert client.get(path).status_code == 404
    first = client.post(path)
    assert (first.status_code, first.json()["kind"]) == (202, "drift-report")
    assert client.post(path).json()["id"] == first.json()["id"]
    digest = seeded.context.artifacts.put_bytes(b"<h1>drift</h1><script>1</script>")
    with seeded.context.database.transaction() as session:
        job = session.get(Job, first.json()["id"])
        assert job is not None
        job.state, job.result = "done", {"html_sha256": digest}
    page = client.get(path)
    assert page.content == b"<h1>drift</h1><script>1</script>"
    policy = page.headers["content-security-policy"]
    assert policy.startswith("sandbox")
    assert "allow-same-origin" not in policy
    assert client.post(path).json()["id"] != first.json()["id"]


def test_metrics_for_prometheus(client: TestClient) -> None:
    client.get("/v1/devices/nope")
    text = client.get("/metrics").text
    for line in (
        'skerry_devices{presence="online"} 7',
        'skerry_rollouts{state="fleet"} 1',
        'skerry_jobs{state="failed"} 1',
        "skerry_drift_windows_unjudged 0",
        'skerry_http_requests_total{method="GET",route="/v1/devices/{device_id}",status="404"} 1',
    ):
        assert line in text.splitlines()


def test_health_needs_no_token_and_fails_with_the_store(client: TestClient, seeded: Seeded) -> None:
    del client.headers["authorization"]
    assert client.get("/healthz").json()["status"] == "ok"
    seeded.context.database.close()
    store = seeded.context.layout.database
    store.rename(store.with_suffix(".away"))
    store.mkdir()
    answer = client.get("/healthz")
    assert (answer.status_code, answer.json()["error"]["kind"]) == (503, "unavailable")


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "field"),
    [
        ("POST", "/v1/cohorts", {"name": "x", "selector": {}, "colour": "red"}, 422, "colour"),
        ("POST", "/v1/cohorts", {"selector": {}}, 422, "name"),
        ("POST", "/v1/cohorts", {"name": "Bad_Name", "selector": {}}, 422, "name"),
        ("POST", "/v1/cohorts", {"name": "x", "selector": {"a": 1}}, 422, "selector.a"),
        ("POST", "/v1/cohorts", {"name": "x", "selector": {str(i): "v" for i in range(33)}}, 422, "selector"),
        ("POST", "/v1/cohorts", {"name": "all", "selector": {}}, 409, ""),
        ("POST", "/v1/cohorts", [], 422, "body"),
        ("POST", "/v1/rollouts", {"release_id": "digits-9"}, 404, "release"),
        ("POST", "/v1/rollouts", {"release_id": "digits-2", "cohort_id": "nope"}, 404, "cohort"),
        ("POST", "/v1/rollouts", {"release_id": "digits-2", "canary_percent": 0}, 422, "canary_percent"),
        ("POST", "/v1/rollouts", {"release_id": "digits-2", "canary_percent": "ten"}, 422, "canary_percent"),
        ("POST", "/v1/rollouts", {"release_id": "digits-2"}, 409, ""),  # its devices are in another one
        ("POST", "/v1/trainings", {"task": "unknown"}, 422, "task"),
        ("POST", "/v1/trainings", {"task": "digits", "settings": {"epochs": -1}}, 422, None),
        ("POST", "/v1/campaigns", {"task": "digits", "strategy": "magic"}, 422, "strategy"),
        ("POST", "/v1/campaigns", {"task": "digits", "settings": {"rounds": 0}}, 422, None),
        ("POST", "/v1/enrollment-tokens", {"ttl_s": 1}, 422, "ttl_s"),
        ("POST", "/v1/candidates/nope/publish", None, 404, "candidate"),
        ("POST", "/v1/incidents/incident-77aa88bb99cc/dismiss", {}, 409, ""),
        ("POST", "/v1/incidents/incident-9d3e5a7c1b20/approve", {"reason": "x" * 501}, 422, "reason"),
        ("POST", "/v1/campaigns/campaign-3f9c2a1b7d4e/abort", {"reason": "late"}, 409, ""),
        ("POST", "/v1/campaigns/campaign-c4d5e6f70819/abort", {}, 422, "reason"),
        ("POST", "/v1/rollouts/rollout-5b1c90d2a3f4/abort", {}, 422, "reason"),
        ("POST", "/v1/rollouts/rollout-5b1c90d2a3f4/abort", {"reason": " "}, 422, "reason"),
        ("POST", "/v1/releases/digits-1/withdraw", {}, 422, "reason"),
        ("PUT", "/v1/policies/p", {"task": "digits", "settings": {"rounds": 0}}, 422, "settings.rounds"),
        ("PUT", "/v1/policies/p", {"task": "digits", "settings": {"magic": 1}}, 422, "settings.magic"),
        ("PUT", "/v1/devices/nope/labels", {"labels": {}}, 404, "device"),
        ("PUT", "/v1/devices/press-01/labels", {"labels": {"a": "x" * 129}}, 422, "labels.a"),
        ("POST", "/v1/api-tokens", {"name": "x", "role": "root"}, 422, "role"),
        ("GET", "/v1/releases/" + "x" * 300, None, 404, "release"),
        ("GET", "/v1/nothing", None, 404, ""),
        ("DELETE", "/v1/devices/press-01", None, 405, ""),
    ],
)
def test_bad_input_is_refused_by_name_and_changes_nothing(
    client: TestClient, seeded: Seeded, method: str, path: str, body: Any, status: int, field: str | None
) -> None:
    with seeded.context.database.reading() as session:
        before = ledger.head(session), session.query(Job).count()
    answer = client.request(method, path, json=body)
    assert answer.status_code == status
    error = answer.json()["error"]
    assert set(error) == {"kind", "message", "field", "expected", "got"}
    assert error["message"]
    if field is not None:
        assert error["field"] == field
    assert "Traceback" not in answer.text
    with seeded.context.database.reading() as session:
        assert (ledger.head(session), session.query(Job).count()) == before


def test_a_body_that_is_not_json_is_malformed(client: TestClient) -> None:
    answer = client.post("/v1/cohorts", content=b"{nope", headers={"content-type": "application/json"})
    assert (answer.status_code, answer.json()["error"]["kind"]) == (400, "malformed")


def test_a_body_over_a_mebibyte_is_too_large(client: TestClient) -> None:
    answer = client.post("/v1/cohorts", content=b"x" * (1 << 20) + b"x", headers={"content-type": "application/json"})
    assert (answer.status_code, answer.json()["error"]["kind"]) == (413, "too-large")
    streamed = client.post(
        "/v1/cohorts", content=iter([b"x" * 600_000] * 2), headers={"content-type": "application/json"}
    )
    assert streamed.status_code == 413


def test_an_enrolment_token_comes_with_where_to_use_it(client: TestClient, seeded: Seeded) -> None:
    made = client.post(
        "/v1/enrollment-tokens",
        json={"labels": {"site": "north"}},
        headers={"authorization": f"Bearer {TOKENS['operator']}"},
    )
    document = made.json()
    authority = CertificateAuthority.load(seeded.context.layout.pki)
    assert document["token"].split(".")[1] == authority.fingerprint[:32]
    assert document["server"] == f"https://127.0.0.1:{seeded.context.config.device_port}"
    assert document["labels"] == {"site": "north"}
    assert client.post("/v1/enroll", json={}).status_code == 404  # devices enrol at a door of their own


def test_a_training_and_a_policy_and_decisions_are_carried_out(client: TestClient) -> None:
    job = client.post("/v1/trainings", json={"task": "digits", "settings": {"epochs": 2}})
    assert (job.status_code, job.json()["kind"], job.json()["state"]) == (202, "train", "queued")
    policy = client.put(
        "/v1/policies/auto-digits", json={"task": "digits", "enabled": False, "settings": {"rounds": 3}}
    )
    assert (policy.json()["enabled"], policy.json()["settings"]) == (False, {"rounds": 3})
    aborted = client.post("/v1/rollouts/rollout-5b1c90d2a3f4/abort", json={"reason": "canary too slow"})
    assert aborted.json()["state"] == "rolling_back"
    approved = client.post("/v1/incidents/incident-9d3e5a7c1b20/approve", json={"reason": "new mount"})
    assert (approved.json()["state"], approved.json()["actions"]) == ("approved", ["dismiss"])
    actions = [(row["actor"], row["action"]) for row in client.get("/v1/audit?page_size=4").json()["items"]]
    assert [action for _, action in actions] == ["incident.approve", "rollout.abort", "policy.set", "training.start"]
    assert {actor for actor, _ in actions} == {"the-admin"}
