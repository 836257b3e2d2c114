"""Lists: pages, filters, what is refused."""

from __future__ import annotations

import pytest
from starlette.testclient import TestClient

from integration.api.seeding import Seeded, add_device

LISTS = [
    "devices",
    "cohorts",
    "jobs",
    "candidates",
    "releases",
    "champions",
    "fitness",
    "rollouts",
    "campaigns",
    "incidents",
    "policies",
    "audit",
    "api-tokens",
]


@pytest.mark.parametrize("name", LISTS)
def test_pages_of_one_row_add_up_to_the_whole_list(client: TestClient, name: str) -> None:
    whole = client.get(f"/v1/{name}").json()
    assert whole["items"]
    assert whole["next_page_token"] == ""
    seen = []
    token = ""
    for _ in range(len(whole["items"])):
        page = client.get(f"/v1/{name}", params={"page_size": 1, "page_token": token}).json()
        seen += page["items"]
        token = page["next_page_token"]
    assert token == ""
    # Ages are not in the documents, so the same rows are the same documents.
    assert seen == whole["items"]


@pytest.mark.parametrize("name", LISTS)
@pytest.mark.parametrize(
    ("query", "field"),
    [
        ("page_size=0", "page_size"),
        ("page_size=501", "page_size"),
        ("page_size=many", "page_size"),
        ("page_token=AAAA", "page_token"),
        ("page_token=" + "A" * 1025, "page_token"),
        ("colour=red", "colour"),
    ],
)
def test_a_bad_query_names_its_field(client: TestClient, name: str, query: str, field: str) -> None:
    answer = client.get(f"/v1/{name}?{query}")
    assert answer.status_code == 422
    error = answer.json()["error"]
    assert (error["kind"], error["field"]) == ("invalid", field)
    assert error["expected"]


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("online=false", ["press-08"]),
        ("label=site=south&online=true", ["press-01", "press-03", "press-05", "press-07"]),
        ("cohort=cohort-north", ["press-02", "press-04", "press-06", "press-08"]),
        ("cohort=north", ["press-02", "press-04", "press-06", "press-08"]),
        ("active_release=digits-2", ["press-01", "press-05"]),
        ("update_status=probation", ["press-06"]),
        ("device_class=jetson", []),
    ],
)
def test_filters_of_devices(client: TestClient, query: str, expected: list[str]) -> None:
    assert [row["id"] for row in client.get(f"/v1/devices?{query}").json()["items"]] == expected


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("jobs?state=failed", ["job-3"]),
        ("jobs?kind=train", ["job-4"]),
        ("releases?origin=federated", ["digits-2"]),
        ("releases?task=har", []),
        ("rollouts?state=fleet", ["rollout-5b1c90d2a3f4"]),
        ("rollouts?release=digits-1", ["rollout-11aa22bb33cc"]),
        ("campaigns?strategy=fedavg", ["campaign-3f9c2a1b7d4e"]),
        ("campaigns?incident=incident-4c00d1e2f3a4", ["campaign-8e21c0447aa1"]),
        ("incidents?severity=critical", ["incident-4c00d1e2f3a4"]),
        ("incidents?kind=data-quality", ["incident-77aa88bb99cc"]),
    ],
)
def test_filters_of_the_others(client: TestClient, path: str, expected: list[str]) -> None:
    assert [row["id"] for row in client.get(f"/v1/{path}").json()["items"]] == expected


def test_time_ordered_lists_are_newest_first(client: TestClient) -> None:
    for name, moment in (("releases", "created_ms"), ("campaigns", "created_ms"), ("incidents", "opened_ms")):
        moments = [row[moment] for row in client.get(f"/v1/{name}").json()["items"]]
        assert moments == sorted(moments, reverse=True)


def test_bad_filter_values_are_refused(client: TestClient) -> None:
    assert client.get("/v1/devices?label=nonsense").json()["error"]["field"] == "filter.label"
    assert client.get("/v1/devices?cohort=nope").status_code == 404
    assert client.get("/v1/devices?online=perhaps").json()["error"]["field"] == "online"


def test_a_label_with_quotes_and_wildcards_is_compared_as_it_is(client: TestClient, seeded: Seeded) -> None:
    with seeded.context.database.transaction() as session:
        add_device(session, "odd", labels={"site": "%'; DROP TABLE devices; --"})
    answer = client.get("/v1/devices", params={"label": "site=%'; DROP TABLE devices; --"})
    assert [row["id"] for row in answer.json()["items"]] == ["odd"]
    for text in ("site=%", 'a"b=%', "a.b[0]=x", "$=x"):
        assert client.get("/v1/devices", params={"label": text}).json()["items"] == []
    assert len(client.get("/v1/devices").json()["items"]) == 9
