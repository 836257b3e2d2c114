"""A request's way through the shared-memory door: compiled and in Python, one suite over both."""

from __future__ import annotations

import shutil
import signal
import socket
import struct
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from skerry_agent.serving import shared_memory_layout as layout
from skerry_agent.serving import slots
from skerry_agent.serving.shared_memory_layout import HEAD, AnswerHeader, Geometry, Kind, RequestHeader, Status
from skerry_agent.serving.slots import PythonSlots, Rooms, Slots, Taken

Floats = npt.NDArray[np.float32]

SMALL = Geometry(slots=2, rows=3, shape=(4, 5), classes=6, features=7, names_bytes=0)
#: Copied in several blocks, and with the interpreter's lock let go.
LARGE = Geometry(slots=1, rows=2, shape=(3, 50, 60), classes=2, features=1, names_bytes=0)


def compiled() -> Slots:
    from skerry_agent.serving import _slots

    return cast("Slots", _slots)


KINDS = [
    pytest.param(PythonSlots(), id="python"),
    pytest.param(
        compiled() if slots.COMPILED else PythonSlots(),
        id="compiled",
        marks=pytest.mark.skipif(not slots.COMPILED, reason="there was no compiler at installation"),
    ),
]


class Memory:
    """Memory with its rooms, and both ends of a connection that never waits for long."""

    def __init__(self, geometry: Geometry) -> None:
        self.geometry = geometry
        self.bytes = bytearray(geometry.region_bytes)
        self.view = memoryview(self.bytes)
        self.starts = [geometry.slot_offset(slot) for slot in range(geometry.slots)]
        g = geometry
        self.rooms = Rooms(
            tuple(np.ndarray((layout.INPUT_OFFSET,), np.uint8, self.bytes, start) for start in self.starts),
            self.floats(layout.INPUT_OFFSET, (g.rows, *g.shape)),
            self.floats(g.scores_offset, (g.rows, g.classes)),
            self.floats(g.features_offset, (g.rows, g.features)),
        )
        self.client, self.server = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", 0, 200_000))

    def floats(self, offset: int, shape: tuple[int, ...]) -> tuple[Floats, ...]:
        return tuple(np.ndarray(shape, np.float32, self.bytes, start + offset) for start in self.starts)

    def some_input(self, rows: int = 1) -> Floats:
        values = np.random.default_rng(rows).uniform(-1, 1, (rows, *self.geometry.shape))
        return values.astype(np.float32)

    def write(self, slot: int, x: Floats, *, deadline_ns: int = 0, request_id: str = "") -> None:
        self.rooms.inputs[slot][: len(x)] = x
        header = RequestHeader(len(x), x.nbytes, deadline_ns, request_id)
        layout.write_request(self.view, self.starts[slot], header)

    def ring(self, slot: int, sequence: int = 1, kind: int = Kind.RING) -> None:
        self.client.send(HEAD.pack(kind, slot, sequence))

    def take(self, kind: Slots, least: float = -1.0, most: float = 1.0) -> Taken | bytes:
        return kind.take(self.server.fileno(), self.rooms, least, most)

    def answer(self, slot: int) -> AnswerHeader:
        return layout.read_answer(self.view, self.starts[slot] + layout.REQUEST_BYTES)

    def close(self) -> None:
        self.client.close()
        self.server.close()


@pytest.fixture
def memory() -> Iterator[Memory]:
    made = Memory(SMALL)
    yield made
    made.close()


@pytest.fixture(params=[SMALL, LARGE], ids=["small", "large"])
def any_memory(request: pytest.FixtureRequest) -> Iterator[Memory]:
    made = Memory(request.param)
    yield made
    made.close()


def test_it_is_compiled_where_a_compiler_is() -> None:
    """Fails when the extension does not build any more, which the optional extension would hide."""
    headers = Path(__import__("sysconfig").get_path("include")) / "Python.h"
    assert slots.COMPILED or not headers.exists() or shutil.which("gcc") is None


