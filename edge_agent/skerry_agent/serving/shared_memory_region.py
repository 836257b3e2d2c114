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

_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL


class ServerRegion:
    """The server's side.

    Args:
        geometry: What lies where.
        names: Class names, as ``geometry.names_bytes`` counts them.

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
        rows, g = geometry.rows, geometry
        starts = [g.slot_offset(slot) for slot in range(g.slots)]
        self._inputs = [self._floats(start + INPUT_OFFSET, (rows, *g.shape)) for start in starts]
        self._scores = [self._floats(start + g.scores_offset, (rows, g.classes)) for start in starts]
        self._features = [self._floats(start + g.features_offset, (rows, g.features)) for start in starts]
        self._starts = starts

    def read_header(self, slot: int) -> RequestHeader:
        """A copy of the request header, read once; raises SchemaError."""
        return read_request(self._map, self._starts[slot])

    def copy_input(self, slot: int, rows: int) -> Floats:
        """A copy of the first rows of input, which the client cannot change any more."""
        copy: Floats = self._inputs[slot][:rows].copy()
        return copy

    def write_answer(self, slot: int, header: AnswerHeader, scores: Floats, features: Floats) -> None:
        """Write scores [rows, classes] and features [rows, F] of at most ``geometry.rows`` rows, and their header."""
        rows = len(scores)
        self._scores[slot][:rows] = scores
        self._features[slot][:rows] = features
        self.write_header(slot, header)

    def write_header(self, slot: int, header: AnswerHeader) -> None:
        """Write the answer header alone."""
        write_answer(self._map, self._starts[slot] + REQUEST_BYTES, header)

    def close(self) -> None:
        """Give the memory back; the client keeps what it has mapped."""
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1
            self._inputs, self._scores, self._features = [], [], []
            self._map.close()

    def _floats(self, offset: int, shape: tuple[int, ...]) -> Floats:
        return np.ndarray(shape, dtype=np.float32, buffer=self._map, offset=offset)


class ClientRegion:
    """The client's side.

    Args:
        geometry: From the server.
        descriptor: Of the memory; taken over.

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
        self._starts = [g.slot_offset(slot) for slot in range(g.slots)]
        self.inputs = [self._floats(start + INPUT_OFFSET, (g.rows, *g.shape)) for start in self._starts]
        self._scores = [self._floats(start + g.scores_offset, (g.rows, g.classes)) for start in self._starts]
        self._features = [self._floats(start + g.features_offset, (g.rows, g.features)) for start in self._starts]

    def write_header(self, slot: int, header: RequestHeader) -> None:
        """Write the request header."""
        write_request(self._map, self._starts[slot], header)

    def read_header(self, slot: int) -> AnswerHeader:
        """The answer header."""
        return read_answer(self._map, self._starts[slot] + REQUEST_BYTES)

    def outputs(self, slot: int, rows: int) -> tuple[Floats, Floats]:
        """Copies of scores [rows, classes] and features [rows, F], read-only."""
        scores: Floats = self._scores[slot][:rows].copy()
        features: Floats = self._features[slot][:rows].copy()
        scores.flags.writeable = False
        features.flags.writeable = False
        return scores, features

    def close(self) -> None:
        """Unmap."""
        self.inputs, self._scores, self._features = [], [], []
        self._map.close()

    def _floats(self, offset: int, shape: tuple[int, ...]) -> Floats:
        return np.ndarray(shape, dtype=np.float32, buffer=self._map, offset=offset)
