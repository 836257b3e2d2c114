"""The lane over the SuperLink's real listener: who may do what, what a round costs, and what a broken link loses."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.supercore.constant import TASK_TOKEN_HEADER
from flwr.supercore.primitives.asymmetric import generate_key_pairs, public_key_to_bytes

from integration.federation.rig import SuperLink, poll
from skerry_agent.identity.tls import server_context
from skerry_agent.training.lane_client import BlobMissingError, LaneClient, Message
from skerry_agent.training.lane_node import LaneNode
from skerry_agent.training.node_link import LinkError, NotRegisteredError, RunEndedError
from skerry_agent.training.server_clock import ServerClock
from skerry_contract import lane
from skerry_contract.campaign import INLINE_BYTES, Scalar
from skerry_server.federation.exchange import Broadcast, Reply
from skerry_server.federation.flower.lane_client import LaneClient as CampaignEnd
from skerry_server.federation.flower.run import FlowerRun

LARGE = bytes(range(256)) * (INLINE_BYTES // 200)


class Counting(LaneClient):
    """Counts its requests."""

    requests: list[str]

    def _send(self, method: str, path: str, *more: Any) -> Any:
        self.requests.append(f"{method} {path}")
        return super()._send(method, path, *more)


@pytest.fixture
def run(link: SuperLink, tmp_path: Path) -> Iterator[FlowerRun]:
    """A run of a campaign."""
    with FlowerRun(link.access, lock=tmp_path / "submit.lock", patience_s=20) as run:
        yield run


@pytest.fixture
def enrol(link: SuperLink) -> Iterator[Callable[[str], Counting]]:
    """Makes nodes: a registered key and its client, which has attached."""
    clients: list[Counting] = []

    def make(name: str) -> Counting:
        key, public = generate_key_pairs()
        assert link.nodes.register(name, public_key_to_bytes(public))
        clients.append(client_of(link, key))
        clients[-1].attach()
        return clients[-1]

    yield make
    for client in clients:
        client.close()


def client_of(link: SuperLink, key: ec.EllipticCurvePrivateKey) -> Counting:
    tls = server_context(link.authority.read_bytes(), lambda: 0)
    client = Counting(f"127.0.0.1:{link.port}", key, tls=lambda: tls, clock=ServerClock())
    client.requests = []
    return client


def ask(run: FlowerRun, *nodes: int, ttl_s: float = 20.0, **fields: Scalar) -> dict[int, str]:
    return run.send(Broadcast("train", "1", {"campaign_id": str(run.run_id), **fields}, ttl_s), nodes)


def told(client: LaneClient) -> Message:
    accepted, message = client.exchange(wait_s=10.0)
    assert not accepted
    assert message is not None
    return message


def answers(run: FlowerRun, sent: Mapping[int, str], count: int = 1) -> list[Reply]:
    replies: list[Reply] = []

    def arrived() -> bool:
        run.wait(1.0)
        replies.extend(run.receive(sent.values()))
        return len(replies) >= count

    poll(arrived, what="the answers")
    return replies


def test_a_round_costs_a_node_one_request_and_a_blob_each_way_one_more(
    run: FlowerRun, link: SuperLink, enrol: Callable[[str], Counting]
) -> None:
    nodes = [enrol(f"cheap-{number}") for number in range(2)]
    for client in nodes:
        client.requests.clear()
    asked: list[str] = []

    def noticed(request: httpx.Request) -> None:
        asked.append(request.url.path)

    run._lane._http.event_hooks["request"].append(noticed)
    for parameters in (b"small", LARGE):
        sent = ask(run, *(client.node_id for client in nodes), parameters=parameters)
        for client in nodes:
            message = told(client)
            fields = lane.unpack_fields(message.frame, read=partial(blob, client))
            assert fields["parameters"] == parameters
            frame, blobs = lane.pack_fields({"parameters": parameters[::-1]})
            for sha256, data in blobs.items():
                client.put_blob(sha256, data, message_id=message.message_id)
            assert client.exchange(wait_s=0.0, message_id=message.message_id, answer=frame) == (True, None)
        replies = answers(run, sent, 2)
        assert [reply.fields for reply in replies] == [{"parameters": parameters[::-1]}] * 2
    # Without the large model: two requests a round and node, of which the second is the first of the next round.
    exchanges = [path for client in nodes for path in client.requests if lane.EXCHANGE_PATH in path]
    blobs_moved = [path for client in nodes for path in client.requests if lane.BLOB_PREFIX in path]
    assert (len(exchanges), len(blobs_moved)) == (8, 4)
    assert asked.count(lane.SEND_PATH) == 2
    assert asked.count(lane.RECEIVE_PATH) <= 4
    run.wait(0.0)  # tells that the answers have arrived
    names = {hashlib.sha256(data).hexdigest() for data in (LARGE, LARGE[::-1])}
    assert not names & {file.name for file in link.access.blobs.iterdir()}


def blob(client: Counting, sha256: str, size: int) -> bytes:
    """In two pieces, as after a connection that broke."""
    whole, rest = bytearray(), bytearray()
    assert client.get_blob(sha256, size, take=whole.extend) == size
    assert client.get_blob(sha256, size, take=rest.extend, start=size // 2) == size
    client.requests.pop()
    return bytes(whole[: size // 2] + rest)


def test_an_instruction_whose_answer_was_never_left_comes_again(
    run: FlowerRun, link: SuperLink, enrol: Callable[[str], Counting]
) -> None:
    client = enrol("killed")
    sent = ask(run, client.node_id, seed=3)
    first = told(client)
    client.close()  # it was killed while it trained, and counts as online
    again = client_of(link, client._key)
    assert again.attach() == client.node_id
    assert told(again).message_id == first.message_id == sent[client.node_id]
    frame, _ = lane.pack_fields({"examples": 7})
    assert again.exchange(wait_s=0.0, message_id=first.message_id, answer=frame)[0]
    assert again.exchange(wait_s=0.0, message_id=first.message_id, answer=lane.pack({"fields": {}}))[0]  # late twin
    assert [reply.fields for reply in answers(run, sent)] == [{"examples": 7}]
    again.close()


def test_a_node_gets_its_own_messages_and_blobs_only(run: FlowerRun, enrol: Callable[[str], Counting]) -> None:
    mine, other = enrol("mine-only"), enrol("curious")
    ask(run, mine.node_id, parameters=LARGE)
    message = told(mine)
    sha256 = next(iter(lane.named_blobs(message.frame)))
    assert other.exchange(wait_s=0.0) == (False, None)
    with pytest.raises(LinkError, match="404"):
        other.get_blob(sha256, len(LARGE), take=bytearray().extend)
    with pytest.raises(RunEndedError):
        other.put_blob("a" * 64, b"x", message_id=message.message_id)
    frame, _ = lane.pack_fields({"examples": 1})
    assert other.exchange(wait_s=0.0, message_id=message.message_id, answer=frame) == (False, None)
    with pytest.raises(LinkError, match="422"):  # another content than its name says
        mine.put_blob("a" * 64, b"x", message_id=message.message_id)
    named, _ = lane.pack_fields({"parameters": LARGE[1:]})
    with pytest.raises(BlobMissingError):
        mine.exchange(wait_s=0.0, message_id=message.message_id, answer=named)
    other.node_id = mine.node_id
    with pytest.raises(NotRegisteredError):
        other.exchange(wait_s=0.0)


def test_a_device_that_is_revoked_while_it_waits_is_told_nothing(
    run: FlowerRun, link: SuperLink, enrol: Callable[[str], Counting]
) -> None:
    client = enrol("revoked")
    got: list[object] = []
    waiting = threading.Thread(target=lambda: got.append(client.exchange(wait_s=10.0)))
    waiting.start()
    poll(lambda: client.node_id in run.nodes(), what="it is connected")
    link.nodes.unregister(client.node_id)
    ask(run, client.node_id, seed=1)  # wakes it
    waiting.join(15)
    assert got == [(False, None)]
    with pytest.raises(NotRegisteredError):
        client.exchange(wait_s=0.0)


def test_an_answer_after_the_end_of_its_run_is_let_go(
    link: SuperLink, enrol: Callable[[str], Counting], tmp_path: Path
) -> None:
    client = enrol("too-late")
    with FlowerRun(link.access, lock=tmp_path / "submit.lock", patience_s=20) as run:
        sent = ask(run, client.node_id, seed=1)
        message = told(client)
        run.complete()
    frame, _ = lane.pack_fields({"examples": 1})
    assert client.exchange(wait_s=0.0, message_id=message.message_id, answer=frame) == (False, None)
    campaign = CampaignEnd(link.access, run._lane._http.headers[TASK_TOKEN_HEADER])

    def refused() -> bool:
        """Its token is believed for a moment."""
        try:
            campaign.receive(sent.values(), wait_s=0.0)
        except httpx.HTTPStatusError as error:
            return error.response.status_code == 412
        return False

    poll(refused, what="the run is over for the lane")
    campaign.close()


class Waits:
    """A worker that trains until it is told; its answer is large."""

    def __init__(self) -> None:
        self.begun, self.go = threading.Event(), threading.Event()

    def handle(self, kind: str, fields: Mapping[str, object]) -> Mapping[str, Scalar]:
        self.begun.set()
        assert self.go.wait(20)
        return {"parameters": LARGE}


def test_a_node_that_stops_leaves_its_answer_and_is_offline_at_once(link: SuperLink, run: FlowerRun) -> None:
    key, public = generate_key_pairs()
    assert link.nodes.register("stopping", public_key_to_bytes(public))
    tls = server_context(link.authority.read_bytes(), lambda: 0)
    worker, stop, ids = Waits(), threading.Event(), [0]
    node = LaneNode(
        f"127.0.0.1:{link.port}", key, worker, tls=lambda: tls, on_link=lambda node_id, detail: ids.append(node_id)
    )
    thread = threading.Thread(target=node.run, args=(stop,))
    thread.start()
    poll(lambda: ids[-1], what="it joins")
    sent = ask(run, ids[-1], seed=1)
    assert worker.begun.wait(20)
    stop.set()
    worker.go.set()
    thread.join(10)  # less than it may wait for an instruction
    assert not thread.is_alive()
    assert [reply.fields for reply in answers(run, sent)] == [{"parameters": LARGE}]
    poll(lambda: next(iter(sent)) not in run.nodes(), what="it is offline")
    assert ids[-1] == 0


def test_a_node_that_waits_stops_without_waiting(link: SuperLink) -> None:
    key, public = generate_key_pairs()
    assert link.nodes.register("idle", public_key_to_bytes(public))
    tls = server_context(link.authority.read_bytes(), lambda: 0)
    stop, ids = threading.Event(), [0]
    node = LaneNode(
        f"127.0.0.1:{link.port}", key, Waits(), tls=lambda: tls, on_link=lambda node_id, detail: ids.append(node_id)
    )
    thread = threading.Thread(target=node.run, args=(stop,))
    thread.start()
    poll(lambda: ids[-1], what="it joins")
    stop.set()
    thread.join(10)
    assert not thread.is_alive()
