"""The description of the API is good enough to write a client from."""

from __future__ import annotations

from typing import Any

from starlette.testclient import TestClient


def _operations(document: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    return [
        (f"{method.upper()} {path}", operation)
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    ]


def test_every_operation_is_described(client: TestClient) -> None:
    document = client.get("/v1/openapi.json").json()
    assert document["openapi"].startswith("3.1")
    for name, operation in _operations(document):
        assert operation.get("summary"), name
        assert operation.get("description"), name
        assert operation.get("tags"), name
        for parameter in operation.get("parameters", []):
            assert parameter["in"] in ("path", "query"), name


def test_every_reference_resolves(client: TestClient) -> None:
    document = client.get("/v1/openapi.json").json()

    def walk(node: Any) -> None:
        if isinstance(node, dict):
            if "$ref" in node:
                target: Any = document
                for part in node["$ref"].removeprefix("#/").split("/"):
                    target = target[part]
                assert target
            for value in node.values():
                walk(value)
        elif isinstance(node, list):
            for value in node:
                walk(value)

    walk(document)


def test_operation_identifiers_are_unique(client: TestClient) -> None:
    identifiers = [operation["operationId"] for _, operation in _operations(client.get("/v1/openapi.json").json())]
    assert len(set(identifiers)) == len(identifiers)


def test_all_but_health_ask_for_the_token(client: TestClient) -> None:
    document = client.get("/v1/openapi.json").json()
    assert document["components"]["securitySchemes"]["token"]["scheme"] == "bearer"
    without = {name for name, operation in _operations(document) if not operation.get("security")}
    assert without == {"GET /healthz"}


def test_failures_are_described_by_one_schema(client: TestClient) -> None:
    document = client.get("/v1/openapi.json").json()
    for name, operation in _operations(document):
        for status, answer in operation["responses"].items():
            if status.startswith(("4", "5")):
                schema = answer["content"]["application/json"]["schema"]
                assert schema == {"$ref": "#/components/schemas/Problem"}, (name, status)
