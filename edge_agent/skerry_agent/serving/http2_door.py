"""The gRPC door by nghttp2: one thread that receives, answers and sends.

Inference runs on the door's own thread, which is the fastest way for models of microseconds to a few milliseconds, as
in the other doors. Invariants:

- the thread never waits for a client: what cannot be sent yet is kept, what has not come whole holds its bytes and
  nothing else;
- connections, requests on one, headers, messages, and the bytes of all messages that have not come whole are bounded;
- a client that keeps the door waiting is hung up on: after :data:`REQUEST_SECONDS`, or at once when its place is
  needed (the "slow loris").
"""

from __future__ import annotations

import logging
import os
import select
import socket
import threading
import time

from skerry_agent.serving.grpc_methods import MESSAGE_LIMIT, SERVICE, CallError, GrpcMethods, Method, Status
from skerry_agent.serving.http2 import (
    CompressionError,
    Connection,
    Problem,
    Request,
    decompress,
    new_connection,
    timeout_seconds,
)
from skerry_agent.serving.listening import listen

_log = logging.getLogger(__name__)

#: Connections at the same time; when all are taken, a new one gets the place of the one that has waited longest.
CONNECTIONS = 64
#: Requests under way on one connection; more wait at the client.
STREAMS = 32
HEADER_BYTES = 16 << 10
#: Bytes of messages that have not come whole, of all connections together.
HELD_BYTES = 2 * MESSAGE_LIMIT
#: How long a request may take to come, and an answer to go (s).
REQUEST_SECONDS = 20.0
SWEEP_SECONDS = 1.0
#: How long answers may take to go at shutdown, and the thread to end (s).
DRAIN_SECONDS = 5.0
_EVENTS = 64


class _Client:
    """One connection.

    Attributes:
        held: Bytes that count for it.
        active_ns: When something last came of it.
        blocked_ns: Since when it does not read; 0: it does.
    """

    def __init__(self, connection: socket.socket, http2: Connection, now_ns: int) -> None:
        self.socket = connection
        self.descriptor = connection.fileno()
        self.http2 = http2
        self.held = 0
        self.active_ns = now_ns
        self.blocked_ns = 0

    def owes_since_ns(self) -> int | None:
        """Since when the door has been waiting for its client, be it for a request or in taking an answer.

        Between two turns of the door every request that has come whole is answered.
        """
        waiting = self.http2.open_since_ns
        if self.blocked_ns:
            return self.blocked_ns if waiting is None else min(waiting, self.blocked_ns)
        return waiting


