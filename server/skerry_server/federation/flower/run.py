"""A campaign's Flower run. flwr (1.41.0, pinned) is imported in this package and by
:mod:`skerry_server.federation.strategies.flower_objects`; nowhere else.

A campaign's process *is* the ServerApp process of a Flower run: it submits the run through the Control API, claims the
run's task through the Runtime API, keeps it alive by heartbeats and exchanges messages until it reports the end. For
that the SuperLink runs with ``--isolation process``: it starts no process of its own for a run, so there is nothing to
wait for, to load, or to die with the SuperLink.

Devices are asked over the lane (:mod:`skerry_server.federation.flower.lane`), one request each way. Nodes that are not
on it are asked through Flower's own API: devices in our records, guests (stock ``flower-supernode``) in Flower's.

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
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import httpx
from flwr.common.constant import SubStatus
from flwr.proto.control_pb2 import StartRunRequest
from flwr.proto.fab_pb2 import Fab
from flwr.proto.runtime_pb2 import (
    AcquireTaskRequest,
    PullTaskInputRequest,
    PushTaskOutputRequest,
    SendTaskHeartbeatRequest,
)
from flwr.supercore.constant import TaskType
from flwr.supercore.control.control_http_client import ControlHttpClient
from flwr.supercore.inflatable.inflatable_utils import ObjectPushError
from flwr.supercore.interceptors import RuntimeTokenHttpInterceptor
from flwr.supercore.runtime import RuntimeHttpClient

from skerry_server.federation.exchange import Broadcast, ExchangeLostError, Reply
from skerry_server.federation.flower import messages as flower_messages
from skerry_server.federation.flower.client import SuperLinkNotReadyError, open_client
from skerry_server.federation.flower.lane_client import LaneClient
from skerry_server.federation.flower.node_registry import DEVICE_PREFIX
from skerry_server.federation.flower.plain import FlowerMessages
from skerry_server.superlink import SuperLinkAccess

logger = logging.getLogger(__name__)

#: How long transport errors are tried again before the run is given up (seconds).
PATIENCE_S = 60.0
_HEARTBEAT_PERIOD_S = 10.0
_RETRY_FIRST_S, _RETRY_LAST_S = 0.1, 2.0

#: How long the list of connected nodes is used again (seconds).
NODES_S = 0.5
#: How often Flower's own API is asked for the answers of nodes that are not on the lane (seconds).
OTHER_POLL_S = 0.25

#: Names no ClientApp: without guests none is needed.
NO_CLIENT_APP = "skerry_server.federation.flower.run:guests_need_a_client_app"
#: The app that a run names. Its server component is never loaded: this process is the ServerApp. The devices run their
#: installed code; the client component is for guests, which import it from what is installed there.
_APP = """[project]
name = "skerry-campaign"
version = "1.0.0"

[tool.flwr.app]
publisher = "skerry"

[tool.flwr.app.components]
serverapp = "skerry_server.federation.campaign_job:run"
clientapp = "{client_app}"

