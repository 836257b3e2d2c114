"""The lane in the SuperLink's process: an ASGI application in front of Flower's; see :mod:`skerry_contract.lane`.

Identity stays Flower's: a node is authenticated by Flower's own check of its signed time against the registered keys,
a campaign by the token of its run's task, which Flower stops knowing when the run ends (flwr 1.41.0, pinned by
``tests/integration/federation/test_lane.py``). Activation, heartbeats and the list of nodes are Flower's state. Only
the messages are not: :mod:`skerry_server.federation.flower.lane_mailbox` holds them, because Flower's state spends some
forty statements and thirty milliseconds on each. Nodes that never attached here are asked through Flower's own API.
"""

from __future__ import annotations

import asyncio
import logging
import time
from base64 import b64decode
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple, TypeVar

from fastapi import HTTPException
from flwr.proto.fleet_pb2 import ActivateNodeRequest
from flwr.supercore.constant import TASK_TOKEN_HEADER, NodeStatus
from flwr.supercore.dependencies.task import authenticate_task
from flwr.supercore.error import FlowerError
from flwr.superlink.routers.fleet.node_auth import authenticate_node
from flwr.superlink.servicer.fleet import fleet_handlers
from starlette.requests import Request

from skerry_contract import lane
from skerry_contract.campaign import REASON_CHARACTERS
from skerry_contract.errors import WireError
from skerry_contract.identifiers import check_sha256_hex
from skerry_server.device_api.byte_range import UnsatisfiableError, parse_range
from skerry_server.federation.flower.lane_blobs import BlobError, BlobFolder
from skerry_server.federation.flower.lane_http import Bell, Refusal, gone, header, pour_body, read_body, respond
from skerry_server.federation.flower.lane_mailbox import Instruction, Mailbox, NoMessageError
from skerry_server.federation.flower.operator_gate import Receive, Scope, Send

logger = logging.getLogger(__name__)

#: Flower calls a node offline that it has not heard of for two of these (seconds). It is told after half of one, and a
#: node that waits is heard of every :data:`skerry_contract.lane.WAIT_S`: 30 s at most.
HEARTBEAT_S = 20.0
#: How often void messages and blobs are looked for (seconds).
SWEEP_S = 10.0
#: A blob is read and sent in pieces of so many bytes: they stay in the processor's cache on their way.
PIECE_BYTES = 1 << 18
#: Most bytes of answers in one response to a campaign.
ANSWERS_BYTES = lane.FRAME_BYTES // 2
#: Largest request of a node that has not shown who it is (bytes).
ATTACH_BYTES = 16 << 10
#: How long a campaign's token, or the signature of a node, is believed without asking Flower again (seconds).
TOKEN_S = 1.0

R = TypeVar("R")


class _Node(NamedTuple):
    """Who asks."""

    node_id: int
    public_key: bytes

    @property
    def name(self) -> str:
        return str(self.node_id)