class Http2Door:
    """See :class:`~skerry_agent.serving.grpc_door.GrpcDoor`.

    Args:
        methods: What is answered.
        host: Address to listen on.
        port: 0 picks a free one.
        connections: At the same time.
        held_bytes: Of messages that have not come whole.
        request_seconds: How long a request may take to come, and an answer to go (s).

    Raises:
        DeviceError: The address cannot be bound.
    """

    def __init__(
        self,
        methods: GrpcMethods,
        *,
        host: str,
        port: int,
        connections: int = CONNECTIONS,
        held_bytes: int = HELD_BYTES,
        request_seconds: float = REQUEST_SECONDS,
    ) -> None:
        if new_connection is None:
            raise RuntimeError("HTTP/2 is not compiled in")
        self._new = new_connection
        self._methods: dict[bytes, Method] = {
            f"/{SERVICE}/{name}".encode(): method for name, method in methods.table.items()
        }
        self._limit = connections
        self._held_bytes = held_bytes
        self._request_ns = int(request_seconds * 1e9)
        self._clients: dict[int, _Client] = {}
        self._held = 0
        self._listener = listen(host, port, door="gRPC", setting="grpc_port")
        self._listener.setblocking(False)
        self.port: int = self._listener.getsockname()[1]
        self._wake_read, self._wake_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._poll = select.epoll()
        self._poll.register(self._listener, select.EPOLLIN)
        self._poll.register(self._wake_read, select.EPOLLIN)
        self._swept_ns = 0
        self._thread = threading.Thread(target=self._run, name="grpc-door", daemon=True)

    @property
    def alive(self) -> bool:
        """See :class:`GrpcDoor`."""
        return self._thread.is_alive()

    @property
    def connections(self) -> int:
        """Connections that are open."""
        return len(self._clients)

    def start(self) -> None:
        """See :class:`GrpcDoor`."""
        self._thread.start()

    def stop(self) -> None:
        """See :class:`GrpcDoor`."""
        os.write(self._wake_write, b".")
        if self._thread.is_alive():
            self._thread.join(DRAIN_SECONDS * 2)
        if self._thread.is_alive():
            _log.error("the gRPC door did not end within %g s", DRAIN_SECONDS * 2)
            return
        self._listener.close()
        self._poll.close()
        os.close(self._wake_read)
        os.close(self._wake_write)

    def _run(self) -> None:
        try:
            self._turn_until_woken()
            self._drain()
        finally:
            for client in list(self._clients.values()):
                self._remove(client)

    def _turn_until_woken(self) -> None:
        listener, wake, poll, clients = self._listener.fileno(), self._wake_read, self._poll.poll, self._clients
        while True:
            for descriptor, events in poll(SWEEP_SECONDS if clients else -1, _EVENTS):
                client = clients.get(descriptor)
                if client is not None:
                    self._serve(client, events)
                elif descriptor == listener:
                    self._accept()
                elif descriptor == wake:
                    return
            if clients and time.monotonic_ns() - self._swept_ns > SWEEP_SECONDS * 1e9:
                self._sweep()

    def _drain(self) -> None:
        """Take no new requests, and let the answers that are under way go."""
        self._poll.unregister(self._listener)
        self._poll.unregister(self._wake_read)
        for client in list(self._clients.values()):
            client.http2.go_away()
            self._serve(client, 0)
        until = time.monotonic() + DRAIN_SECONDS
        while not all(client.http2.idle for client in self._clients.values()) and time.monotonic() < until:
            for descriptor, events in self._poll.poll(0.1, _EVENTS):
                if descriptor in self._clients:
                    self._serve(self._clients[descriptor], events)

    def _accept(self) -> None:
        try:
            connection, _ = self._listener.accept()
        except OSError as error:  # gone already, or no descriptor left
            _log.warning("a client of gRPC cannot be taken: %s", error)
            return
        if len(self._clients) >= self._limit and not self._make_room():
            connection.close()
            return
        connection.setblocking(False)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        http2 = self._new(streams=STREAMS, message_limit=MESSAGE_LIMIT, header_limit=HEADER_BYTES)
        client = _Client(connection, http2, time.monotonic_ns())
        self._clients[client.descriptor] = client
        self._poll.register(connection, select.EPOLLIN)
        self._serve(client, 0)

    def _serve(self, client: _Client, events: int) -> None:
        """What there is to be done for a client, whose fault never reaches anybody else."""
        try:
            if events & ~select.EPOLLOUT:
                self._receive(client)
            self._flush(client)
            if client.http2.finished:
                self._remove(client)
        except BlockingIOError:
            pass
        except (OSError, ValueError):
            self._remove(client)
        except Exception:
            _log.exception("a client of gRPC is put out")
            self._remove(client)

    def _receive(self, client: _Client) -> None:
        http2 = client.http2
        requests = http2.receive(client.descriptor)
        if requests is None:
            raise ConnectionError("the client has hung up")
        for number, fields in enumerate(requests):
            if number:
                self._flush(client)
            self._answer(http2, Request._make(fields))
        client.active_ns = time.monotonic_ns()
        held = http2.held
        if held != client.held:
            self._held += held - client.held
            client.held = held
            if self._held > self._held_bytes:
                self._let_go(client)

    def _let_go(self, client: _Client) -> None:
        """Put out whoever holds most; raises OSError if that is the one that is being served."""
        _log.warning("a client of gRPC is put out: requests that have not come whole hold %d bytes", self._held)
        largest = max(self._clients.values(), key=lambda one: one.held)
        if largest is client:
            raise ConnectionError("it holds most")
        self._remove(largest)

    def _flush(self, client: _Client) -> None:
        """Send what can be sent; wait for the client's reading if it must read first."""
        sent = client.http2.flush(client.descriptor)
        if sent == bool(client.blocked_ns):
            client.blocked_ns = 0 if sent else time.monotonic_ns()
            self._poll.modify(client.descriptor, select.EPOLLIN if sent else select.EPOLLIN | select.EPOLLOUT)

    def _answer(self, http2: Connection, request: Request) -> None:
        """Answer a request that has come whole, or whose beginning is enough."""
        method = self._methods.get(request.path)
        if request.problem or request.compressed or method is None:
            try:
                message = _taken(request)
            except CallError as error:
                _fail(http2, request, error.status, error.text)
                return
            if message is None:
                http2.refuse(request.stream, "415")
                return
            if method is None:
                path = request.path.decode(errors="replace")
                _fail(http2, request, Status.UNIMPLEMENTED, f"there is no method {path}")
                return
        else:
            message = request.message
        try:
            http2.answer(request.stream, method(message, _remaining_us(request)))
        except CallError as error:
            _fail(http2, request, error.status, error.text)
        except Exception:
            _log.exception("a request over gRPC failed")
            _fail(http2, request, Status.INTERNAL, "the door failed; see the log of the serving process")

    def _sweep(self) -> None:
        """Hang up on clients that keep the door waiting."""
        now = self._swept_ns = time.monotonic_ns()
        for client in list(self._clients.values()):
            owes = client.owes_since_ns()
            if owes is not None and now - owes > self._request_ns:
                self._remove(client)

    def _make_room(self) -> bool:
        """End the connection that has kept the door waiting longest, or else the one that has been idle longest."""
        waiting = [(owes, client) for client in self._clients.values() if (owes := client.owes_since_ns()) is not None]
        idle = [(client.active_ns, client) for client in self._clients.values() if client.http2.idle]
        for group in (waiting, idle):
            if group:
                self._remove(min(group, key=lambda entry: entry[0])[1])
                return True
        return False

    def _remove(self, client: _Client) -> None:
        if self._clients.pop(client.descriptor, None) is not None:
            self._held -= client.held
            client.socket.close()  # which also takes it out of epoll


