"""The memory that one client shares with the serving process.

Each client has memory of its own, an anonymous file that only it and the serving process can reach, sealed so that
nobody can shrink it: a client that dies or scribbles can spoil its own answers and nothing else. All pages are there
from the start, so that a full machine refuses a client instead of killing the serving process when a page is touched.
"""

from __future__ import annotations

import fcntl
import mmap
import os

import numpy as np

from skerry_agent.engine.backend import Floats
from skerry_agent.serving.shared_memory_layout import (
    INPUT_OFFSET,
    REQUEST_BYTES,
    AnswerHeader,
    Geometry,
    RequestHeader,
    read_answer,
    read_request,
    write_answer,
    write_request,
)
from skerry_agent.serving.slots import Rooms, outputs

_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL


class ServerRegion:
    """The server's side.

    Args:
        geometry: What lies where.
        names: Class names, as ``geometry.names_bytes`` counts them.

    Attributes:
        geometry: As given.
        rooms: Views of the memory; none of a slot once it is closed.

    Raises:
        OSError: No memory.
    """

    def __init__(self, geometry: Geometry, names: bytes) -> None:
        self.geometry = geometry
        size = geometry.region_bytes
        self.descriptor = os.memfd_create("skerry-door", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.posix_fallocate(self.descriptor, 0, size)
            fcntl.fcntl(self.descriptor, fcntl.F_ADD_SEALS, _SEALS)
            self._map = mmap.mmap(self.descriptor, size, flags=mmap.MAP_SHARED | mmap.MAP_POPULATE)
        except BaseException:
            os.close(self.descriptor)
            raise
        self._map[: len(names)] = names
        self.rooms = _rooms(self._map, geometry)

    def read_header(self, slot: int) -> RequestHeader:
        """A copy of the request header, read once; raises SchemaError."""
        return read_request(self.rooms.headers[slot].data, 0)

    def write_header(self, slot: int, header: AnswerHeader) -> None:
        """Write an answer header."""
        write_answer(self.rooms.headers[slot].data, REQUEST_BYTES, header)

    def close(self) -> None:
        """Give the memory back; the client keeps what it has mapped."""
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1
            self.rooms = Rooms((), (), (), ())
            self._map.close()


class ClientRegion:
    """The client's side.

    Args:
        geometry: From the server.
        descriptor: Of the memory; taken over.

    Attributes:
        geometry: As given.
        classes: Class names.
        rooms: Views of the memory; none of a slot once it is closed.

    Raises:
        OSError: It is smaller than the geometry says, or cannot be mapped.
    """

    def __init__(self, geometry: Geometry, descriptor: int) -> None:
        g = self.geometry = geometry
        try:
            if os.fstat(descriptor).st_size < g.region_bytes:
                raise OSError(f"the memory is smaller than the {g.region_bytes} bytes that it was said to have")
            self._map = mmap.mmap(descriptor, g.region_bytes, flags=mmap.MAP_SHARED | mmap.MAP_POPULATE)
        finally:
            os.close(descriptor)
        names = bytes(self._map[: g.names_bytes]).decode(errors="replace")
        self.classes = tuple(names.split("\0")[:-1])
        self.rooms = _rooms(self._map, g)

    def write_header(self, slot: int, header: RequestHeader) -> None:
        """Write the request header."""
        write_request(self.rooms.headers[slot].data, 0, header)

    def read_header(self, slot: int) -> AnswerHeader:
        """The answer header."""
        return read_answer(self.rooms.headers[slot].data, REQUEST_BYTES)

    def outputs(self, slot: int, rows: int) -> tuple[Floats, Floats]:
        """Copies of scores [rows, classes] and features [rows, F], read-only."""
        return outputs(self.rooms, slot, rows)

    def close(self) -> None:
        """Unmap."""
        self.rooms = Rooms((), (), (), ())
        self._map.close()


def _rooms(memory: mmap.mmap, geometry: Geometry) -> Rooms:
    g = geometry
    starts = [g.slot_offset(slot) for slot in range(g.slots)]

    def floats(offset: int, shape: tuple[int, ...]) -> tuple[Floats, ...]:
        return tuple(np.ndarray(shape, dtype=np.float32, buffer=memory, offset=start + offset) for start in starts)

    return Rooms(
        tuple(np.ndarray((INPUT_OFFSET,), dtype=np.uint8, buffer=memory, offset=start) for start in starts),
        floats(INPUT_OFFSET, (g.rows, *g.shape)),
        floats(g.scores_offset, (g.rows, g.classes)),
        floats(g.features_offset, (g.rows, g.features)),
    )
