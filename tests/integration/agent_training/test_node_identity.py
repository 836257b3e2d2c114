"""Who may be a node of the SuperLink, and who may say so: over its real listener."""

from __future__ import annotations

import http.client
import ssl
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.proto.fleet_pb2 import ActivateNodeRequest, DeactivateNodeRequest, RegisterNodeFleetRequest
from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor
from flwr.supercore.primitives.asymmetric import generate_key_pairs, public_key_to_bytes
from flwr.supernode.fleet_http_client import FleetHttpClient
from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor

from integration.federation.rig import SuperLink, poll
from skerry_agent.identity.tls import server_context
from skerry_agent.training.flower_node import FlowerNode
from skerry_agent.training.node import TrainingNode
from skerry_agent.training.node_hint import NodeHint
from skerry_agent.training.server_clock import ServerClock
from skerry_contract.campaign import EVALUATE, EvaluateInstruction, EvaluateReply, Scalar
from skerry_server.federation.exchange import Broadcast, Reply
from skerry_server.federation.flower.run import FlowerRun
from skerry_server.fleet.authority import CertificateAuthority, utc_now
from skerry_server.superlink import SECRET_HEADER

PROTOBUF = {"content-type": "application/x-protobuf", "accept": "application/x-protobuf"}


def trusting(link: SuperLink) -> ssl.SSLContext:
    return server_context(link.authority.read_bytes(), lambda: 0)


@contextmanager
def stock_client(link: SuperLink, key: ec.EllipticCurvePrivateKey) -> Iterator[FleetHttpClient]:
    """A client as ``flower-supernode`` makes it."""
    interceptors = [RuntimeVersionHttpInterceptor("SuperNode"), NodeAuthHttpInterceptor(key, key.public_key())]
    address = f"localhost:{link.port}"
    with FleetHttpClient.from_server_address(address, False, link.authority.read_bytes(), interceptors) as client:
        yield client


@pytest.mark.parametrize("secret", [{}, {SECRET_HEADER: ""}, {SECRET_HEADER: "guess"}])
def test_everything_but_the_fleet_api_is_the_operators(link: SuperLink, secret: dict[str, str]) -> None:
    expected = {
        "/v1/control/register-node": 401,
        "/v1/control/unregister-node": 401,
        "/v1/control/start-run": 401,
        "/v1/runtime/acquire-task": 401,
        "/v1/runtime/push-messages": 401,
        "//v1/control/register-node": 401,
        "/v1/fleet/../control/register-node": 404,  # below the open prefix, where nothing of that name is
        "/v1/fleet/%2e%2e/control/register-node": 404,
        "/docs": 401,
        "/openapi.json": 401,
    }
    got: dict[str, int] = {}
    for path in expected:
        # http.client sends the path as it is; httpx would resolve the dots.
        connection = http.client.HTTPSConnection("127.0.0.1", link.port, timeout=10, context=trusting(link))
        connection.request("POST", path, body=b"", headers={**PROTOBUF, **secret})
        got[path] = connection.getresponse().status
        connection.close()
    assert got == expected


def test_a_node_cannot_register_itself_and_stock_flower_can_connect_once_the_operator_did(link: SuperLink) -> None:
    key, public = generate_key_pairs()
    pem = public_key_to_bytes(public)
    before = link.nodes.nodes()
    with stock_client(link, key) as client:
        for request in (client.RegisterNode, client.ActivateNode):
            kind = RegisterNodeFleetRequest if request == client.RegisterNode else ActivateNodeRequest
            with pytest.raises(httpx.HTTPStatusError) as refused:
                request(
                    kind(public_key=pem, **({} if kind is RegisterNodeFleetRequest else {"heartbeat_interval": 20}))
                )
            assert refused.value.response.status_code == 412
        assert link.nodes.nodes() == before

        assert link.nodes.register_as("lab-1", pem)
        node_id = client.ActivateNode(ActivateNodeRequest(public_key=pem, heartbeat_interval=20)).node_id
        assert node_id in [node.node_id for node in link.nodes.nodes() if node.name == "lab-1" and node.active]
        link.nodes.unregister(node_id)
        link.nodes.unregister(node_id)  # again: no error
        with pytest.raises(httpx.HTTPStatusError) as refused:
            client.DeactivateNode(DeactivateNodeRequest(node_id=node_id))
        assert refused.value.response.status_code == 401


