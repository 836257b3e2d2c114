"""A campaign's Flower run. flwr (1.41.0, pinned) is imported here, by its siblings :mod:`flower_client` (connection),
:mod:`flower_nodes` (registered keys) and :mod:`superlink_process`, and by :mod:`strategies`; nowhere else.

A campaign's process *is* the ServerApp process of a Flower run: it submits the run through the Control API, claims the
run's task through the Runtime API, keeps it alive by heartbeats and exchanges messages until it reports the end. For
that the SuperLink runs with ``--isolation process``: it starts no process of its own for a run, so there is nothing to
wait for, to load, or to die with the SuperLink.

The private APIs used (``flwr.supercore``) are pinned by ``tests/integration/federation``. Transport errors are tried
again for a while: a SuperLink that was killed comes back with its runs, nodes and messages from its database. When it
comes back without them, or the run was stopped, :class:`ExchangeLostError` says so.
"""

from __future__ import annotations

import fcntl
import hashlib
import io
import logging
import threading
import time
import zipfile
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import httpx
from flwr.app import Array, ArrayRecord, ConfigRecord, Metadata, RecordDict
from flwr.app.message import make_message, remove_content_from_message
from flwr.common.constant import SUPERLINK_NODE_ID, SubStatus
from flwr.common.serde import message_to_proto
from flwr.proto.control_pb2 import StartRunRequest
from flwr.proto.fab_pb2 import Fab
from flwr.proto.message_pb2 import ConfirmMessageReceivedRequest
from flwr.proto.node_pb2 import Node
from flwr.proto.runtime_pb2 import (
    AcquireTaskRequest,
    GetNodesRequest,
    PullAppMessagesRequest,
    PullTaskInputRequest,
    PushAppMessagesRequest,
    PushTaskOutputRequest,
    SendTaskHeartbeatRequest,
)
from flwr.supercore.constant import TaskType
from flwr.supercore.control.control_http_client import ControlHttpClient
from flwr.supercore.inflatable.inflatable_object import (
    get_all_nested_objects,
    get_object_tree,
    iterate_object_tree,
    no_object_id_recompute,
)
from flwr.supercore.inflatable.inflatable_protobuf_utils import (
    make_pull_object_fn_protobuf,
    make_push_object_fn_protobuf,
)
from flwr.supercore.inflatable.inflatable_utils import (
    ObjectPullError,
    ObjectPushError,
    inflate_object_from_contents,
    pull_objects,
    push_objects,
)
from flwr.supercore.interceptors import RuntimeTokenHttpInterceptor
from flwr.supercore.runtime import RuntimeHttpClient

from skerry_contract.campaign import BULK_RECORD, BULK_TYPE, INLINE_BYTES, RECORD, REFUSED, Scalar
from skerry_server.federation.exchange import Broadcast, ExchangeLostError, Reply, ReplyError
from skerry_server.federation.flower_client import open_client
from skerry_server.superlink import SuperLinkAccess

logger = logging.getLogger(__name__)

#: How long transport errors are tried again before the run is given up (seconds).
PATIENCE_S = 60.0
_HEARTBEAT_PERIOD_S = 10.0
#: How long an object of a reply that was announced is waited for (seconds).
_PULL_LIMIT_S = 30.0
_RETRY_FIRST_S, _RETRY_LAST_S = 0.1, 2.0

#: The app that a run names. Its components are never loaded: this process is the ServerApp, the devices run their
#: installed code.
_APP = b"""[project]
name = "skerry-campaign"
version = "1.0.0"

[tool.flwr.app]
publisher = "skerry"

[tool.flwr.app.components]
serverapp = "skerry_server.federation.campaign_job:run"
clientapp = "skerry_agent.training.worker:CampaignWorker"

[tool.flwr.app.config]
"""

R = TypeVar("R")


def _app_bundle() -> bytes:
    """The app as a zip file, the same bytes every time."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(zipfile.ZipInfo("pyproject.toml", (2020, 1, 1, 0, 0, 0)), _APP)
    return buffer.getvalue()


@contextmanager
def _exclusive(path: Path) -> Iterator[None]:
    """One process of this machine at a time submits a run and claims its task."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield


