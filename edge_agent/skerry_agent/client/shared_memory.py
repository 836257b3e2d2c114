"""The client: connects, writes into slots, rings, waits.

Invariants: a request whose answer did not come is an error, never a wrong answer; after any doubt about the connection
it is closed, and the next request connects again.
"""

from __future__ import annotations

import math
import socket
import struct
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import numpy as np
import numpy.typing as npt

from skerry_agent.client.connection import Connection, check_refusal
from skerry_agent.client.errors import (
    BusyError,
    ChangedModelError,
    DisconnectedError,
    RefusedRequestError,
    ServingError,
    UnfitInputError,
    error_of,
)
from skerry_agent.engine.prediction import Prediction
from skerry_agent.serving.shared_memory_layout import (
    HEAD,
    ID_BYTES,
    MESSAGE_BYTES,
    Hello,
    Kind,
    RequestHeader,
)
from skerry_agent.serving.slots import Question, ask

#: The door's socket below the data directory of the agent.
SOCKET = Path("door") / "shared-memory.sock"
#: How long an answer is waited for, unless the caller says otherwise (s).
TIMEOUT_SECONDS = 10.0

_FLOAT32 = np.dtype(np.float32)


@dataclass(frozen=True)
class ModelDescription:
    """What the active release takes and gives.

    Attributes:
        task: Its task.
        release_id: The release.
        shape: Of one row of input.
        minimum, maximum: Range of input values.
        classes: Class names in the order of the scores.
        features: Number of drift features.
        rows: Most rows of one request over this connection.
    """

    task: str
    release_id: str
    shape: tuple[int, ...]
    minimum: float
    maximum: float
    classes: tuple[str, ...]
    features: int
    rows: int


@dataclass(frozen=True)
class Ticket:
    """A request under way, to be handed to :meth:`SharedMemoryClient.receive` once.

    Attributes:
        slot: Where it lies.
        sequence: Its number on the connection.
        connection: Number of the connection.
    """

    slot: int
    sequence: int
    connection: int


