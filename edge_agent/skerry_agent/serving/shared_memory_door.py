"""The shared-memory door: an application on the same machine, tens of microseconds away from the model.

A client connects to a unix socket and is given memory with a few slots (``docs/shared-memory.md``). It writes a request
into a slot and rings through the socket; one thread answers into the same slot and rings back.

Invariants:

- only the user of this process, root, and members of this process's group are let in: by the mode of folder and socket,
  and again by the credentials that the kernel gives;
- each client has its own memory, and everything that comes from it is checked as a copy;
- the thread never waits for a client: one whose socket is full, or who breaks the protocol, is put out;
- clients take turns, one request each; their number and all their memory are bounded.
"""

from __future__ import annotations

import contextlib
import logging
import os
import select
import socket
import struct
import threading
import time
from pathlib import Path

from skerry_agent.engine.errors import BackendError, DeadlineError, NoReleaseError, OverloadedError, SchemaError
from skerry_agent.engine.model import ModelSpec
from skerry_agent.errors import AgentError, DeviceError, InputError
from skerry_agent.serving.core import ServingCore
from skerry_agent.serving.errors import UnknownModelError
from skerry_agent.serving.shared_memory_layout import (
    HEAD,
    MESSAGE_BYTES,
    RANK,
    AnswerHeader,
    Geometry,
    Hello,
    Kind,
    LayoutError,
    Status,
    Welcome,
    decode_hello,
    encode_refused,
    encode_welcome,
)
from skerry_agent.serving.shared_memory_region import ServerRegion
from skerry_agent.serving.slots import Taken, give, take
from skerry_agent.socket_address import SocketAddress

_log = logging.getLogger(__name__)

#: Clients at the same time; one more is told so and may come again.
CLIENTS = 32
#: Memory of all clients together (bytes).
TOTAL_BYTES = 256 << 20
#: How long the thread may take to end (s).
STOP_SECONDS = 5.0

_CREDENTIALS = struct.Struct("3i")
_GROUPS_BYTES = 4 * 4096
_SO_PEERGROUPS = 59

_STATUS: tuple[tuple[type[Exception], Status], ...] = (
    (InputError, Status.INVALID),
    (DeadlineError, Status.DEADLINE),
    (OverloadedError, Status.OVERLOADED),
    (NoReleaseError, Status.NO_RELEASE),
    (UnknownModelError, Status.MODEL_CHANGED),
    (BackendError, Status.FAILED),
)


class _ProtocolError(Exception):
    """A client that has to go."""

    def __init__(self, status: Status, error: str) -> None:
        super().__init__(error)
        self.status = status