def _persist(action: Callable[[], R], *, patience_s: float) -> R:
    """Call ``action`` until it succeeds.

    Raises:
        ExchangeLostError: The SuperLink refused, or could not be reached for ``patience_s``.
    """
    deadline = time.monotonic() + patience_s
    delay = _RETRY_FIRST_S
    while True:
        try:
            return action()
        except httpx.HTTPStatusError as error:
            if error.response.status_code not in (502, 503, 504):
                reason = f"HTTP {error.response.status_code}: {error.response.text[:300]}"
                raise ExchangeLostError(f"the SuperLink refused: {reason}") from error
            failure: Exception = error
        except (httpx.TransportError, ObjectPushError) as error:
            failure = error
        if time.monotonic() > deadline:
            raise ExchangeLostError(f"the SuperLink cannot be reached: {failure}") from failure
        time.sleep(delay)
        delay = min(_RETRY_LAST_S, delay * 2)


def _pack(fields: Mapping[str, Scalar]) -> Any:
    """Fields as the content of a message; see :mod:`skerry_contract.campaign`."""
    bulk = {name: value for name, value in fields.items() if isinstance(value, bytes) and len(value) > INLINE_BYTES}
    content = RecordDict({RECORD: ConfigRecord({name: fields[name] for name in fields if name not in bulk})})
    if bulk:
        arrays = {name: Array("uint8", (len(data),), BULK_TYPE, data) for name, data in bulk.items()}
        content[BULK_RECORD] = ArrayRecord(arrays)
    return content


def _unpack(content: Any) -> dict[str, Any]:
    """What :func:`_pack` made of fields; without the record there are none."""
    bulk = content.array_records.get(BULK_RECORD, {})
    return {**content.config_records.get(RECORD, {}), **{name: array.data for name, array in bulk.items()}}