def _fail(http2: Connection, request: Request, status: Status, text: str) -> None:
    """Answer without an answer; what of the text is no UTF-8 is replaced."""
    http2.fail(request.stream, status, text.encode(errors="replace").decode())


def _taken(request: Request) -> bytes | None:
    """The message of a request that is not plain; None if it is no gRPC.

    Raises:
        CallError: It has none that can be taken.
    """
    match request.problem:
        case Problem.NOT_GRPC:
            return None
        case Problem.TOO_LARGE:
            raise CallError(Status.RESOURCE_EXHAUSTED, f"the message is larger than {MESSAGE_LIMIT} bytes")
        case Problem.BROKEN:
            raise CallError(Status.INTERNAL, "expected one message in gRPC's framing, whole")
    if not request.compressed:
        return request.message
    try:
        return decompress(request.message, request.encoding, MESSAGE_LIMIT)
    except CompressionError as error:
        raise CallError(Status.INTERNAL, str(error)) from error
    except OverflowError as error:
        raise CallError(Status.RESOURCE_EXHAUSTED, str(error)) from error


def _remaining_us(request: Request) -> float | None:
    """How long the answer may still take; None: the client does not say.

    Raises:
        CallError: It says it in a way of its own.
    """
    if not request.timeout:
        return None
    try:
        allowed_s = timeout_seconds(request.timeout)
    except ValueError as error:
        raise CallError(Status.INVALID_ARGUMENT, str(error)) from error
    return None if allowed_s is None else allowed_s * 1e6 - (time.monotonic_ns() - request.begun_ns) / 1000
