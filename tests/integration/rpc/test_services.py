"""gRPC and REST give the same answers over the same core."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import grpc
import pytest
from starlette.testclient import TestClient

from integration.api.seeding import TOKENS, Seeded, free_ports
from skerry_contract.v1 import fleet_api_pb2 as pb
from skerry_contract.v1 import fleet_api_pb2_grpc as api
from skerry_server.audit import ledger
from skerry_server.errors import PlatformError
from skerry_server.rpc.server import RpcServer

TIMEOUT_S = 20
#: Codes that no request of these tests may cause.
DEFECTS = (grpc.StatusCode.INTERNAL, grpc.StatusCode.UNIMPLEMENTED, grpc.StatusCode.UNKNOWN)
#: Fields of a device that have the same name by both doors.
SHARED = (
    "id",
    "device_class",
    "online",
    "active_release",
    "target_release",
    "update_status",
    "update_detail",
    "labelled_samples",
    "agent_version",
    "ineligible_reason",
)


@pytest.fixture
def channel(seeded: Seeded) -> Iterator[grpc.Channel]:
    server = RpcServer(seeded.context, address="127.0.0.1:0")
    server.start()
    with grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        yield channel
    server.stop(grace_s=1)


def _as(role: str) -> dict[str, Any]:
    return {"metadata": [("authorization", f"Bearer {TOKENS[role]}")], "timeout": TIMEOUT_S}


def stub(channel: grpc.Channel, service: str) -> Any:
    """The generated stub, which has no types."""
    return getattr(api, f"{service}Stub")(channel)


#: Service, method, least role, a request that gets past the role check.
METHODS: list[tuple[str, str, str, Any]] = [
    ("FleetService", "ListDevices", "viewer", pb.ListRequest()),
    ("FleetService", "GetDevice", "viewer", pb.GetRequest(id="nope")),
    ("FleetService", "ListCohorts", "viewer", pb.ListRequest()),
    ("FleetService", "CreateCohort", "operator", pb.CreateCohortRequest(name="Bad_Name")),
    ("ReleaseService", "ListReleases", "viewer", pb.ListRequest()),
    ("ReleaseService", "GetRelease", "viewer", pb.GetRequest(id="nope")),
    ("RolloutService", "ListRollouts", "viewer", pb.ListRequest()),
    ("RolloutService", "GetRollout", "viewer", pb.GetRequest(id="nope")),
    (
        "RolloutService",
        "StartRollout",
        "operator",
        pb.StartRolloutRequest(release_id="nope", cohort_id="all", canary_percent=1),
    ),
    ("RolloutService", "AbortRollout", "operator", pb.ActRequest(id="nope")),
    ("CampaignService", "ListCampaigns", "viewer", pb.ListRequest()),
    ("CampaignService", "GetCampaign", "viewer", pb.GetRequest(id="nope")),
    ("CampaignService", "StartCampaign", "operator", pb.StartCampaignRequest(task="nope", cohort_id="all")),
    ("CampaignService", "ApproveCampaign", "approver", pb.ActRequest(id="nope", reason="x")),
    ("CampaignService", "PauseCampaign", "operator", pb.ActRequest(id="nope", reason="x")),
    ("CampaignService", "ResumeCampaign", "operator", pb.ActRequest(id="nope", reason="x")),
    ("CampaignService", "AbortCampaign", "operator", pb.ActRequest(id="nope", reason="x")),
    ("IncidentService", "ListIncidents", "viewer", pb.ListRequest()),
    ("IncidentService", "GetIncident", "viewer", pb.GetRequest(id="nope")),
    ("IncidentService", "ApproveIncident", "approver", pb.ActRequest(id="nope")),
    ("IncidentService", "DismissIncident", "approver", pb.ActRequest(id="nope")),
    ("AuditService", "ListAudit", "viewer", pb.ListRequest()),
]


def _code(call: Callable[[], Any]) -> Any:
    try:
        call()
    except grpc.RpcError as error:
        return error.code()
    return grpc.StatusCode.OK


def test_the_table_covers_every_method() -> None:
    declared = {
        (service.name, method.name) for service in pb.DESCRIPTOR.services_by_name.values() for method in service.methods
    }
    assert {(service, method) for service, method, _, _ in METHODS} == declared


def test_methods_are_for_their_role_and_higher_ones(channel: grpc.Channel, seeded: Seeded) -> None:
    with seeded.context.database.reading() as session:
        before = ledger.head(session)
    roles = list(TOKENS)
    for service, method, least, request in METHODS:
        call = getattr(stub(channel, service), method)
        for metadata in ([], [("authorization", "Bearer wrong")]):
            code = _code(partial(call, request, metadata=metadata, timeout=TIMEOUT_S))
            assert code == grpc.StatusCode.UNAUTHENTICATED, method
        for role in roles:
            code = _code(partial(call, request, **_as(role)))
            refused = roles.index(role) < roles.index(least)
            assert (code == grpc.StatusCode.PERMISSION_DENIED) is refused, (method, role)
            assert code not in DEFECTS, (method, role)
    with seeded.context.database.reading() as session:
        assert ledger.head(session) == before


def test_the_fleet_is_the_same_as_by_rest(channel: grpc.Channel, client: TestClient) -> None:
    by_rpc = stub(channel, "FleetService").ListDevices(pb.ListRequest(), **_as("viewer")).devices
    by_rest = client.get("/v1/devices").json()["items"]
    assert len(by_rpc) == len(by_rest) == 8
    for rpc, rest in zip(by_rpc, by_rest, strict=True):
        for name in SHARED:
            assert getattr(rpc, name) == rest[name]
        assert dict(rpc.labels) == rest["labels"]
        assert rpc.last_seen_unix_ms == rest["last_seen_ms"]


def test_releases_rollouts_campaigns_incidents_and_audit_are_the_same(
    channel: grpc.Channel, client: TestClient
) -> None:
    releases = stub(channel, "ReleaseService").ListReleases(pb.ListRequest(), **_as("viewer")).releases
    for rpc, rest in zip(releases, client.get("/v1/releases").json()["items"], strict=True):
        assert (rpc.id, rpc.sequence, rpc.origin, rpc.state, rpc.bundle_sha256, rpc.parent_id, dict(rpc.metrics)) == (
            rest["id"],
            rest["sequence"],
            rest["origin"],
            rest["state"],
            rest["bundle_sha256"],
            rest["parent_release"],
            rest["metrics"],
        )
    rollouts = stub(channel, "RolloutService").ListRollouts(pb.ListRequest(), **_as("viewer")).rollouts
    for rpc, rest in zip(rollouts, client.get("/v1/rollouts").json()["items"], strict=True):
        assert (rpc.id, rpc.state, rpc.detail) == (rest["id"], rest["state"], rest["detail"])
        assert [(d.device_id, d.stage, d.state) for d in rpc.devices] == [
            (d["device_id"], d["stage"], d["state"]) for d in rest["devices"]
        ]
    campaigns = stub(channel, "CampaignService").ListCampaigns(pb.ListRequest(), **_as("viewer")).campaigns
    for rpc, rest in zip(campaigns, client.get("/v1/campaigns").json()["items"], strict=True):
        assert (rpc.id, rpc.state, rpc.rounds_planned) == (rest["id"], rest["state"], rest["rounds_planned"])
        assert [r.accuracy for r in rpc.rounds] == [r["accuracy"] for r in rest["rounds"]]
    incidents = stub(channel, "IncidentService").ListIncidents(pb.ListRequest(), **_as("viewer")).incidents
    for rpc, rest in zip(incidents, client.get("/v1/incidents").json()["items"], strict=True):
        assert (rpc.id, rpc.state, rpc.severity, list(rpc.device_ids)) == (
            rest["id"],
            rest["state"],
            rest["severity"],
            rest["device_ids"],
        )
    entries = stub(channel, "AuditService").ListAudit(pb.ListRequest(), **_as("viewer")).entries
    for rpc, rest in zip(entries, client.get("/v1/audit").json()["items"], strict=True):
        assert (rpc.sequence, rpc.actor, rpc.action, rpc.hash) == (
            rest["sequence"],
            rest["actor"],
            rest["action"],
            rest["hash"],
        )


def test_tokens_of_pages_are_the_same_by_both_doors(channel: grpc.Channel, client: TestClient) -> None:
    fleet = stub(channel, "FleetService")
    first = fleet.ListDevices(pb.ListRequest(page_size=3, filter={"label": "site=south"}), **_as("viewer"))
    rest = client.get(
        "/v1/devices", params={"label": "site=south", "page_size": 3, "page_token": first.next_page_token}
    )
    assert [device.id for device in first.devices] == ["press-01", "press-03", "press-05"]
    assert [row["id"] for row in rest.json()["items"]] == ["press-07"]


def test_what_is_started_by_rpc_is_seen_by_rest(channel: grpc.Channel, client: TestClient) -> None:
    rollouts = stub(channel, "RolloutService")
    aborted = rollouts.AbortRollout(pb.ActRequest(id="rollout-5b1c90d2a3f4", reason="late"), **_as("operator"))
    assert aborted.state == client.get("/v1/rollouts/rollout-5b1c90d2a3f4").json()["state"] == "rolling_back"
    approved = stub(channel, "IncidentService").ApproveIncident(
        pb.ActRequest(id="incident-9d3e5a7c1b20"), **_as("approver")
    )
    assert approved.state == client.get("/v1/incidents/incident-9d3e5a7c1b20").json()["state"] == "approved"
    cohort = stub(channel, "FleetService").CreateCohort(
        pb.CreateCohortRequest(name="line-two", selector={"line": "2"}), **_as("operator")
    )
    assert cohort.device_count == client.get("/v1/cohorts/line-two").json()["device_count"] == 3
    actors = [row["actor"] for row in client.get("/v1/audit?page_size=3").json()["items"]]
    assert actors == ["the-operator", "the-approver", "the-operator"]


@pytest.mark.parametrize(
    ("request_", "code", "says"),
    [
        (pb.ListRequest(page_size=501), "INVALID_ARGUMENT", "page_size"),
        (pb.ListRequest(page_token="AAAA"), "INVALID_ARGUMENT", "page_token"),
        (pb.ListRequest(filter={"colour": "red"}), "INVALID_ARGUMENT", "filter.colour"),
        (pb.ListRequest(filter={"online": "perhaps"}), "INVALID_ARGUMENT", "true or false"),
        (pb.ListRequest(filter={"cohort": "nope"}), "NOT_FOUND", "cohort"),
    ],
)
def test_bad_requests_say_what_is_wrong(channel: grpc.Channel, request_: Any, code: str, says: str) -> None:
    with pytest.raises(grpc.RpcError) as told:
        stub(channel, "FleetService").ListDevices(request_, **_as("viewer"))
    assert told.value.code().name == code
    assert says in told.value.details()


@pytest.mark.parametrize(
    ("service", "method", "identifier"),
    [
        ("RolloutService", "AbortRollout", "rollout-5b1c90d2a3f4"),
        ("CampaignService", "AbortCampaign", "campaign-c4d5e6f70819"),
        ("CampaignService", "PauseCampaign", "campaign-c4d5e6f70819"),
    ],
)
def test_nothing_is_stopped_without_a_reason(
    channel: grpc.Channel, seeded: Seeded, service: str, method: str, identifier: str
) -> None:
    with seeded.context.database.reading() as session:
        before = ledger.head(session)
    with pytest.raises(grpc.RpcError) as told:
        getattr(stub(channel, service), method)(pb.ActRequest(id=identifier, reason=" "), **_as("operator"))
    assert told.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert dict(told.value.trailing_metadata())["skerry-field"] == "reason"
    with seeded.context.database.reading() as session:
        assert ledger.head(session) == before


def test_the_fields_of_an_error_come_as_trailing_metadata(channel: grpc.Channel) -> None:
    with pytest.raises(grpc.RpcError) as told:
        stub(channel, "FleetService").GetDevice(pb.GetRequest(id="nöpe"), **_as("viewer"))
    fields = dict(told.value.trailing_metadata())
    assert (fields["skerry-kind"], fields["skerry-field"], fields["skerry-got"]) == ("not-found", "device", "n?pe")


def test_a_message_over_a_mebibyte_is_refused(channel: grpc.Channel) -> None:
    code = _code(lambda: stub(channel, "FleetService").GetDevice(pb.GetRequest(id="x" * (1 << 21)), **_as("viewer")))
    assert code == grpc.StatusCode.RESOURCE_EXHAUSTED


def test_a_busy_port_is_told(seeded: Seeded) -> None:
    (port,) = free_ports(1)
    first = RpcServer(seeded.context, address=f"127.0.0.1:{port}")
    first.start()
    try:
        with pytest.raises(PlatformError, match=str(port)):
            RpcServer(seeded.context, address=f"127.0.0.1:{port}")
    finally:
        first.stop(grace_s=0)


def test_a_campaign_by_grpc_from_the_draft_to_its_abort(channel: grpc.Channel) -> None:
    campaigns = stub(channel, "CampaignService")
    running = campaigns.GetCampaign(pb.GetRequest(id="campaign-c4d5e6f70819"), **_as("viewer"))
    assert (running.phase, list(running.actions), running.spent.bytes_down) == (
        "collect",
        ["pause", "abort"],
        2_100_000,
    )
    assert running.spent.epsilon == pytest.approx(1.22)
    assert (running.reasons[0].code, running.reasons[0].devices) == ("hot", 2)
    assert running.rounds[1].metrics["bytes_up"] == 180_000
    campaigns.AbortCampaign(pb.ActRequest(id=running.id, reason="make room"), **_as("operator"))
    request = pb.StartCampaignRequest(
        task="digits", cohort_id="all", strategy="fedavg", rounds=3, draft=True, settings_json='{"wire": "int8"}'
    )
    draft = campaigns.StartCampaign(request, **_as("operator"))
    assert (draft.state, draft.rounds_planned, draft.waits_for) == ("draft", 3, "a person to approve it")
    assert json.loads(draft.settings_json)["wire"] == "int8"
    approved = campaigns.ApproveCampaign(pb.ActRequest(id=draft.id), **_as("approver"))
    assert (approved.state, approved.approved_by) == ("approved", "the-approver")
    paused = campaigns.PauseCampaign(pb.ActRequest(id=draft.id, reason="maintenance"), **_as("operator"))
    assert (paused.state, list(paused.actions)) == ("paused", ["resume", "abort"])
    assert campaigns.ResumeCampaign(pb.ActRequest(id=draft.id), **_as("operator")).state == "approved"
    assert campaigns.AbortCampaign(pb.ActRequest(id=draft.id, reason="done"), **_as("operator")).state == "aborted"


@pytest.mark.parametrize("text", ["{", "[1]", "[" * 60_000, '{"wire": ' + "1" * 70_000 + "}"])
def test_settings_that_are_no_json_object_are_refused(channel: grpc.Channel, text: str) -> None:
    request = pb.StartCampaignRequest(task="digits", cohort_id="all", strategy="fedavg", settings_json=text)
    with pytest.raises(grpc.RpcError) as told:
        stub(channel, "CampaignService").StartCampaign(request, **_as("operator"))
    assert told.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert dict(told.value.trailing_metadata())["skerry-field"] == "settings_json"
