"""Who may do what: every route by every role."""

from __future__ import annotations

from typing import Any

import pytest
from starlette.testclient import TestClient

from integration.api.seeding import TOKENS, Seeded
from skerry_server.api.access import ROLES
from skerry_server.audit import ledger
from skerry_server.store.tables import ApiToken

#: Method, path, body, least powerful role that may. Bodies are such that whoever may gets past the role check.
ROUTES: list[tuple[str, str, dict[str, Any] | None, str]] = [
    ("GET", "/v1/devices", None, "viewer"),
    ("GET", "/v1/devices/{device_id}", None, "viewer"),
    ("PUT", "/v1/devices/{device_id}/labels", {"labels": {"site": "x"}}, "operator"),
    ("POST", "/v1/devices/{device_id}/revoke", {}, "operator"),
    ("POST", "/v1/enrollment-tokens", {}, "operator"),
    ("GET", "/v1/cohorts", None, "viewer"),
    ("GET", "/v1/cohorts/{cohort_id}", None, "viewer"),
    ("POST", "/v1/cohorts", {"name": "south", "selector": {}}, "operator"),
    ("GET", "/v1/tasks", None, "viewer"),
    ("POST", "/v1/trainings", {"task": "unknown"}, "operator"),
    ("GET", "/v1/jobs", None, "viewer"),
    ("GET", "/v1/jobs/{job_id}", None, "viewer"),
    ("GET", "/v1/campaigns", None, "viewer"),
    ("GET", "/v1/campaigns/{campaign_id}", None, "viewer"),
    ("POST", "/v1/campaigns", {"task": "unknown"}, "operator"),
    ("POST", "/v1/campaigns/{campaign_id}/approve", {}, "approver"),
    ("POST", "/v1/campaigns/{campaign_id}/pause", {}, "operator"),
    ("POST", "/v1/campaigns/{campaign_id}/resume", {}, "operator"),
    ("POST", "/v1/campaigns/{campaign_id}/abort", {}, "operator"),
    ("GET", "/v1/candidates", None, "viewer"),
    ("GET", "/v1/candidates/{candidate_id}", None, "viewer"),
    ("POST", "/v1/candidates/{candidate_id}/publish", None, "approver"),
    ("GET", "/v1/releases", None, "viewer"),
    ("GET", "/v1/releases/{release_id}", None, "viewer"),
    ("GET", "/v1/releases/{release_id}/manifest", None, "viewer"),
    ("POST", "/v1/releases/{release_id}/withdraw", {"reason": "x"}, "approver"),
    ("GET", "/v1/champions", None, "viewer"),
    ("GET", "/v1/rollouts", None, "viewer"),
    ("GET", "/v1/rollouts/{rollout_id}", None, "viewer"),
    ("POST", "/v1/rollouts", {"release_id": "nope"}, "operator"),
    ("POST", "/v1/rollouts/{rollout_id}/abort", {}, "operator"),
    ("GET", "/v1/incidents", None, "viewer"),
    ("GET", "/v1/incidents/{incident_id}", None, "viewer"),
    ("POST", "/v1/incidents/{incident_id}/approve", {}, "approver"),
    ("POST", "/v1/incidents/{incident_id}/dismiss", {}, "approver"),
    ("POST", "/v1/incidents/{incident_id}/report", None, "operator"),
    ("GET", "/v1/incidents/{incident_id}/report", None, "viewer"),
    ("GET", "/v1/trust", None, "viewer"),
    ("GET", "/v1/policies", None, "viewer"),
    ("PUT", "/v1/policies/{name}", {"task": "digits"}, "admin"),
    ("GET", "/v1/audit", None, "viewer"),
    ("GET", "/v1/audit/verify", None, "viewer"),
    ("GET", "/v1/api-tokens", None, "admin"),
    ("POST", "/v1/api-tokens", {"name": "x", "role": "viewer"}, "admin"),
    ("POST", "/v1/api-tokens/{name}/revoke", None, "admin"),
    ("GET", "/v1/summary", None, "viewer"),
    ("GET", "/v1/fitness", None, "viewer"),
    ("GET", "/v1/fitness/lessons", None, "viewer"),
    ("GET", "/v1/drift?task=digits", None, "viewer"),
    ("GET", "/metrics", None, "viewer"),
]
#: Answered without an API token; the event stream is tried where a real server can end it.
OPEN = {("GET", "/healthz")}
STREAMS = {("GET", "/v1/events")}