class _Client:
    """One connection."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self.descriptor = connection.fileno()
        self.region: ServerRegion | None = None
        self.spec: ModelSpec | None = None

    @property
    def bytes(self) -> int:
        return 0 if self.region is None else self.region.geometry.region_bytes

    def close_region(self) -> None:
        if self.region is not None:
            self.region.close()
            self.region = None

    def close(self) -> None:
        self.connection.close()
        self.close_region()


class SharedMemoryDoor:
    """Listens on a unix socket. :meth:`start` opens it; :meth:`stop` ends its thread and removes the socket.

    Args:
        core: Answers.
        path: The socket; its folder is made, a stale socket is replaced.
        clients: Most clients at the same time.
        total_bytes: Most memory of all clients together.

    Raises:
        DeviceError: The path cannot be bound.
    """

    def __init__(
        self, core: ServingCore, path: Path, *, clients: int = CLIENTS, total_bytes: int = TOTAL_BYTES
    ) -> None:
        self._core = core
        self._path = path
        self._limit = clients
        self._total_bytes = total_bytes
        self._clients: dict[int, _Client] = {}
        self._listener = _listen(path)
        self._wake_read, self._wake_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._poll = select.epoll()
        self._poll.register(self._listener, select.EPOLLIN)
        self._poll.register(self._wake_read, select.EPOLLIN)
        self._thread = threading.Thread(target=self._run, name="shared-memory-door", daemon=True)

    def start(self) -> None:
        """Answer."""
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether the door's thread runs."""
        return self._thread.is_alive()

    @property
    def clients(self) -> int:
        """Clients that are connected."""
        return len(self._clients)

    def stop(self) -> None:
        """Answer what is being answered, hang up on everybody, end the thread."""
        os.write(self._wake_write, b".")
        if self._thread.is_alive():
            self._thread.join(STOP_SECONDS)
        if self._thread.is_alive():
            _log.error("the shared-memory door did not end within %g s", STOP_SECONDS)
            return
        for client in self._clients.values():
            client.close()
        self._clients.clear()
        self._listener.close()
        self._poll.close()
        os.close(self._wake_read)
        os.close(self._wake_write)
        self._path.unlink(missing_ok=True)

    def _run(self) -> None:
        listener, wake, poll = self._listener.fileno(), self._wake_read, self._poll.poll
        clients = self._clients
        while True:
            for descriptor, _ in poll():
                client = clients.get(descriptor)
                if client is not None:
                    self._serve(client)
                elif descriptor == listener:
                    self._accept()
                elif descriptor == wake:
                    return

    def _accept(self) -> None:
        try:
            connection, _ = self._listener.accept()
        except OSError as error:  # gone already, or no descriptor left
            _log.warning("a client of shared memory cannot be taken: %s", error)
            return
        connection.setblocking(False)
        client = _Client(connection)
        if not _may_enter(connection):
            self._refuse(client, Status.FORBIDDEN, "the door is open to the agent's own user and group only")
        elif len(self._clients) >= self._limit:
            self._refuse(client, Status.OVERLOADED, f"{self._limit} clients are connected, and no more may be")
        else:
            self._clients[client.descriptor] = client
            self._poll.register(connection, select.EPOLLIN)

    def _serve(self, client: _Client) -> None:
        """Take one message of a client, whose fault never reaches anybody else."""
        try:
            region, spec = client.region, client.spec
            if region is None or spec is None:
                self._hear(client, client.connection.recv(MESSAGE_BYTES))
                return
            taken = take(client.descriptor, region.rooms, spec.minimum, spec.maximum)
            if isinstance(taken, bytes):
                self._hear(client, taken)
            else:
                self._answer(client, region, spec, taken)
        except BlockingIOError:
            self._remove(client)  # it does not read its answers
        except LayoutError as error:
            self._refuse(client, Status.PROTOCOL, str(error))
        except _ProtocolError as error:
            self._refuse(client, error.status, str(error))
        except OSError:
            self._remove(client)
        except Exception:
            _log.exception("a client of shared memory is put out")
            self._refuse(client, Status.FAILED, "the door failed; see the log of the serving process")

    def _answer(self, client: _Client, region: ServerRegion, welcomed: ModelSpec, taken: Taken) -> None:
        """Answer a request that has been taken."""
        slot, sequence, deadline_ns, request_id, x, within = taken
        try:
            spec = self._spec_for(welcomed)
            deadline_us = (deadline_ns - time.monotonic_ns()) / 1000 if deadline_ns else None
            answer = self._core.predict(x, request_id, deadline_us, welcomed if within else None)
            scores, features, classes, release_id, request_id, latency_us, variant, rung = answer
            if classes != spec.classes or features.shape[1] != region.geometry.features:
                # A release with other outputs took over in between.
                raise UnknownModelError(f"{welcomed.task} release {welcomed.release_id}", release_id)
        except AgentError as error:
            self._fail(client, region, slot, sequence, error)
            return
        client.spec = spec
        give(
            client.descriptor,
            region.rooms,
            slot,
            sequence,
            scores,
            features,
            latency_us,
            rung,
            request_id,
            release_id,
            variant,
        )

    def _spec_for(self, welcomed: ModelSpec) -> ModelSpec:
        """What the release that is active takes, if memory that was laid out for another one serves it."""
        spec = self._core.spec
        if spec is welcomed:
            return spec
        if spec is None:
            raise NoReleaseError(self._core.status().detail)
        if not _fits(spec, welcomed):
            raise UnknownModelError(f"{welcomed.task} release {welcomed.release_id}", f"{spec.task} {spec.release_id}")
        return spec

    def _hear(self, client: _Client, data: bytes) -> None:
        """A message that is no ring for a request in order."""
        if not data:
            self._remove(client)
        elif len(data) == HEAD.size:
            self._ring(client, data)
        else:
            self._welcome(client, decode_hello(data))

    def _ring(self, client: _Client, data: bytes) -> None:
        """A ring for a request that could not be taken: say what is wrong with it."""
        kind, slot, sequence = HEAD.unpack(data)
        region, spec = client.region, client.spec
        if region is None or spec is None:
            raise _ProtocolError(Status.PROTOCOL, "expected a hello before the first request")
        if kind != Kind.RING or slot >= region.geometry.slots:
            raise _ProtocolError(
                Status.PROTOCOL,
                f"expected a ring for slot 0 to {region.geometry.slots - 1}, got message {kind}, slot {slot}",
            )
        try:
            self._spec_for(spec)
        except AgentError as error:
            self._fail(client, region, slot, sequence, error)
            return
        wrong = _wrong_header(region, slot)
        self._core.refuse(wrong)
        self._fail(client, region, slot, sequence, wrong)

    def _fail(self, client: _Client, region: ServerRegion, slot: int, sequence: int, error: AgentError) -> None:
        """Say in the slot why there is no answer, and ring back."""
        status = next((status for kind, status in _STATUS if isinstance(error, kind)), Status.FAILED)
        if status is Status.FAILED:
            _log.error("%s", error)
        region.write_header(slot, AnswerHeader(status, error=str(error)))
        client.connection.send(HEAD.pack(Kind.DONE, slot, sequence), socket.MSG_NOSIGNAL)

    def _welcome(self, client: _Client, hello: Hello) -> None:
        """Give a client memory that fits the active release; what it had before is gone."""
        spec = self._core.spec
        if spec is None:
            raise _ProtocolError(Status.NO_RELEASE, f"no release active. {self._core.status().detail}".strip())
        if len(spec.input.shape) > RANK:
            raise _ProtocolError(Status.FAILED, f"the input has {len(spec.input.shape)} dimensions, more than {RANK}")
        names = b"".join(name.encode().replace(b"\0", b"") + b"\0" for name in spec.classes)
        geometry = Geometry(
            hello.slots,
            min(hello.rows, spec.maximum_batch),
            spec.input.shape,
            spec.scores.shape[0],
            spec.features.shape[0],
            len(names),
        )
        taken = sum(other.bytes for other in self._clients.values()) - client.bytes
        if taken + geometry.region_bytes > self._total_bytes:
            text = f"{geometry.region_bytes} bytes of shared memory are wanted and {self._total_bytes - taken} are left"
            raise _ProtocolError(Status.OVERLOADED, text + "; ask for fewer slots or rows")
        client.close_region()
        try:
            client.region = ServerRegion(geometry, names)
        except OSError as error:
            raise _ProtocolError(Status.OVERLOADED, f"no shared memory: {error.strerror}") from error
        client.spec = spec
        welcome = Welcome(geometry, spec.minimum, spec.maximum, spec.task, spec.release_id, spec.input.name)
        socket.send_fds(client.connection, [encode_welcome(welcome)], [client.region.descriptor], socket.MSG_NOSIGNAL)

    def _refuse(self, client: _Client, status: Status, error: str) -> None:
        """Say why, and hang up."""
        with contextlib.suppress(OSError):
            client.connection.send(encode_refused(status, error), socket.MSG_NOSIGNAL)
        self._remove(client)

    def _remove(self, client: _Client) -> None:
        self._clients.pop(client.descriptor, None)
        client.close()  # which also takes it out of epoll


