"""A long-lived Flower node for a SuperLink that is not ours. With :mod:`.flower_signature` the only module of the agent
that imports flwr (1.41.0, pinned). At our own SuperLink :mod:`skerry_agent.training.lane_node` is used.

Stock Flower starts a process per message and polls every three seconds. This node keeps one process, polls fast while
a campaign runs and slower the longer it is idle, and speaks the SuperLink's Fleet API through Flower's own client
(``flwr.supernode.fleet_http_client``, a private API: ``tests/integration/agent_training`` pins its behaviour).

- The node is known by the device's key (:mod:`skerry_agent.identity.node_key`), which the control plane registers when
  the device is enrolled. A node that was killed is still "online" for the SuperLink, which would refuse it for up to
  two heartbeats: it is deactivated first, by its own key.
- Transport errors never end anything: a poll is tried again with back-off for ever, a reply until the message expires.
- HTTP 401 means that the SuperLink does not know the key: the device was enrolled a moment ago, was revoked, or the
  SuperLink lost its state. The control plane registers what may take part; the node says so, waits and tries again.
- HTTP 403 means that the run is over: the reply is dropped.
"""

from __future__ import annotations

import logging
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

import httpx
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict
from flwr.app.message import remove_content_from_message
from flwr.common.constant import ErrorCode
from flwr.common.serde import message_from_proto, message_to_proto
from flwr.proto.fleet_pb2 import (
    ActivateNodeRequest,
    DeactivateNodeRequest,
    PullMessagesRequest,
    PushMessagesRequest,
    RegisterNodeFleetRequest,
)
from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatRequest
from flwr.proto.node_pb2 import Node
from flwr.supercore.inflatable.inflatable_object import (
    get_all_nested_objects,
    get_object_tree,
    no_object_id_recompute,
)
from flwr.supercore.inflatable.inflatable_protobuf_utils import (
    make_confirm_message_received_fn_protobuf,
    make_pull_object_fn_protobuf,
    make_push_object_fn_protobuf,
)
from flwr.supercore.inflatable.inflatable_utils import (
    ObjectPullError,
    ObjectPushError,
    pull_and_inflate_object_from_tree,
    push_objects,
)
from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor
from flwr.supercore.primitives.asymmetric import public_key_to_bytes
from flwr.supernode.fleet_http_client import FleetHttpClient

from skerry_agent.errors import ArtifactError
from skerry_agent.training.backoff import Backoff
from skerry_agent.training.flower_signature import SignedRequests
from skerry_agent.training.node_hint import NodeHint
from skerry_agent.training.node_link import (
    AWAY_LAST_S,
    UNKNOWN_FIRST_S,
    UNKNOWN_LAST_S,
    LinkError,
    NotRegisteredError,
    RunEndedError,
    Worker,
    pause,
)
from skerry_agent.training.pace import PollPace
from skerry_agent.training.server_clock import ServerClock
from skerry_agent.training.stock_questions import ARRAYS, CONFIG, METRICS, ActiveStep, as_fields, as_metrics
from skerry_agent.training.worker import RefusedError
from skerry_contract.campaign import (
    BULK_RECORD,
    BULK_TYPE,
    INLINE_BYTES,
    REASON_CHARACTERS,
    RECORD,
    REFUSED,
    Scalar,
)
from skerry_contract.errors import WireError

logger = logging.getLogger(__name__)

#: Heartbeat interval told to the SuperLink: a node that vanishes is called offline after two of them.
HEARTBEAT_S = 20.0
#: Less than the 5 s after which httpx closes an idle connection: while the node trains, heartbeats keep it open.
_HEARTBEAT_PERIOD_S = 4.0
#: Poll delays (seconds); see :mod:`skerry_agent.training.pace`.
POLL_FIRST_S, POLL_FACTOR, POLL_LAST_S = 0.1, 1.3, 2.0
#: A message becomes visible before its objects are; Flower would wait a second before it asks again.
_PULL_BACKOFF_S, _PULL_BACKOFF_CAP_S = 0.01, 0.2
#: How long a message whose objects never come is waited for.
_PULL_LIMIT_S = 60.0

R = TypeVar("R")