@pytest.mark.parametrize("kind", KINDS)
class TestTake:
    def test_a_request_in_order(self, kind: Slots, any_memory: Memory) -> None:
        last, rows = any_memory.geometry.slots - 1, any_memory.geometry.rows
        x = any_memory.some_input(rows)
        any_memory.write(last, x, deadline_ns=2**63 + 5, request_id="größe-7")
        any_memory.ring(last, 2**32 - 1)
        taken = any_memory.take(kind)
        assert isinstance(taken, tuple)
        assert taken[:4] == (last, 2**32 - 1, 2**63 + 5, "größe-7")
        assert taken[5] is True
        np.testing.assert_array_equal(taken[4], x)
        any_memory.rooms.inputs[last][:] = 9  # what the client writes now is too late
        np.testing.assert_array_equal(taken[4], x)
        assert taken[4].flags.owndata
        assert taken[4].flags.c_contiguous

    @pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1.5, -1.5])
    def test_one_bad_value_is_found_wherever_it_is(self, kind: Slots, any_memory: Memory, bad: float) -> None:
        x = any_memory.some_input(1)
        for index in (0, x.size // 2, x.size - 1):
            changed = x.copy()
            changed.flat[index] = bad
            any_memory.write(0, changed)
            any_memory.ring(0)
            taken = any_memory.take(kind)
            assert isinstance(taken, tuple)
            assert taken[5] is False
            np.testing.assert_array_equal(taken[4], changed)

    def test_rows_that_are_not_asked_for_do_not_count(self, kind: Slots, memory: Memory) -> None:
        memory.rooms.inputs[0][:] = np.nan
        memory.write(0, memory.some_input(2))
        memory.ring(0)
        taken = memory.take(kind)
        assert isinstance(taken, tuple)
        assert taken[4].shape == (2, 4, 5)
        assert taken[5] is True

    @pytest.mark.parametrize(
        "message",
        [
            pytest.param(HEAD.pack(Kind.RING, 2, 1), id="no such slot"),
            pytest.param(HEAD.pack(Kind.RING, 65535, 1), id="last slot of all"),
            pytest.param(HEAD.pack(Kind.DONE, 0, 1), id="another kind"),
            pytest.param(HEAD.pack(Kind.RING, 0, 1)[:7], id="short"),
            pytest.param(HEAD.pack(Kind.RING, 0, 1) + b"x", id="long"),
            pytest.param(b"x", id="a byte"),
            pytest.param(bytes(range(256)) * 4, id="longest"),
        ],
    )
    def test_other_messages_come_back_as_they_are(self, kind: Slots, memory: Memory, message: bytes) -> None:
        memory.write(0, memory.some_input())
        memory.client.send(message)
        assert memory.take(kind) == message

    def test_a_message_is_cut(self, kind: Slots, memory: Memory) -> None:
        memory.client.send(b"y" * 5000)
        assert memory.take(kind) == b"y" * layout.MESSAGE_BYTES

    @pytest.mark.parametrize(
        ("offset", "format_", "value"),
        [
            pytest.param(0, "<I", 0, id="no rows"),
            pytest.param(0, "<I", 4, id="a row too many"),
            pytest.param(0, "<I", 2**32 - 1, id="most rows of all"),
            pytest.param(4, "<I", 129, id="id too long"),
            pytest.param(4, "<I", 2**32 - 1, id="longest id of all"),
            pytest.param(8, "<Q", 79, id="bytes do not fit the rows"),
            pytest.param(8, "<Q", 2**64 - 1, id="most bytes of all"),
            pytest.param(32, "2s", b"\xff\xfe", id="id is not UTF-8"),
            pytest.param(32, "2s", b"a\0", id="id with a zero"),
        ],
    )
    def test_headers_that_lie_leave_the_message(
        self, kind: Slots, memory: Memory, offset: int, format_: str, value: Any
    ) -> None:
        memory.write(1, memory.some_input(), request_id="ab")
        struct.pack_into(format_, memory.bytes, memory.starts[1] + offset, value)
        before = bytes(memory.bytes)
        memory.ring(1, 3)
        assert memory.take(kind) == HEAD.pack(Kind.RING, 1, 3)
        assert bytes(memory.bytes) == before

    @given(data=st.data())
    def test_any_header_is_taken_as_the_codec_reads_it(self, kind: Slots, data: st.DataObject) -> None:
        memory = Memory(SMALL)
        near = st.sampled_from([0, 1, 2, 3, 4, 80, 160, 240, 128, 129])
        words = [data.draw(near | st.integers(0, 2**32 - 1)) for _ in range(2)]
        longs = [data.draw(near | st.integers(0, 2**64 - 1)) for _ in range(3)]
        raw = struct.pack("<IIQQQ", *words, *longs) + data.draw(st.binary(max_size=128))
        memory.bytes[memory.starts[0] : memory.starts[0] + len(raw)] = raw
        memory.ring(0)
        taken = memory.take(kind)
        memory.close()
        try:
            header = layout.read_request(memory.view, memory.starts[0])
        except Exception:
            assert isinstance(taken, bytes)
            return
        if 1 <= header.rows <= 3 and header.input_bytes == header.rows * 80:
            assert isinstance(taken, tuple)
            assert (len(taken[4]), taken[2], taken[3]) == (header.rows, header.deadline_ns, header.request_id)
        else:
            assert isinstance(taken, bytes)

    def test_nothing_came_a_hangup_and_a_broken_connection(self, kind: Slots, memory: Memory) -> None:
        with pytest.raises(BlockingIOError):
            memory.take(kind)
        memory.client.close()
        assert memory.take(kind) == b""
        with pytest.raises(OSError, match="Bad file descriptor"):
            kind.take(10**6, memory.rooms, 0.0, 1.0)

    def test_closed_memory(self, kind: Slots, memory: Memory) -> None:
        memory.ring(0)
        with pytest.raises(ValueError, match="no such slot"):
            kind.take(memory.server.fileno(), Rooms((), (), (), ()), 0.0, 1.0)


def give(kind: Slots, memory: Memory, slot: int = 1, **changes: Any) -> None:
    values: dict[str, Any] = {
        "scores": np.arange(12, dtype=np.float32).reshape(2, 6),
        "features": np.arange(14, dtype=np.float32).reshape(2, 7),
        "latency_us": 12.5,
        "rung": 3,
        "request_id": "größe-7",
        "release_id": "r-1",
        "variant": "int8-x86",
    } | changes
    kind.give(memory.server.fileno(), memory.rooms, slot, 2**32 - 1, *values.values())


@pytest.mark.parametrize("kind", KINDS)
class TestGive:
    def test_an_answer(self, kind: Slots, memory: Memory) -> None:
        memory.write(1, memory.some_input(2), request_id="before")
        memory.bytes[memory.starts[1] + 192 : memory.starts[1] + 192 + 288] = b"\xee" * 288
        before = bytes(memory.bytes)
        give(kind, memory)
        assert memory.client.recv(100) == HEAD.pack(Kind.DONE, 1, 2**32 - 1)
        assert memory.answer(1) == AnswerHeader(Status.OK, 2, 12.5, 3, "größe-7", "r-1", "int8-x86")
        np.testing.assert_array_equal(memory.rooms.scores[1][:2], np.arange(12).reshape(2, 6))
        np.testing.assert_array_equal(memory.rooms.features[1][:2], np.arange(14).reshape(2, 7))
        # Nothing else of the memory was touched.
        start = memory.starts[1]
        assert bytes(memory.bytes[: start + 192]) == before[: start + 192]
        inputs = slice(start + 192 + 288, start + SMALL.scores_offset)
        assert bytes(memory.bytes[inputs]) == before[inputs]
        assert not memory.rooms.scores[1][2].any()
        assert not memory.rooms.features[1][2].any()

    @pytest.mark.parametrize(
        ("request_id", "name", "kept_id", "kept_name"),
        [
            ("i" * 128, "n" * 63, "i" * 128, "n" * 63),
            ("i" * 200, "n" * 64, "i" * 128, "n" * 63),
            ("", "n" * 62 + "ü", "", "n" * 62),
            ("x", "n" * 61 + "ü", "x", "n" * 61 + "ü"),
            ("x", "n" * 60 + "€", "x", "n" * 60 + "€"),
            ("x", "n" * 61 + "€", "x", "n" * 61),
        ],
    )
    def test_text_is_cut_between_characters(
        self, kind: Slots, memory: Memory, request_id: str, name: str, kept_id: str, kept_name: str
    ) -> None:
        give(kind, memory, request_id=request_id, release_id=name, variant=name)
        answer = memory.answer(1)
        assert (answer.request_id, answer.release_id, answer.variant) == (kept_id, kept_name, kept_name)

    @pytest.mark.parametrize(
        "changes",
        [
            pytest.param({"scores": np.zeros((2, 5), np.float32)}, id="fewer classes"),
            pytest.param({"scores": np.zeros((2, 6))}, id="float64"),
            pytest.param({"features": np.zeros((1, 7), np.float32)}, id="other rows"),
            pytest.param({"features": np.zeros((2, 7, 1), np.float32)}, id="another rank"),
            pytest.param(
                {"scores": np.zeros((4, 6), np.float32), "features": np.zeros((4, 7), np.float32)}, id="too many rows"
            ),
            pytest.param({"slot": 2}, id="no such slot"),
            pytest.param({"slot": -1}, id="a slot before the first"),
        ],
    )
    def test_what_does_not_fit_is_not_sent(self, kind: Slots, memory: Memory, changes: dict[str, Any]) -> None:
        with pytest.raises(ValueError, match=r"fit|slot"):
            give(kind, memory, **changes)
        with pytest.raises(BlockingIOError):
            memory.client.recv(100, socket.MSG_DONTWAIT)
        assert not memory.answer(1).rows

    def test_a_client_that_does_not_read_is_not_waited_for(self, kind: Slots, memory: Memory) -> None:
        def many() -> None:
            for _ in range(100_000):
                give(kind, memory)

        with pytest.raises(BlockingIOError):
            many()

    def test_a_client_that_has_gone(self, kind: Slots, memory: Memory) -> None:
        memory.client.close()
        with pytest.raises(BrokenPipeError):
            give(kind, memory)


def answer_once(memory: Memory) -> threading.Thread:
    """A server for one request, whose answer is the first values of the input."""

    kind = PythonSlots()

    def run() -> None:
        memory.server.setblocking(True)
        memory.server.recv(1, socket.MSG_PEEK)
        taken = memory.take(kind)
        assert isinstance(taken, tuple)
        slot, sequence, _, request_id, x, _ = taken
        flat = x.reshape(len(x), -1)
        values = (np.ascontiguousarray(flat[:, :6]), np.ascontiguousarray(flat[:, 6:13]))
        kind.give(memory.server.fileno(), memory.rooms, slot, sequence, *values, 1.5, 2, request_id, "r", "fp32")

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return thread


@pytest.mark.parametrize("kind", KINDS)
class TestAsk:
    def ask(self, kind: Slots, memory: Memory, x: Floats | None, rows: int = 1, **changes: Any) -> Any:
        values: dict[str, Any] = {"slot": 1, "sequence": 2**32 - 1, "rows": rows, "deadline": 7, "id": "ä"} | changes
        arguments = (memory.client.fileno(), memory.rooms, *values.values(), x)
        return cast("Any", kind.ask)(*arguments)

    @pytest.mark.parametrize("rows", [1, 3])
    def test_a_request_and_its_answer(self, kind: Slots, memory: Memory, rows: int) -> None:
        x = memory.some_input(rows)
        server = answer_once(memory)
        scores, features, latency_us, rung, *texts = self.ask(kind, memory, x, rows)
        server.join(5)
        assert (latency_us, rung, texts) == (1.5, 2, ["ä", "r", "fp32"])
        np.testing.assert_array_equal(scores, x.reshape(rows, -1)[:, :6])
        np.testing.assert_array_equal(features, x.reshape(rows, -1)[:, 6:13])
        assert not scores.flags.writeable
        assert not features.flags.writeable
        memory.rooms.scores[1][:] = 9
        assert not (scores == 9).any()  # a copy

    def test_a_row_without_batch_one_in_place_and_one_with_gaps(self, kind: Slots, memory: Memory) -> None:
        x = memory.some_input()
        wide = np.repeat(x, 2, axis=2)[:, :, ::2]
        assert not wide.flags.c_contiguous
        memory.rooms.inputs[1][:1] = x
        for given_input in (x[0], None, wide):
            server = answer_once(memory)
            answer = self.ask(kind, memory, given_input)
            server.join(5)
            np.testing.assert_array_equal(answer[0], x.reshape(1, -1)[:, :6])

    @pytest.mark.parametrize(
        ("x", "changes"),
        [
            pytest.param(np.zeros((4, 4, 5), np.float32), {"rows": 4}, id="too many rows"),
            pytest.param(np.zeros((2, 4, 5), np.float32), {}, id="other rows"),
            pytest.param(np.zeros((1, 4, 5), np.float32), {"id": "i" * 129}, id="long id"),
            pytest.param(np.zeros((1, 4, 5), np.float32), {"slot": 2}, id="no such slot"),
        ],
    )
    def test_what_does_not_fit_is_not_sent(
        self, kind: Slots, memory: Memory, x: Floats, changes: dict[str, Any]
    ) -> None:
        before = bytes(memory.bytes)
        with pytest.raises(ValueError, match=r"fit|slot"):
            self.ask(kind, memory, x, **changes)
        with pytest.raises(BlockingIOError):
            memory.server.recv(100, socket.MSG_DONTWAIT)
        assert bytes(memory.bytes) == before

    @pytest.mark.parametrize(
        "message",
        [
            pytest.param(HEAD.pack(Kind.DONE, 0, 2**32 - 1), id="another slot"),
            pytest.param(HEAD.pack(Kind.DONE, 1, 5), id="another request"),
            pytest.param(HEAD.pack(Kind.REFUSED, 1, 2**32 - 1), id="another kind"),
            pytest.param(layout.encode_refused(Status.FAILED, "no"), id="refused"),
            pytest.param(b"z" * layout.MESSAGE_BYTES, id="longest"),
        ],
    )
    def test_other_messages_come_back_as_they_are(self, kind: Slots, memory: Memory, message: bytes) -> None:
        memory.server.send(message)
        assert self.ask(kind, memory, memory.some_input()) == message

    def test_an_answer_that_is_an_error_comes_back_as_its_bell(self, kind: Slots, memory: Memory) -> None:
        refusal = AnswerHeader(Status.DEADLINE, error="late")
        layout.write_answer(memory.view, memory.starts[1] + layout.REQUEST_BYTES, refusal)
        memory.server.send(HEAD.pack(Kind.DONE, 1, 2**32 - 1))
        assert self.ask(kind, memory, memory.some_input()) == HEAD.pack(Kind.DONE, 1, 2**32 - 1)
        assert memory.answer(1).error == "late"

    def test_a_server_that_lies_about_its_rows(self, kind: Slots, memory: Memory) -> None:
        layout.write_answer(memory.view, memory.starts[1] + layout.REQUEST_BYTES, AnswerHeader(Status.OK, rows=4))
        memory.server.send(HEAD.pack(Kind.DONE, 1, 2**32 - 1))
        with pytest.raises(ValueError, match="rows"):
            self.ask(kind, memory, memory.some_input())

    def test_no_answer_in_time_a_hangup_and_a_server_that_has_gone(self, kind: Slots, memory: Memory) -> None:
        with pytest.raises(BlockingIOError):
            self.ask(kind, memory, memory.some_input())
        memory.server.shutdown(socket.SHUT_WR)
        assert self.ask(kind, memory, memory.some_input()) == b""
        memory.server.close()
        with pytest.raises(ConnectionError):
            self.ask(kind, memory, memory.some_input())

    def test_a_signal_is_looked_at_while_it_waits(self, kind: Slots, memory: Memory) -> None:
        """A handler that raises ends the wait; one that returns does not."""
        seen: list[int] = []
        main = threading.main_thread().native_id

        def handler(number: int, _: object) -> None:
            seen.append(number)
            if len(seen) > 1:
                raise KeyboardInterrupt

        def interrupt() -> None:
            memory.server.setblocking(True)
            for _ in range(2):
                memory.server.recv(1)
                until = time.monotonic() + 10
                while _state(main) != "S" and time.monotonic() < until:  # it is on its way into recv(2)
                    pass
                signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR1)

        memory.client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", 1, 0))
        before = signal.signal(signal.SIGUSR1, handler)
        try:
            thread = threading.Thread(target=interrupt, daemon=True)
            thread.start()
            with pytest.raises(BlockingIOError):
                self.ask(kind, memory, memory.some_input())
            memory.client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", 5, 0))
            with pytest.raises(KeyboardInterrupt):
                self.ask(kind, memory, memory.some_input())
            thread.join(5)
        finally:
            signal.signal(signal.SIGUSR1, before)
        assert len(seen) == 2


def _state(thread: int | None) -> str:
    """Of a thread of this process, as proc(5) names it."""
    return Path(f"/proc/self/task/{thread}/stat").read_text().rsplit(")", 1)[1].split()[0]