class Lane:
    """An ASGI application around Flower's; its own paths begin with the lane's prefixes."""

    def __init__(self, flower: Any, folder: Path) -> None:
        """Serve the lane.

        Args:
            flower: Flower's application; ``flower.state`` holds its state.
            folder: For the mailbox and the blobs.
        """
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._flower = flower
        self._mailbox = Mailbox(folder / "mailbox.db")
        self._blobs = BlobFolder(folder / "blobs")
        self._nodes, self._runs = Bell(), Bell()
        #: Flower's state blocks; one thread asks it, so that the lane never waits for itself there.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="lane-flower")
        self._beats: dict[int, float] = {}
        self._tokens: dict[str, tuple[str, float]] = {}
        #: By node, the headers that Flower found to be in order last, and until when that is believed.
        self._believed: dict[int, tuple[tuple[str | None, ...], _Node, float]] = {}
        self._next_sweep = 0.0
        self._routes: dict[tuple[str, str], Callable[[Scope, Receive, Send], Any]] = {
            ("POST", lane.ATTACH_PATH): self._attach,
            ("POST", lane.EXCHANGE_PATH): self._exchange,
            ("POST", lane.DETACH_PATH): self._detach,
            ("POST", lane.SEND_PATH): self._send,
            ("POST", lane.RECEIVE_PATH): self._receive,
            ("POST", lane.NODES_PATH): self._list,
            ("POST", lane.END_PATH): self._end,
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request of the lane, or pass it on."""
        if scope["type"] != "http" or not scope["path"].startswith((lane.FLEET_PREFIX, lane.RUN_PREFIX)):
            await self._flower(scope, receive, send)
            return
        route = self._routes.get((scope["method"], scope["path"]))
        if route is None and scope["path"].startswith(lane.BLOB_PREFIX):
            route = {"GET": self._get_blob, "PUT": self._put_blob}.get(scope["method"])
        try:
            if route is None:
                raise Refusal(404, "the lane has no such door")
            self._sweep()
            await route(scope, receive, send)
        except Refusal as error:
            await respond(send, error.status, error.reason.encode(), connection="close", **error.headers)
        except WireError as error:
            await respond(send, 422, str(error).encode(), connection="close")

    # Nodes

    async def _attach(self, scope: Scope, receive: Receive, send: Send) -> None:
        """A node comes: it is active for Flower and asked over the lane from now on."""
        head, _ = lane.unpack(await read_body(receive, most=ATTACH_BYTES))
        key = str(head.get("public_key", "")).encode()
        request = ActivateNodeRequest(public_key=key, heartbeat_interval=HEARTBEAT_S)
        state = self._state()

        def activate() -> int:
            self._check_signature(scope, request)
            node_id = state.get_node_id_by_public_key(key)
            if node_id is None:
                raise Refusal(401, "the node's key is not registered")
            if not state.activate_node(node_id, HEARTBEAT_S):
                state.deactivate_node(node_id)  # it was killed, and counts as online: its key says that it is the same
                fleet_handlers.activate_node(request, state)
            return int(node_id)

        node_id = await self._ask(activate)
        self._beats[node_id] = time.monotonic()
        self._mailbox.attach(str(node_id))
        self._nodes.ring(str(node_id))  # of a connection that died
        await respond(send, 200, lane.pack({"node_id": str(node_id)}))

    async def _detach(self, scope: Scope, receive: Receive, send: Send) -> None:
        """A node goes; what it was waiting with returns."""
        node = await self._authenticate(scope, alive=False)
        await self._ask(lambda: self._state().deactivate_node(node.node_id))
        self._beats.pop(node.node_id, None)
        self._believed.pop(node.node_id, None)
        self._nodes.ring(node.name)
        await respond(send, 200, lane.pack({}))

    async def _exchange(self, scope: Scope, receive: Receive, send: Send) -> None:
        """A node leaves its answer, if it has one, and waits for the next instruction."""
        node = await self._authenticate(scope)
        self._mailbox.attach(node.name)  # it is on the lane, also for a mailbox that has just been made anew
        head, frame = lane.unpack(await read_body(receive))
        accepted = self._take(node, head.get("answer"), frame)
        wait_s = head.get("wait_s", 0.0)
        instruction = None
        if isinstance(wait_s, int | float) and wait_s >= 0.0:  # below: it only says that it lives
            instruction = await self._instruction(node, min(float(wait_s), lane.WAIT_S), receive)
        told: dict[str, Any] = {"accepted": accepted}
        if instruction is not None:
            told["message"] = {
                "message_id": instruction.message_id,
                "run_id": instruction.run_id,
                "kind": instruction.kind,
                "left_s": instruction.left_s,
            }
        await respond(send, 200, lane.pack(told, b"" if instruction is None else instruction.frame))

    def _take(self, node: _Node, message_id: object, frame: bytes) -> bool:
        """Keep an answer; false when nobody waits for it any more."""
        if not isinstance(message_id, str):
            return False
        head, _ = lane.unpack(frame)
        blobs = lane.named_blobs(frame) if "fields" in head else {}
        for sha256, size in blobs.items():
            try:
                if self._blobs.size(sha256) != size:
                    raise WireError("fields", expected=f"blob {sha256} of {size} bytes", got="another size")
            except BlobError as error:
                raise Refusal(409, str(error)) from error  # it is put again
        try:
            self._runs.ring(self._mailbox.answer(node.name, message_id, frame, blobs))
        except NoMessageError:
            return False
        return True

    async def _instruction(self, node: _Node, wait_s: float, receive: Receive) -> Instruction | None:
        instruction = self._next(node)
        if instruction is not None or wait_s == 0.0:
            return instruction
        leaving = asyncio.ensure_future(gone(receive))
        try:
            await self._nodes.wait(node.name, wait_s, leaving)
            if leaving.done() or node.node_id not in self._beats:
                return None
        finally:
            leaving.cancel()
        known = await self._ask(lambda: self._state().get_node_id_by_public_key(node.public_key))
        if known != node.node_id:
            self._believed.pop(node.node_id, None)
            return None
        return self._next(node)

    def _next(self, node: _Node) -> Instruction | None:
        for message_id in self._mailbox.exhausted(node.name):
            reason = "the device was given the instruction several times and never answered"
            self._take(node, message_id, lane.pack({"error": {"reason": reason, "refused": True}}))
        return self._mailbox.next_for(node.name)

    async def _get_blob(self, scope: Scope, receive: Receive, send: Send) -> None:
        """A blob that an instruction for this node names, or a range of it."""
        node = await self._authenticate(scope)
        sha256 = _digest(scope)
        if not self._mailbox.may_read(node.name, sha256):
            raise Refusal(404, "no instruction for this node names the blob")
        try:
            size = self._blobs.size(sha256)
            wanted = parse_range(header(scope, "range"), size)
            stream = self._blobs.open(sha256)
        except BlobError as error:
            raise Refusal(404, str(error)) from error
        except UnsatisfiableError as error:
            raise Refusal(416, str(error)) from error
        with stream:
            stream.seek(wanted.first)
            headers = [(b"content-length", str(wanted.length).encode())]
            if wanted.partial:
                headers.append((b"content-range", wanted.content_range(size).encode()))
            status = 206 if wanted.partial else 200
            await send({"type": "http.response.start", "status": status, "headers": headers})
            left = wanted.length
            while left:
                piece = stream.read(min(PIECE_BYTES, left))
                if not piece:
                    raise BlobError(f"blob {sha256} became shorter while it was sent")
                left -= len(piece)
                await send({"type": "http.response.body", "body": piece, "more_body": bool(left)})
            if not wanted.length:
                await send({"type": "http.response.body", "body": b""})

    async def _put_blob(self, scope: Scope, receive: Receive, send: Send) -> None:
        """A blob of the answer to a message that this node has."""
        node = await self._authenticate(scope)
        sha256 = _digest(scope)
        length = header(scope, "content-length") or ""
        if not length.isdigit() or int(length) > lane.BLOB_BYTES:
            raise Refusal(413, f"a blob has a length of at most {lane.BLOB_BYTES} bytes")
        if not self._mailbox.may_write(node.name, header(scope, lane.MESSAGE_HEADER) or ""):
            raise Refusal(410, "nobody waits for this node's answer")
        with self._blobs.receive() as incoming:
            try:
                await pour_body(scope, receive, incoming.write)
            except ConnectionError:
                return
            try:
                self._blobs.keep(incoming, sha256)
            except BlobError as error:
                raise Refusal(422, str(error)) from error
        await respond(send, 201, b"")

    # Campaigns

    async def _send(self, scope: Scope, receive: Receive, send: Send) -> None:
        """A campaign leaves an instruction for nodes; those that never attached are named in the answer."""
        run_id = await self._run(scope)
        head, frame = lane.unpack(await read_body(receive))
        blobs = lane.named_blobs(frame)
        nodes = [str(node) for node in head["nodes"]]
        attached = self._mailbox.attached(nodes)
        posted = self._mailbox.post(
            [node for node in nodes if node in attached],
            run_id=run_id,
            owner=str(head["owner"]),
            kind=str(head["kind"]),
            ttl_s=float(head["ttl_s"]),
            frame=frame,
            blobs=blobs,
        )
        for node in posted:
            self._nodes.ring(node)
        other = [node for node in nodes if node not in attached]
        await respond(send, 200, lane.pack({"sent": posted, "other": other, "mailbox": self._mailbox.identity}))

    async def _receive(self, scope: Scope, receive: Receive, send: Send) -> None:
        """A campaign says which answers it has, and waits for others."""
        run_id = await self._run(scope)
        head, _ = lane.unpack(await read_body(receive))
        self._drop(run_id, [str(message_id) for message_id in head["done"]])
        answers = self._mailbox.answers(run_id, most_bytes=ANSWERS_BYTES)
        wait_s = min(float(head["wait_s"]), lane.WAIT_S)
        if not answers and wait_s > 0.0:
            leaving = asyncio.ensure_future(gone(receive))
            try:
                await self._runs.wait(run_id, wait_s, leaving)
            finally:
                leaving.cancel()
            answers = self._mailbox.answers(run_id, most_bytes=ANSWERS_BYTES)
        told = {
            "answers": [[message_id, len(frame)] for message_id, frame in answers],
            "mailbox": self._mailbox.identity,
        }
        await respond(send, 200, lane.pack(told, b"".join(frame for _, frame in answers)))

    async def _list(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Nodes that are connected now, by name."""
        await self._run(scope)
        online = await self._ask(lambda: self._state().get_node_info(statuses=[NodeStatus.ONLINE]))
        nodes = [[str(node.node_id), str(node.name)] for node in online]
        await respond(send, 200, lane.pack({"nodes": nodes}))

    async def _end(self, scope: Scope, receive: Receive, send: Send) -> None:
        """A campaign wants nothing more of its run."""
        run_id = await self._run(scope)
        blobs = self._mailbox.blobs_of(run_id)
        self._mailbox.end_run(run_id)
        self._remove(blobs)
        await respond(send, 200, lane.pack({}))

    def _drop(self, run_id: str, message_ids: list[str]) -> None:
        blobs = {sha256 for message_id in message_ids for sha256 in self._mailbox.blobs_named_by(message_id)}
        self._mailbox.drop(run_id, message_ids)
        self._remove(blobs)

    def _remove(self, blobs: set[str]) -> None:
        for sha256 in blobs:
            if not self._mailbox.named(sha256):
                self._blobs.remove(sha256)

    # Flower's part

    def _state(self) -> Any:
        return self._flower.state.linkstate_factory.state()

    async def _ask(self, question: Callable[[], R]) -> R:
        """Ask Flower on its thread."""
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, question)
        except HTTPException as error:
            raise Refusal(error.status_code, str(error.detail)) from error
        except FlowerError as error:
            raise Refusal(412, f"Flower refuses: {error}"[:REASON_CHARACTERS]) from error

    def _request(self, scope: Scope, message: object) -> Request:
        return Request({**scope, "app": self._flower, "state": {"protobuf_request": message}})

    def _check_signature(self, scope: Scope, message: object) -> None:
        authenticate_node(self._request(scope, message))

    async def _authenticate(self, scope: Scope, *, alive: bool = True) -> _Node:
        """Which node asks; that it is alive is told to Flower now and then."""
        name = header(scope, lane.NODE_HEADER) or ""
        if not name.isdigit() or len(name) > 20:
            raise Refusal(401, f"{lane.NODE_HEADER} names no node")
        node_id = int(name)
        now = time.monotonic()
        due = alive and now - self._beats.get(node_id, -HEARTBEAT_S) > HEARTBEAT_S / 2
        signed = tuple(header(scope, name) for name in (lane.KEY_HEADER, lane.TIME_HEADER, lane.SIGNATURE_HEADER))
        believed, node, until = self._believed.get(node_id, ((), None, 0.0))
        if node is not None and believed == signed and now < until and not due:
            return node
        state = self._state()

        def check() -> bytes:
            request = self._request(scope, SimpleNamespace(node_id=node_id))
            authenticate_node(request)
            if due:
                state.acknowledge_node_heartbeat(node_id, HEARTBEAT_S)
            return b64decode(request.headers[lane.KEY_HEADER])

        node = _Node(node_id, await self._ask(check))
        self._believed[node_id] = (signed, node, now + TOKEN_S)
        if due:
            self._beats[node_id] = now
        return node

    async def _run(self, scope: Scope) -> str:
        """Which run a campaign's request belongs to; the operator's gate lies in front."""
        token = header(scope, TASK_TOKEN_HEADER) or ""
        run_id, until = self._tokens.get(token, ("", 0.0))
        if time.monotonic() < until:
            return run_id
        task = await self._ask(lambda: authenticate_task(self._request(scope, None), token, self._state()))
        self._tokens = {token: (str(task.run_id), time.monotonic() + TOKEN_S)} | {
            other: entry for other, entry in self._tokens.items() if other != token and entry[1] > time.monotonic()
        }
        return str(task.run_id)

    def _sweep(self) -> None:
        now = time.monotonic()
        if now >= self._next_sweep:
            self._next_sweep = now + SWEEP_S
            self._mailbox.expire()
            self._blobs.sweep(self._mailbox.named)


def _digest(scope: Scope) -> str:
    sha256 = str(scope["path"][len(lane.BLOB_PREFIX) :])
    check_sha256_hex(sha256, field="path")
    return sha256