@contextmanager
def _translated() -> Iterator[None]:
    """Turn what the Fleet client raises into the three exceptions above."""
    try:
        yield
    except httpx.HTTPStatusError as error:
        status = error.response.status_code
        if status == httpx.codes.UNAUTHORIZED:
            raise NotRegisteredError("the SuperLink does not know this node") from error
        if status == httpx.codes.FORBIDDEN:
            raise RunEndedError("the run is over") from error
        raise LinkError(f"HTTP {status}: {error.response.text[:200]}") from error
    except (httpx.HTTPError, ObjectPullError, ObjectPushError, ValueError) as error:
        raise LinkError(f"{type(error).__name__}: {error}") from error


def _pack(fields: Mapping[str, Scalar]) -> Any:
    """Fields as the content of a message; see :mod:`skerry_contract.campaign`."""
    bulk = {name: value for name, value in fields.items() if isinstance(value, bytes) and len(value) > INLINE_BYTES}
    content = RecordDict({RECORD: ConfigRecord({name: fields[name] for name in fields if name not in bulk})})
    if bulk:
        arrays = {name: Array("uint8", (len(data),), BULK_TYPE, data) for name, data in bulk.items()}
        content[BULK_RECORD] = ArrayRecord(arrays)
    return content


def _unpack(content: Any) -> dict[str, Any]:
    """What :func:`_pack` made of fields; raises KeyError when the record is missing."""
    bulk = content.array_records.get(BULK_RECORD, {})
    return {**content.config_records[RECORD], **{name: array.data for name, array in bulk.items()}}