def _concrete(path: str) -> str:
    for name in ("device_id", "cohort_id", "job_id", "campaign_id", "candidate_id", "release_id", "rollout_id"):
        path = path.replace("{" + name + "}", "nope")
    return path.replace("{incident_id}", "nope").replace("{name}", "nope")


def _call(client: TestClient, method: str, path: str, body: Any, token: str) -> Any:
    return client.request(method, _concrete(path), json=body, headers={"authorization": f"Bearer {token}"})


def test_the_table_covers_every_route(client: TestClient) -> None:
    document = client.get("/v1/openapi.json").json()
    known = {(method.upper(), path) for path, methods in document["paths"].items() for method in methods}
    assert known - OPEN - STREAMS == {(method, path.partition("?")[0]) for method, path, _, _ in ROUTES}


@pytest.mark.parametrize(("method", "path", "body", "least"), ROUTES, ids=[f"{m} {p}" for m, p, _, _ in ROUTES])
def test_a_route_is_for_its_role_and_higher_ones(
    client: TestClient, seeded: Seeded, method: str, path: str, body: Any, least: str
) -> None:
    with seeded.context.database.reading() as session:
        before = ledger.head(session)
    refused = [role for role in ROLES if ROLES.index(role) < ROLES.index(least)]
    for token in ("", "no-such-token"):
        answer = _call(client, method, path, body, token)
        assert answer.status_code == 401
        assert answer.json()["error"]["kind"] == "unauthenticated"
        assert answer.headers["www-authenticate"] == "Bearer"
    for role in refused:
        answer = _call(client, method, path, body, TOKENS[role])
        assert answer.status_code == 403
        error = answer.json()["error"]
        assert (error["kind"], error["expected"], error["got"]) == ("forbidden", f"role {least} or higher", role)
    with seeded.context.database.reading() as session:
        assert ledger.head(session) == before  # nobody who was refused has changed anything
    for role in ROLES[len(refused) :]:
        assert _call(client, method, path, body, TOKENS[role]).status_code not in (401, 403, 405, 500, 503)


def test_a_revoked_token_stops_working_at_once(client: TestClient, seeded: Seeded) -> None:
    made = client.post("/v1/api-tokens", json={"name": "ada", "role": "operator"}).json()
    headers = {"authorization": f"Bearer {made['token']}"}
    assert client.get("/v1/summary", headers=headers).json()["caller"] == "ada"
    assert client.post("/v1/api-tokens/ada/revoke").status_code == 204
    assert client.get("/v1/summary", headers=headers).status_code == 401
    with seeded.context.database.reading() as session:
        stored = session.query(ApiToken).filter_by(name="ada").one()
        assert made["token"] not in (stored.token_sha256, stored.name)


def test_the_last_admin_cannot_lock_everybody_out(client: TestClient) -> None:
    answer = client.post("/v1/api-tokens/the-admin/revoke")
    assert answer.status_code == 409
    assert client.get("/v1/api-tokens").status_code == 200
    client.post("/v1/api-tokens", json={"name": "second", "role": "admin"})
    assert client.post("/v1/api-tokens/the-admin/revoke").status_code == 204


def test_names_of_valid_tokens_are_unique_and_can_be_used_again(client: TestClient) -> None:
    body = {"name": "ada", "role": "viewer"}
    assert client.post("/v1/api-tokens", json=body).status_code == 201
    assert client.post("/v1/api-tokens", json=body).status_code == 409
    client.post("/v1/api-tokens/ada/revoke")
    assert client.post("/v1/api-tokens", json=body).status_code == 201
    states = [row["revoked"] for row in client.get("/v1/api-tokens?name=ada").json()["items"]]
    assert sorted(states) == [False, True]
