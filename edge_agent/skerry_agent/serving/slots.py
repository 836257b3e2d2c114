"""A request's way through the shared-memory door: :meth:`Slots.ask` at the client, :meth:`Slots.take` and
:meth:`Slots.give` at the server, before the model and after it.

Small steps, but each touches a dozen Python functions, and a process that has just been woken finds none of them in the
processor's caches. ``_slots.c`` does each in one call. It is compiled where there is a compiler when the agent is
installed; where there is none, :class:`PythonSlots` does the same, and one test suite runs over both.

``rooms`` are views of the memory that a client shares: for each slot its two headers (uint8 [1024]), the room for its
input (float32 [rows, ...]), for scores (float32 [rows, classes]) and features (float32 [rows, F]).
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from typing import NamedTuple, Protocol, cast

import numpy as np
import numpy.typing as npt

from skerry_agent.engine.arrays import seal, within
from skerry_agent.engine.backend import Floats
from skerry_agent.engine.errors import SchemaError
from skerry_agent.serving.shared_memory_layout import (
    HEAD,
    ID_BYTES,
    MESSAGE_BYTES,
    REQUEST_BYTES,
    AnswerHeader,
    Kind,
    RequestHeader,
    Status,
    read_answer,
    read_request,
    write_answer,
    write_request,
)

#: A plain request: slot, sequence number, moment on CLOCK_MONOTONIC after which the answer is of no use (ns; 0: none),
#: request id (empty asks for one), a copy of the input [rows, ...], and whether its values lie within the range.
Taken = tuple[int, int, int, str, Floats, bool]


#: What is asked: slot, sequence number, rows, deadline (ns; 0: none), request id, and the input unless it lies in the
#: slot already.
Question = tuple[int, int, int, int, str, Floats | None]
#: An answer: scores [rows, classes] and features [rows, F] as read-only copies, latency (us), rung, request id, release
#: id, variant.
Answered = tuple[Floats, Floats, float, int, str, str, str]


class Rooms(NamedTuple):
    """The memory of one client, an array a slot."""

    headers: tuple[npt.NDArray[np.uint8], ...]
    inputs: tuple[Floats, ...]
    scores: tuple[Floats, ...]
    features: tuple[Floats, ...]


class Slots(Protocol):
    """The steps. The descriptor is a connected SOCK_SEQPACKET socket; the server never waits for it."""

    def take(self, descriptor: int, rooms: Rooms, least: float, most: float, /) -> Taken | bytes:
        """Receive one message and, if it rings for a plain request, take that out of its slot.

        Header and input are copied before they are looked at: what the client writes meanwhile does not count.

        Args:
            descriptor: The client's connection.
            rooms: The client's memory; at least one slot.
            least, most: Range of input values.

        Returns:
            The request, or the message as it came if it is anything but a ring for a header in order: empty if the
            client has hung up. A message is cut at 1,024 bytes.

        Raises:
            OSError: Nothing came (BlockingIOError), or the connection is broken.
        """
        ...

    def give(
        self,
        descriptor: int,
        rooms: Rooms,
        slot: int,
        sequence: int,
        scores: Floats,
        features: Floats,
        latency_us: float,
        rung: int,
        request_id: str,
        release_id: str,
        variant: str,
        /,
    ) -> None:
        """Write an answer into its slot and ring back.

        Args:
            descriptor, rooms: As above.
            slot, sequence: As taken.
            scores, features: float32 [rows, classes] and [rows, F], C order.
            latency_us, rung, request_id, release_id, variant: As in the answer header; too long names are cut.

        Raises:
            ValueError: The arrays do not fit into the slot, or there is no such slot; nothing was sent.
            OSError: The client does not read its messages (BlockingIOError), or has gone.
        """
        ...

    def ask(
        self,
        descriptor: int,
        rooms: Rooms,
        slot: int,
        sequence: int,
        rows: int,
        deadline_ns: int,
        request_id: str,
        x: Floats | None,
        /,
    ) -> Answered | bytes:
        """Write a request into its slot, ring, and wait for one message, as long as the socket's own timeout says.

        Args:
            descriptor, rooms: As above.
            slot, sequence, rows, deadline_ns, request_id: As in the message and the request header.
            x: float32 [rows, ...] or one row; None if it is in the slot already.

        Returns:
            The answer, or the message as it came if it is anything but the bell of this request and an answer that is
            in order.

        Raises:
            ValueError: The request does not fit into the slot; nothing was sent.
            OSError: No message in time (BlockingIOError), or the connection is broken.
        """
        ...


class PythonSlots:
    """The steps in Python."""

    def take(self, descriptor: int, rooms: Rooms, least: float, most: float, /) -> Taken | bytes:
        """See :class:`Slots`."""
        if not rooms.headers:
            raise ValueError("no such slot")
        with _borrowed(descriptor) as connection:
            message = connection.recv(MESSAGE_BYTES, socket.MSG_DONTWAIT)
        if len(message) != HEAD.size:
            return message
        kind, slot, sequence = HEAD.unpack(message)
        if kind != Kind.RING or slot >= len(rooms.headers):
            return message
        room = rooms.inputs[slot]
        try:
            header = read_request(rooms.headers[slot].data, 0)
        except SchemaError:
            return message
        if not 1 <= header.rows <= len(room) or header.input_bytes != header.rows * room[0].nbytes:
            return message
        x: Floats = room[: header.rows].copy()
        return slot, sequence, header.deadline_ns, header.request_id, x, within(x, least, most)

    def give(
        self,
        descriptor: int,
        rooms: Rooms,
        slot: int,
        sequence: int,
        scores: Floats,
        features: Floats,
        latency_us: float,
        rung: int,
        request_id: str,
        release_id: str,
        variant: str,
        /,
    ) -> None:
        """See :class:`Slots`."""
        if not 0 <= slot < len(rooms.headers):
            raise ValueError("no such slot")
        rows = len(scores)
        for output, room in ((scores, rooms.scores[slot]), (features, rooms.features[slot])):
            if (
                output.dtype != np.float32
                or output.ndim != 2
                or output.shape != (rows, room.shape[1])
                or rows > len(room)
            ):
                raise ValueError("the answer does not fit into the slot")
        rooms.scores[slot][:rows] = scores
        rooms.features[slot][:rows] = features
        header = AnswerHeader(Status.OK, rows, latency_us, rung, request_id, release_id, variant)
        write_answer(rooms.headers[slot].data, REQUEST_BYTES, header)
        with _borrowed(descriptor) as connection:
            connection.send(HEAD.pack(Kind.DONE, slot, sequence), socket.MSG_NOSIGNAL | socket.MSG_DONTWAIT)

    def ask(
        self,
        descriptor: int,
        rooms: Rooms,
        slot: int,
        sequence: int,
        rows: int,
        deadline_ns: int,
        request_id: str,
        x: Floats | None,
        /,
    ) -> Answered | bytes:
        """See :class:`Slots`."""
        if not 0 <= slot < len(rooms.headers):
            raise ValueError("no such slot")
        room, memory = rooms.inputs[slot], rooms.headers[slot].data
        input_bytes = rows * room[0].nbytes
        if rows > len(room) or len(request_id.encode()) > ID_BYTES or (x is not None and x.nbytes != input_bytes):
            raise ValueError("the request does not fit into the slot")
        if x is not None:
            room[:rows] = x
        write_request(memory, 0, RequestHeader(rows, input_bytes, deadline_ns, request_id))
        with _borrowed(descriptor) as connection:
            connection.send(HEAD.pack(Kind.RING, slot, sequence), socket.MSG_NOSIGNAL)
            message = connection.recv(MESSAGE_BYTES)
        header = read_answer(memory, REQUEST_BYTES)
        if message != HEAD.pack(Kind.DONE, slot, sequence) or header.status != Status.OK:
            return message
        if header.rows > len(room):
            raise ValueError("the answer has more rows than the slot")
        return (*outputs(rooms, slot, header.rows), *header[2:7])


def outputs(rooms: Rooms, slot: int, rows: int) -> tuple[Floats, Floats]:
    """Copies of scores [rows, classes] and features [rows, F] in a slot, read-only."""
    scores: Floats = rooms.scores[slot][:rows].copy()
    features: Floats = rooms.features[slot][:rows].copy()
    seal(scores, features)
    return scores, features


@contextlib.contextmanager
def _borrowed(descriptor: int) -> Iterator[socket.socket]:
    """The socket of a descriptor that somebody else closes."""
    connection = socket.socket(fileno=descriptor)
    try:
        yield connection
    finally:
        connection.detach()


def _best() -> tuple[Slots, bool]:
    try:
        from skerry_agent.serving import _slots
    except ImportError:
        return PythonSlots(), False
    return cast("Slots", _slots), True


_SLOTS, COMPILED = _best()
take, give, ask = _SLOTS.take, _SLOTS.give, _SLOTS.ask