def test_a_node_speaks_for_itself_only(link: SuperLink) -> None:
    mine, theirs = generate_key_pairs(), generate_key_pairs()
    assert link.nodes.register("mine", public_key_to_bytes(mine[1]))
    assert link.nodes.register("theirs", public_key_to_bytes(theirs[1]))
    other = next(node.node_id for node in link.nodes.nodes() if node.name == "device/theirs")
    with stock_client(link, mine[0]) as client, pytest.raises(httpx.HTTPStatusError) as refused:
        client.DeactivateNode(DeactivateNodeRequest(node_id=other))
    assert refused.value.response.status_code == 401


def test_a_key_that_is_none_is_refused_and_nothing_is_registered(link: SuperLink) -> None:
    before = link.nodes.nodes()
    assert not link.nodes.register("broken", b"-----BEGIN PUBLIC KEY-----\n?\n-----END PUBLIC KEY-----\n")
    assert link.nodes.nodes() == before


class Echo:
    """A worker that answers at once."""

    def handle(self, kind: str, fields: Mapping[str, object]) -> Mapping[str, Scalar]:
        assert kind == EVALUATE
        EvaluateInstruction.from_fields(fields)
        return EvaluateReply(device_id="old-battery", examples=7, accuracy=0.5, loss=1.0).to_fields()


class Node:
    """A node in a thread of this process."""

    def __init__(
        self,
        link: SuperLink,
        folder: Path,
        key: ec.EllipticCurvePrivateKey,
        *,
        tls: ssl.SSLContext,
        wall_s: float = 0.0,
        kind: type[TrainingNode] | type[FlowerNode] = TrainingNode,
    ) -> None:
        self.details: list[str] = []
        self.node_id = 0
        self._stop = threading.Event()
        clock = ServerClock(wall=lambda: wall_s) if wall_s else None
        address, hint = f"127.0.0.1:{link.port}", NodeHint(folder / "node.json")
        node = kind(address, key, hint, Echo(), tls=lambda: tls, on_link=self._hear, clock=clock)
        self._thread = threading.Thread(target=node.run, args=(self._stop,))

    def _hear(self, node_id: int, detail: str) -> None:
        self.node_id = node_id
        self.details.append(detail)

    def __enter__(self) -> Node:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        self._thread.join(20)
        assert not self._thread.is_alive()


@pytest.mark.parametrize("kind", [TrainingNode, FlowerNode], ids=["lane", "flower"])
@pytest.mark.parametrize("wall_s", [1.0, 4e9], ids=["1970", "2096"])
def test_a_device_with_a_wrong_clock_takes_part(
    link: SuperLink, tmp_path: Path, wall_s: float, kind: type[TrainingNode] | type[FlowerNode]
) -> None:
    key, public = generate_key_pairs()
    assert link.nodes.register(f"clock-{wall_s:g}-{kind.__name__}", public_key_to_bytes(public))
    with Node(link, tmp_path, key, tls=trusting(link), wall_s=wall_s, kind=kind) as node:
        poll(lambda: node.node_id, what="it joins")
        with FlowerRun(link.access, lock=tmp_path / "submit.lock", patience_s=20) as run:
            instruction = EvaluateInstruction(
                campaign_id="c",
                round=1,
                task="t",
                train_step_sha256="0" * 64,
                model="base",
                deadline_ms=20_000,
                parameters=b"",
            )
            sent = run.send(Broadcast(EVALUATE, "1", instruction.to_fields(), 20.0), [node.node_id])
            replies: list[Reply] = []

            def answered() -> bool:
                replies.extend(run.receive(sent.values()))
                return bool(replies)

            poll(answered, what="it answers")
            run.complete()
    assert [(reply.error, (reply.fields or {})["examples"]) for reply in replies] == [(None, 7)]


def test_a_superlink_of_another_authority_is_told_nothing(link: SuperLink, tmp_path: Path) -> None:
    key, public = generate_key_pairs()
    assert link.nodes.register("careful", public_key_to_bytes(public))
    stranger = CertificateAuthority.create(now=utc_now()).certificate_pem
    with Node(link, tmp_path, key, tls=server_context(stranger, lambda: 0)) as node:
        poll(lambda: any("CERTIFICATE_VERIFY_FAILED" in detail for detail in node.details), what="it refuses")
        assert node.node_id == 0