class FlowerNode:
    """Connects a worker to a SuperLink for as long as it is told to; owns its heartbeat thread."""

    def __init__(
        self,
        address: str,
        key: ec.EllipticCurvePrivateKey,
        hint: NodeHint,
        worker: Worker,
        *,
        tls: Callable[[], ssl.SSLContext],
        on_link: Callable[[int, str], None] = lambda node_id, detail: None,
        clock: ServerClock | None = None,
        active: Callable[[], ActiveStep] | None = None,
    ) -> None:
        """Prepare a node.

        Args:
            address: host:port of the SuperLink.
            key: The device's node key (EC P-384), whose public half the control plane has registered.
            hint: Which node it was the last time.
            worker: Carries out instructions.
            tls: Makes the context of a connection.
            on_link: Hears the node's identifier, 0 while there is none, and what it waits for.
            clock: Tells the SuperLink's time; made from this machine's clocks if there is none.
            active: What the device can train now, for a server that knows nothing of us; raises ArtifactError. Without
                it such a server is refused.
        """
        self._address = address
        self._key = key
        self._public_key: bytes = public_key_to_bytes(key.public_key())
        self._hint = hint
        self._worker = worker
        self._tls = tls
        self._on_link = on_link
        self._clock = clock or ServerClock()
        self._active = active

    def run(self, stop: threading.Event, leave: Callable[[], bool] = lambda: False) -> None:
        """Serve until ``stop`` is set or ``leave()`` is true; reconnects for ever; deactivates the node at the end.

        Raises:
            DeviceError: The device has no authority to trust.
        """
        away = Backoff(first_s=0.2, last_s=AWAY_LAST_S)
        unknown = Backoff(first_s=UNKNOWN_FIRST_S, last_s=UNKNOWN_LAST_S)
        while not stop.is_set() and not leave():
            with self._client() as client:
                try:
                    node = self._connect(client)
                    away.reset()
                    unknown.reset()
                    self._serve(client, node, stop, leave)
                    delay = away.next_s()
                except NotRegisteredError:
                    delay = unknown.next_s()
                    logger.info("the SuperLink at %s does not admit this device's key", self._address)
                    self._on_link(0, f"SuperLink {self._address} does not admit this device's key (yet); it waits")
                except (LinkError, RunEndedError) as error:
                    delay = away.next_s()
                    logger.info("the SuperLink at %s is away: %s", self._address, error)
                    self._on_link(0, f"SuperLink {self._address} is away: {error}")
            pause(delay, stop, leave)

    def _client(self) -> Any:
        interceptors = [
            RuntimeVersionHttpInterceptor(component_name="SuperNode"),
            SignedRequests(self._key, self._clock),
        ]
        return FleetHttpClient(f"https://{self._address}", interceptors=interceptors, verify=self._tls())

    def _connect(self, client: Any) -> Any:
        if self._hint.node_id:
            self._deactivate(client, self._hint.node_id)
        request = ActivateNodeRequest(public_key=self._public_key, heartbeat_interval=HEARTBEAT_S)
        with _translated():
            try:
                response = client.ActivateNode(request)
            except httpx.HTTPStatusError as error:
                if error.response.status_code != httpx.codes.PRECONDITION_FAILED:
                    raise
                # The key is not registered, or the node counts as online and the hint was lost.
                if not self._register(client):
                    raise NotRegisteredError(f"activation refused: {error.response.text[:200]}") from error
                response = client.ActivateNode(request)
        node_id = int(response.node_id)
        self._hint.remember(node_id)
        logger.info("node %d of the SuperLink at %s", node_id, self._address)
        return Node(node_id=node_id)

    def _register(self, client: Any) -> bool:
        """Register the key; only a SuperLink without node authentication lets a node do that itself."""
        try:
            client.RegisterNode(RegisterNodeFleetRequest(public_key=self._public_key))
        except httpx.HTTPStatusError as error:
            logger.debug("the node may not register itself: %s", error)
            return False
        return True

    @staticmethod
    def _deactivate(client: Any, node_id: int) -> None:
        try:
            client.DeactivateNode(DeactivateNodeRequest(node_id=node_id))
        except httpx.HTTPError as error:
            logger.debug("node %d was not active: %s", node_id, error)

    def _serve(self, client: Any, node: Any, stop: threading.Event, leave: Callable[[], bool]) -> None:
        ended = threading.Event()
        heart = threading.Thread(target=self._beat, args=(client, node, ended), name="flower-heartbeat", daemon=True)
        heart.start()
        try:
            self._on_link(node.node_id, "")
            self._poll(client, node, stop, leave)
        finally:
            ended.set()
            heart.join()
            self._deactivate(client, node.node_id)
            self._on_link(0, "")

    @staticmethod
    def _beat(client: Any, node: Any, ended: threading.Event) -> None:
        """Heartbeats; a failure is left to the poll, which sees the same SuperLink."""
        while not ended.wait(_HEARTBEAT_PERIOD_S):
            try:
                client.SendNodeHeartbeat(SendNodeHeartbeatRequest(node=node, heartbeat_interval=HEARTBEAT_S))
            except httpx.HTTPError as error:
                logger.debug("heartbeat failed: %s", error)

    def _poll(self, client: Any, node: Any, stop: threading.Event, leave: Callable[[], bool]) -> None:
        """Handle messages. Away time is waited out here, so that the node keeps its place."""
        pace = PollPace(first_s=POLL_FIRST_S, factor=POLL_FACTOR, last_s=POLL_LAST_S)
        away = Backoff(first_s=0.2, last_s=AWAY_LAST_S)
        while not stop.is_set() and not leave():
            try:
                with _translated():
                    response = client.PullMessages(PullMessagesRequest(node=node))
            except (LinkError, RunEndedError) as error:
                delay = away.next_s()
                logger.info("the SuperLink at %s does not answer (%s); again in %.1f s", self._address, error, delay)
                self._on_link(node.node_id, f"SuperLink {self._address} does not answer")
                stop.wait(delay)
                continue
            if away.reset():
                self._on_link(node.node_id, "")
            if response.messages_list:
                pace.arrived(time.monotonic())
                self._handle(client, node, response.messages_list[0], response.message_object_trees[0], stop)
                pace.answered(time.monotonic())
            stop.wait(pace.next_s(time.monotonic()))

    def _handle(self, client: Any, node: Any, proto: Any, tree: Any, stop: threading.Event) -> None:
        received = time.monotonic()
        header = message_from_proto(proto)
        expires = received + max(0.0, header.metadata.created_at + header.metadata.ttl - self._clock.now())
        try:
            message = self._persist(lambda: self._pull(client, node, header, tree), stop, expires)
            reply = self._dated(self._answer(message), header)
            self._persist(lambda: self._push(client, node, reply, time.monotonic() - received), stop, expires)
        except RunEndedError:
            logger.info("run %d ended before the reply", header.metadata.run_id)
        except LinkError as error:
            logger.warning("message %s is given up: %s", header.metadata.message_id[:12], error)

    @staticmethod
    def _persist(action: Callable[[], R], stop: threading.Event, deadline: float) -> R:
        """Try ``action`` until it succeeds, the deadline passes or the node must stop."""
        backoff = Backoff(first_s=0.1, last_s=5.0)
        while True:
            try:
                with _translated():
                    return action()
            except LinkError:
                if time.monotonic() > deadline or stop.wait(backoff.next_s()):
                    raise

    @staticmethod
    def _pull(client: Any, node: Any, header: Any, tree: Any) -> Any:
        run_id = header.metadata.run_id
        message = pull_and_inflate_object_from_tree(
            tree,
            make_pull_object_fn_protobuf(client.PullObject, node, run_id),
            make_confirm_message_received_fn_protobuf(client.ConfirmMessageReceived, node, run_id),
            return_type=Message,
            max_time=_PULL_LIMIT_S,
            initial_backoff=_PULL_BACKOFF_S,
            backoff_cap=_PULL_BACKOFF_CAP_S,
        )
        message.metadata.__dict__["_message_id"] = header.metadata.message_id  # inflating leaves it empty
        return message

    @staticmethod
    def _push(client: Any, node: Any, reply: Any, seconds: float) -> None:
        with no_object_id_recompute():
            reply.metadata.__dict__["_message_id"] = reply.object_id
            objects = get_all_nested_objects(reply)
            response = client.PushMessages(
                PushMessagesRequest(
                    node=node,
                    messages_list=[message_to_proto(remove_content_from_message(reply))],
                    message_object_trees=[get_object_tree(reply)],
                    clientapp_runtime_list=[seconds],
                )
            )
            push_objects(
                objects,
                push_object_fn=make_push_object_fn_protobuf(
                    client.PushObject, node, reply.metadata.run_id, response.session_id
                ),
                object_ids_to_push=set(response.objects_to_push),
            )

    def _answer(self, message: Any) -> Any:
        """The reply to a message; whatever goes wrong becomes an error reply with its reason."""
        try:
            content = self._answer_content(message)
        except (RefusedError, WireError, ArtifactError, KeyError) as error:
            final = not isinstance(error, RefusedError) or error.final
            reason = f"the message has no record {error}" if isinstance(error, KeyError) else str(error)
            logger.warning("refused: %s", reason)
            code = REFUSED if final else ErrorCode.CLIENT_APP_RAISED_EXCEPTION
            return Message(Error(code, reason[:REASON_CHARACTERS]), reply_to=message)
        except Exception as error:  # the node must outlive a defect of the trainer, and the server must hear of it
            logger.exception("the worker failed")
            reason = f"{type(error).__name__}: {error}"
            return Message(Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, reason[:REASON_CHARACTERS]), reply_to=message)
        return Message(content, reply_to=message)

    def _answer_content(self, message: Any) -> Any:
        """Raises RefusedError, WireError or KeyError."""
        kind, content = message.metadata.message_type, message.content
        arrays = content.array_records.get(ARRAYS)
        if self._active is None or RECORD in content or arrays is None:
            return _pack(self._worker.handle(kind, _unpack(content)))
        state = {name: array.numpy() for name, array in arrays.items()}
        config = content.config_records.get(CONFIG, {})
        left_s = message.metadata.created_at + message.metadata.ttl - self._clock.now()
        question = as_fields(kind, state, config, self._active(), left_s=left_s)
        parameters, metrics = as_metrics(kind, self._worker.handle(kind, question))
        answer = RecordDict({METRICS: MetricRecord(metrics)})
        if parameters:
            answer[ARRAYS] = ArrayRecord({name: Array(value) for name, value in parameters.items()})
        return answer

    def _dated(self, reply: Any, header: Any) -> Any:
        """``reply`` with the SuperLink's time, which checks it; it ends when the message that it answers ends."""
        reply.metadata.created_at = self._clock.now()
        reply.metadata.ttl = header.metadata.created_at + header.metadata.ttl - reply.metadata.created_at
        return reply