class SharedMemoryClient:
    """A connection to the shared-memory door. Thread-safe: threads take turns; for more, make more clients.

    Made by :meth:`connect`; close it, or use it in a ``with`` statement.
    """

    def __init__(self, path: Path, *, rows: int, slots: int, timeout: float) -> None:
        self._path = path
        self._hello = Hello(slots, rows)
        self._timeout = timeout
        self._lock = threading.RLock()
        self._sequence = 0
        self._number = 0
        self._closed = False
        self._room: npt.NDArray[np.float32] | None = None
        self._connection: Connection | None = None

    @classmethod
    def connect(
        cls, data_dir: Path | str, *, rows: int = 1, slots: int = 1, timeout: float = TIMEOUT_SECONDS
    ) -> SharedMemoryClient:
        """Connect to the serving process of an agent.

        Args:
            data_dir: Data directory of the agent.
            rows: Most rows of one request, 1 to 64; memory is laid out for so many.
            slots: Requests that may be under way at the same time (:meth:`submit`), 1 to 8.
            timeout: How long to wait for an answer (s), above 0.

        Raises:
            DisconnectedError: No serving process there.
            NoActiveReleaseError: It has no model yet.
            ForbiddenError, BusyError: It does not let this process in.
        """
        if not (rows >= 1 and slots >= 1 and timeout > 0):
            raise ValueError(f"rows {rows}, slots {slots} and timeout {timeout} must be above 0")
        client = cls(Path(data_dir) / SOCKET, rows=rows, slots=slots, timeout=timeout)
        client._open()
        return client

    @property
    def model(self) -> ModelDescription:
        """What the release takes and gives, as far as this client knows."""
        with self._lock:
            connection = self._open()
            w, g = connection.welcome, connection.welcome.geometry
            return ModelDescription(
                w.task, w.release_id, g.shape, w.minimum, w.maximum, connection.region.classes, g.features, g.rows
            )

    def infer(
        self, x: npt.NDArray[np.float32], *, deadline_us: float | None = None, request_id: str = ""
    ) -> Prediction:
        """Answer one request.

        After another release has taken over, memory is laid out anew and the request is sent again, once.

        Args:
            x: float32 [batch, ...] in raw units, or one row without the batch dimension.
            deadline_us: How long the answer may take (us); None leaves it to the device.
            request_id: Repeated in the answer; labels name it. Empty asks for a generated one.

        Raises:
            RefusedRequestError: The request is wrong.
            LateError: The deadline cannot be met.
            DisconnectedError: The serving process went away; the next call connects again.
            ServingError: Another one of :mod:`skerry_agent.client.errors`.
        """
        with self._lock:
            try:
                try:
                    return self._ask(x, deadline_us, request_id)
                except (ChangedModelError, UnfitInputError):
                    # Either may mean that another release has taken over.
                    self._agree_again()
                return self._ask(x, deadline_us, request_id)
            except BaseException as error:
                raise self._failure(error) from error.__cause__

    def room(self, rows: int = 1) -> npt.NDArray[np.float32]:
        """Room for the next input inside the shared memory, which saves a copy: fill it, hand it to the next request.

        Returns:
            float32 [rows, ...]; after the next request, whatever that was, it is not to be touched any more.

        Raises:
            BusyError: All slots are under way.
            UnfitInputError: More rows than were agreed.
        """
        with self._lock:
            connection = self._open()
            geometry = connection.welcome.geometry
            if not 1 <= rows <= geometry.rows:
                raise UnfitInputError(f"rows: expected 1 to {geometry.rows}, got {rows}")
            if not connection.free:
                raise BusyError(f"all {geometry.slots} slots are under way")
            self._room = connection.region.rooms.inputs[connection.free[-1]][:rows]
            return self._room

    def submit(self, x: npt.NDArray[np.float32], *, deadline_us: float | None = None, request_id: str = "") -> Ticket:
        """Start a request; as :meth:`infer`, without waiting.

        Raises:
            BusyError: All slots are under way: :meth:`receive` one first.
        """
        with self._lock:
            try:
                return Ticket(*self._submit(x, deadline_us, request_id), self._number)
            except BaseException as error:
                raise self._failure(error) from error.__cause__

    def receive(self, ticket: Ticket) -> Prediction:
        """Wait for the answer to a submitted request; raises like :meth:`infer`."""
        with self._lock:
            if ticket.connection != self._number or self._connection is None:
                raise DisconnectedError("the connection of this request is gone, and its answer with it")
            try:
                return self._receive(ticket.slot, ticket.sequence)
            except BaseException as error:
                raise self._failure(error) from error.__cause__

    def _ask(self, x: npt.NDArray[np.float32], deadline_us: float | None, request_id: str) -> Prediction:
        """Send a request and receive its answer."""
        connection, question = self._begin(x, deadline_us, request_id)
        slot, sequence, *_ = question
        if len(connection.free) + 1 < connection.welcome.geometry.slots:  # others may answer first
            self._ring(connection, *question)
            return self._receive(slot, sequence)
        answer = ask(connection.descriptor, connection.region.rooms, *question)
        if isinstance(answer, bytes):
            self._hear(connection, answer)
            return self._receive(slot, sequence)
        connection.free.append(slot)
        scores, features, latency_us, rung, request_id, release_id, variant = answer
        classes = connection.region.classes
        return Prediction(scores, features, classes, release_id, request_id, latency_us, variant, rung)

    def _submit(self, x: npt.NDArray[np.float32], deadline_us: float | None, request_id: str) -> tuple[int, int]:
        """Slot and sequence number of a request that has been started."""
        connection, question = self._begin(x, deadline_us, request_id)
        self._ring(connection, *question)
        return question[:2]

    def _begin(
        self, x: npt.NDArray[np.float32], deadline_us: float | None, request_id: str
    ) -> tuple[Connection, Question]:
        """Check a request and take a slot."""
        connection = self._connection or self._open()
        geometry = connection.welcome.geometry
        rows = _rows(x, geometry.shape, geometry.rows, connection.welcome.input_name)
        if request_id and len(request_id.encode()) > ID_BYTES:
            raise RefusedRequestError(f"request_id: expected at most {ID_BYTES} bytes, got {len(request_id)}")
        deadline_ns = 0
        if deadline_us is not None:
            if not 0 < deadline_us < math.inf:
                raise RefusedRequestError(f"deadline_us: expected a time above 0, got {deadline_us}")
            deadline_ns = time.monotonic_ns() + min(int(deadline_us * 1000), 1 << 62)
        if not connection.free:
            raise BusyError(f"all {geometry.slots} slots are under way")
        given = None if x is self._room else x  # the room is that of the slot which is used next
        self._room = None
        self._sequence = sequence = (self._sequence + 1) & 0xFFFFFFFF
        return connection, (connection.free.pop(), sequence, rows, deadline_ns, request_id, given)

    def _ring(
        self,
        connection: Connection,
        slot: int,
        sequence: int,
        rows: int,
        deadline_ns: int,
        request_id: str,
        x: npt.NDArray[np.float32] | None,
    ) -> None:
        region = connection.region
        if x is not None:
            region.rooms.inputs[slot][:rows] = x
        region.write_header(slot, RequestHeader(rows, rows * connection.row_bytes, deadline_ns, request_id))
        connection.socket.send(HEAD.pack(Kind.RING, slot, sequence), socket.MSG_NOSIGNAL)

    def _receive(self, slot: int, sequence: int) -> Prediction:
        connection = self._connection
        if connection is None:
            raise DisconnectedError("the connection is closed")
        while connection.done.pop(slot, None) != sequence:
            self._hear(connection, connection.socket.recv(MESSAGE_BYTES))
        region = connection.region
        status, rows, latency_us, rung, request_id, release_id, variant, error = region.read_header(slot)
        connection.free.append(slot)
        if status:
            raise error_of(status, error)
        scores, features = region.outputs(slot, rows)
        return Prediction(scores, features, region.classes, release_id, request_id, latency_us, variant, rung)

    def _hear(self, connection: Connection, message: bytes) -> None:
        """Note which slot was answered; anything else ends the connection."""
        if len(message) != HEAD.size:
            self._drop()
            check_refusal(message)
            raise DisconnectedError("the serving process went away")
        _, answered, number = HEAD.unpack(message)
        connection.done[answered] = number

    def close(self) -> None:
        """Hang up; requests under way are lost."""
        with self._lock:
            self._closed = True
            self._drop()

    def __enter__(self) -> SharedMemoryClient:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _open(self) -> Connection:
        if self._closed:
            raise DisconnectedError("the client is closed")
        if self._connection is None:
            self._connection = Connection(self._path, self._hello, self._timeout)
            self._number += 1
        return self._connection

    def _agree_again(self) -> None:
        connection = self._open()
        if len(connection.free) < connection.welcome.geometry.slots:
            raise BusyError("another release has taken over: receive the requests that are under way first")
        self._number += 1  # tickets of the old memory are void
        self._room = None
        try:
            connection.agree(self._hello)
        except ServingError:
            self._drop()
            raise

    def _drop(self) -> None:
        self._room = None
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _failure(self, error: BaseException) -> BaseException:
        """What to raise for an error; the connection is given up after anything that leaves doubt about it."""
        if isinstance(error, DisconnectedError):
            self._drop()
        elif isinstance(error, BlockingIOError):
            self._drop()
            return DisconnectedError(f"no answer within {self._timeout:g} s")
        elif isinstance(error, OSError | struct.error):
            self._drop()
            return DisconnectedError(f"the serving process went away: {error}")
        elif not isinstance(error, ServingError):
            self._drop()  # interrupted in the middle of a request
        return error


def _rows(x: npt.NDArray[np.float32], shape: tuple[int, ...], limit: int, name: str) -> int:
    """Rows of a request; raises UnfitInputError for another type or shape."""
    if not isinstance(x, np.ndarray) or x.dtype != _FLOAT32:
        got = x.dtype if isinstance(x, np.ndarray) else type(x).__name__
        raise UnfitInputError(f"{name}: expected a float32 array, got {got}")
    if x.shape == shape:
        return 1
    if x.shape[1:] != shape or x.ndim != len(shape) + 1 or not 1 <= x.shape[0] <= limit:
        expected = f"[1..{limit}, {', '.join(map(str, shape))}]"
        raise UnfitInputError(f"{name}: expected shape {expected}, got {list(x.shape)}")
    return len(x)