[tool.flwr.app.config]
"""

R = TypeVar("R")


def _app_bundle(client_app: str) -> bytes:
    """The app as a file that ``flwr build`` could have made (FAB), the same bytes every time."""
    project = _APP.format(client_app=client_app).encode()
    content = f"pyproject.toml,{hashlib.sha256(project).hexdigest()},{8 * len(project)}"  # size in bits
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in (("pyproject.toml", project), (".info/CONTENT", content.encode())):
            archive.writestr(zipfile.ZipInfo(name, (2020, 1, 1, 0, 0, 0)), data)
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


def _open_lane(access: SuperLinkAccess, token: str) -> LaneClient:
    try:
        return LaneClient(access, token)
    except OSError as error:
        raise SuperLinkNotReadyError(f"{error.filename}: {error.strerror}") from error


class FlowerRun:
    """One Flower run, submitted and owned by this process: an :class:`~skerry_server.federation.exchange.Exchange`.

    >>> with FlowerRun(superlink.access(config, layout), lock=Path("submit.lock")) as run:  # doctest: +SKIP
    ...     run.nodes()
    {1739274928374}
    """

    def __init__(
        self, access: SuperLinkAccess, *, lock: Path, patience_s: float = PATIENCE_S, client_app: str = NO_CLIENT_APP
    ) -> None:
        """Submit a run and claim it.

        Args:
            access: The SuperLink, and what shows that this process may ask it.
            lock: File that keeps other campaigns of this machine from claiming this run's task.
            patience_s: See :data:`PATIENCE_S`.
            client_app: ``module:attribute`` of the ``ClientApp`` that guests run; the module is installed there.

        Raises:
            ExchangeLostError: The SuperLink cannot be reached, or does not give the task out.
        """
        self._access = access
        self._patience_s = patience_s
        self._bundle = _app_bundle(client_app)
        with _exclusive(lock):
            self.run_id, token = self._submit()
        self._client: Any = self._runtime_client(token)
        self._lane = self._call(lambda: _open_lane(access, token))
        #: Connected nodes and their names, and until when that is used.
        self._names: dict[int, str] = {}
        self._names_until = 0.0
        #: Answers that have come over the lane and were not asked for yet; messages whose answers were handed over.
        self._arrived: list[tuple[str, bytes]] = []
        self._done: list[str] = []
        #: Whether the lane has been asked since the last :meth:`receive`.
        self._asked = False
        self._flower = FlowerMessages(self._client, self.run_id, self._call)
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
        fab = Fab(hash_str=hashlib.sha256(self._bundle).hexdigest(), content=self._bundle)
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
        """See :class:`~skerry_server.federation.exchange.Exchange`; up to :data:`NODES_S` old."""
        if time.monotonic() >= self._names_until:
            self._names = self._call(self._lane.nodes)
            self._names_until = time.monotonic() + NODES_S
        return set(self._names)

    def guests(self) -> dict[str, int]:
        """See :class:`~skerry_server.federation.exchange.HasGuests`."""
        self.nodes()
        return {
            flower_messages.guest_id(name): node_id
            for node_id, name in self._names.items()
            if not name.startswith(DEVICE_PREFIX)
        }

    def devices(self) -> dict[str, int]:
        """Devices whose nodes are connected, by the names that their keys were registered under."""
        self.nodes()
        return {
            name.removeprefix(DEVICE_PREFIX): node_id
            for node_id, name in self._names.items()
            if name.startswith(DEVICE_PREFIX)
        }

    def send(self, broadcast: Broadcast, node_ids: Collection[int]) -> dict[int, str]:
        """See :class:`~skerry_server.federation.exchange.Exchange`. The content is uploaded once for all nodes."""
        if not node_ids:
            return {}
        sent, other = self._call(
            lambda: self._lane.send(node_ids, kind=broadcast.kind, fields=broadcast.fields, ttl_s=broadcast.ttl_s)
        )
        self._asked = True  # nobody can have answered yet
        guests = {node_id: name for name, node_id in self.guests().items()} if other else {}
        devices = [node_id for node_id in other if node_id not in guests]
        if devices:
            sent |= self._flower.send(broadcast, devices, flower_messages.pack(broadcast.fields), {})
        asked = [node_id for node_id in other if node_id in guests]
        if asked and flower_messages.may_ask_guest(broadcast.kind, broadcast.fields):
            sent |= self._flower.send(broadcast, asked, flower_messages.pack_for_guest(broadcast.fields), guests)
        return sent

    def receive(self, message_ids: Iterable[str]) -> list[Reply]:
        """See :class:`~skerry_server.federation.exchange.Exchange`. What nobody asks for any more is dropped."""
        wanted = set(message_ids)
        if not self._asked:
            self._ask(0.0)
        self._asked = False
        arrived, self._arrived = self._arrived, []
        replies = [self._lane.read(message_id, frame) for message_id, frame in arrived if message_id in wanted]
        self._done += [message_id for message_id, _ in arrived]
        other = wanted & self._flower.waiting
        return replies + (self._flower.receive(other) if other else [])

    def wait(self, seconds: float) -> None:
        """See :class:`~skerry_server.federation.exchange.Waits`."""
        if self._asked and self._arrived:
            return
        self._ask(min(seconds, OTHER_POLL_S) if self._flower.waiting else seconds)

    def _ask(self, wait_s: float) -> None:
        """Hear over the lane what has arrived; tells what has been handed over, so that it is asked for once."""
        done, self._done = self._done, []
        self._arrived = self._call(lambda: self._lane.receive(done, wait_s=wait_s))
        self._asked = True

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
            self._lane.end()
            self._client.PushTaskOutput(PushTaskOutputRequest(sub_status=status, details=""))
        except httpx.HTTPError as error:
            logger.info("the end of run %d could not be reported: %s", self.run_id, error)
        self._client.close()
        self._lane.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