class FlowerRun:
    """One Flower run, submitted and owned by this process: an :class:`~skerry_server.federation.exchange.Exchange`.

    >>> with FlowerRun(superlink.access(config, layout), lock=Path("submit.lock")) as run:  # doctest: +SKIP
    ...     run.nodes()
    {1739274928374}
    """

    def __init__(self, access: SuperLinkAccess, *, lock: Path, patience_s: float = PATIENCE_S) -> None:
        """Submit a run and claim it.

        Args:
            access: The SuperLink, and what shows that this process may ask it.
            lock: File that keeps other campaigns of this machine from claiming this run's task.
            patience_s: See :data:`PATIENCE_S`.

        Raises:
            ExchangeLostError: The SuperLink cannot be reached, or does not give the task out.
        """
        self._access = access
        self._patience_s = patience_s
        with _exclusive(lock):
            self.run_id, token = self._submit()
        self._client: Any = self._runtime_client(token)
        self._node = Node(node_id=SUPERLINK_NODE_ID)
        self._ended = threading.Event()
        self._completed = False
        self._call(lambda: self._client.PullTaskInput(PullTaskInputRequest()))
        self._heart = threading.Thread(target=self._beat, name="flower-task-heartbeat", daemon=True)
        self._heart.start()
        logger.info("Flower run %d at %s", self.run_id, access.address)

    def _runtime_client(self, token: str | None) -> Any:
        interceptors = [] if token is None else [RuntimeTokenHttpInterceptor(token=token)]
        return self._call(lambda: open_client(RuntimeHttpClient, self._access, interceptors=interceptors))

    def _call(self, action: Callable[[], R]) -> R:
        return _persist(action, patience_s=self._patience_s)

    def _submit(self) -> tuple[int, str]:
        """Start a run and claim its task; ends the tasks of campaigns that died between the two."""
        bundle = _app_bundle()
        fab = Fab(hash_str=hashlib.sha256(bundle).hexdigest(), content=bundle)
        with (
            self._call(lambda: open_client(ControlHttpClient, self._access)) as control,
            self._runtime_client(None) as runtime,
        ):
            run_id = int(self._call(lambda: control.StartRun(StartRunRequest(fab=fab))).run_id)
            deadline = time.monotonic() + self._patience_s
            while time.monotonic() < deadline:
                request = AcquireTaskRequest(supported_task_types=[TaskType.SERVER_APP])
                claimed = self._call(lambda: runtime.AcquireTask(request))  # noqa: B023  (called at once)
                if claimed.token and claimed.task.run_id == run_id:
                    return run_id, str(claimed.token)
                if claimed.token:
                    self._end_stray(str(claimed.token), int(claimed.task.run_id))
                else:
                    time.sleep(_RETRY_FIRST_S)
        raise ExchangeLostError(
            f"the SuperLink at {self._access.address} did not give out the task of run {run_id}; it must run with "
            "--isolation process"
        )

    def _end_stray(self, token: str, run_id: int) -> None:
        logger.warning("run %d was submitted by a process that is gone; it is ended", run_id)
        with self._runtime_client(token) as client:
            output = PushTaskOutputRequest(sub_status=SubStatus.FAILED, details="the campaign's process is gone")
            try:
                client.PullTaskInput(PullTaskInputRequest())
                client.PushTaskOutput(output)
            except httpx.HTTPError as error:
                logger.info("run %d could not be ended: %s", run_id, error)

    def _beat(self) -> None:
        while not self._ended.wait(_HEARTBEAT_PERIOD_S):
            try:
                self._client.SendTaskHeartbeat(SendTaskHeartbeatRequest())
            except httpx.HTTPError as error:
                logger.debug("task heartbeat failed: %s", error)  # the next exchange meets the same SuperLink

    def nodes(self) -> set[int]:
        """See :class:`~skerry_server.federation.exchange.Exchange`."""
        response = self._call(lambda: self._client.GetNodes(GetNodesRequest()))
        return {int(node.node_id) for node in response.nodes}

    def send(self, broadcast: Broadcast, node_ids: Collection[int]) -> dict[int, str]:
        """See :class:`~skerry_server.federation.exchange.Exchange`. The content is uploaded once for all nodes."""
        if not node_ids:
            return {}
        content = _pack(broadcast.fields)
        messages = [
            make_message(
                Metadata(
                    run_id=self.run_id,
                    message_id="",
                    src_node_id=SUPERLINK_NODE_ID,
                    dst_node_id=node_id,
                    reply_to_message_id="",
                    group_id=broadcast.group,
                    created_at=time.time(),
                    ttl=broadcast.ttl_s,
                    message_type=broadcast.kind,
                ),
                content,
            )
            for node_id in node_ids
        ]
        with no_object_id_recompute():
            objects: dict[str, Any] = {}
            for message in messages:
                message.metadata.__dict__["_message_id"] = message.object_id
                objects.update(get_all_nested_objects(message))
            request = PushAppMessagesRequest(
                messages_list=[message_to_proto(remove_content_from_message(message)) for message in messages],
                message_object_trees=[get_object_tree(message) for message in messages],
            )
            response = self._call(lambda: self._upload(request, objects))
        sent = zip(node_ids, response.message_ids, strict=True)
        return {node_id: str(message_id) for node_id, message_id in sent if message_id}

    def _upload(self, request: Any, objects: dict[str, Any]) -> Any:
        response = self._client.PushMessages(request)
        push_objects(
            objects,
            push_object_fn=make_push_object_fn_protobuf(
                self._client.PushObject, self._node, self.run_id, response.session_id
            ),
            object_ids_to_push=set(response.objects_to_push),
        )
        return response

    def receive(self, message_ids: Iterable[str]) -> list[Reply]:
        """See :class:`~skerry_server.federation.exchange.Exchange`."""
        request = PullAppMessagesRequest(message_ids=list(message_ids))
        response = self._call(lambda: self._client.PullMessages(request))
        pairs = zip(response.messages_list, response.message_object_trees, strict=True)
        return [self._read(proto, tree) for proto, tree in pairs]

    def _read(self, proto: Any, tree: Any) -> Reply:
        replied_to, object_id = str(proto.metadata.reply_to_message_id), proto.metadata.message_id
        try:
            contents = self._call(
                lambda: pull_objects(
                    [item.object_id for item in iterate_object_tree(tree)],
                    make_pull_object_fn_protobuf(self._client.PullObject, self._node, self.run_id),
                    max_time=_PULL_LIMIT_S,
                    initial_backoff=0.01,
                    backoff_cap=0.2,
                )
            )
            confirmation = ConfirmMessageReceivedRequest(
                node=self._node, run_id=self.run_id, message_object_id=object_id
            )
            self._call(lambda: self._client.ConfirmMessageReceived(confirmation))
            message = inflate_object_from_contents(object_id, contents)
        except (ObjectPullError, ValueError) as error:
            return Reply(replied_to, error=ReplyError(f"the reply could not be read: {error}", refused=False))
        if message.has_error():
            reason = message.error.reason or f"code {message.error.code}"
            return Reply(replied_to, error=ReplyError(reason, refused=message.error.code == REFUSED))
        return Reply(replied_to, fields=_unpack(message.content))

    def complete(self) -> None:
        """The run did what it was for; without this it ends as failed."""
        self._completed = True

    def close(self) -> None:
        """Report the end of the run and let go of it; never raises."""
        if self._ended.is_set():
            return
        self._ended.set()
        self._heart.join()
        status = SubStatus.COMPLETED if self._completed else SubStatus.FAILED
        try:
            self._client.PushTaskOutput(PushTaskOutputRequest(sub_status=status, details=""))
        except httpx.HTTPError as error:
            logger.info("the end of run %d could not be reported: %s", self.run_id, error)
        self._client.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