def _wrong_header(region: ServerRegion, slot: int) -> InputError:
    """What is wrong with a request header."""
    g = region.geometry
    try:
        header = region.read_header(slot)
    except InputError as error:
        return error
    if not 1 <= header.rows <= g.rows:
        return SchemaError("rows", expected=f"1 to {g.rows}, as agreed", got=header.rows)
    if header.input_bytes != header.rows * g.row_bytes:
        expected = f"{header.rows * g.row_bytes} for {header.rows} rows of {list(g.shape)}"
        return SchemaError("input_bytes", expected=expected, got=header.input_bytes)
    return SchemaError("header", expected="one that stays as it is after the ring", got="it has changed")


def _fits(spec: ModelSpec, welcomed: ModelSpec) -> bool:
    """Whether memory that was laid out for one release serves another one."""
    return (spec.task, spec.input.shape, spec.classes, spec.features.shape, spec.maximum_batch) == (
        welcomed.task,
        welcomed.input.shape,
        welcomed.classes,
        welcomed.features.shape,
        welcomed.maximum_batch,
    )


def _listen(path: Path) -> socket.socket:
    """A listening socket in a folder that only the own user and group can enter."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.parent.chmod(0o750)
        path.unlink(missing_ok=True)
        with contextlib.closing(SocketAddress(path)) as address:
            listener.bind(str(address.path))
        path.chmod(0o660)
        listener.listen(CLIENTS)
        listener.setblocking(False)
    except (OSError, DeviceError) as error:
        listener.close()
        raise DeviceError(
            f"the socket {path} cannot be bound ({error})", remedy="check the owner of its folder"
        ) from error
    return listener


def _may_enter(connection: socket.socket) -> bool:
    """Whether the process at the other end is of the own user or group, or root; the kernel answers, not the peer."""
    _, user, group = _CREDENTIALS.unpack(
        connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    )
    if user in (0, os.geteuid()) or group == os.getegid():
        return True
    groups = connection.getsockopt(socket.SOL_SOCKET, _SO_PEERGROUPS, _GROUPS_BYTES)
    return os.getegid() in struct.unpack(f"{len(groups) // 4}I", groups)
