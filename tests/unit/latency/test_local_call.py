"""Questions between processes: whole, in pieces, too long, unanswered."""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from skerry_agent.errors import ArtifactError, DeviceError
from skerry_agent.local_call import MESSAGE_BYTES, LocalCall, LocalCallError
from skerry_agent.serving.admin import AdminDoor, ServingAdmin
from skerry_contract.v1.agent_local_pb2 import ActivateRequest, ServingStatus, ServingStatusRequest
from skerry_contract.v1.serving_admin_pb2 import AdminReply, AdminRequest

Wait = Callable[..., None]


class Engine:
    """Activates, or raises what it is told to."""

    def __init__(self) -> None:
        self.raises: Exception | None = None
        self.activated: list[tuple[str, str]] = []

    def activate(self, slot: str, *, release_id: str = "") -> None:
        if self.raises is not None:
            raise self.raises
        self.activated.append((slot, release_id))


@pytest.fixture
def engine() -> Engine:
    return Engine()


@pytest.fixture
def path(tmp_path: Path, engine: Engine) -> Iterator[Path]:
    socket_path = tmp_path / "s.sock"
    door = AdminDoor(ServingAdmin(engine, lambda: ServingStatus(release_id="r1")).answer, socket_path)
    door.start()
    yield socket_path
    door.stop()
    assert not socket_path.exists()


def ask(path: Path, request: bytes, wait_until: Wait) -> AdminReply:
    with closing(LocalCall(path, request, timeout_s=20.0)) as call:
        answers: list[bytes] = []

        def answered() -> bool:
            data = call.poll()
            if data is not None:
                answers.append(data)
            return data is not None

        wait_until(answered, what="the answer")
    return AdminReply.FromString(answers[0])


def activate(slot: str) -> bytes:
    return AdminRequest(activate=ActivateRequest(slot=slot, release_id="r1")).SerializeToString()


def test_status_and_activation(path: Path, engine: Engine, wait_until: Wait) -> None:
    reply = ask(path, AdminRequest(status=ServingStatusRequest()).SerializeToString(), wait_until)
    assert (reply.code, reply.status.release_id, engine.activated) == (AdminReply.CODE_OK, "r1", [])
    assert ask(path, activate("b"), wait_until).code == AdminReply.CODE_OK
    assert engine.activated == [("b", "r1")]
    assert path.stat().st_mode & 0o777 == 0o600


def test_what_loading_left_behind_is_cleared_up_once_an_activation(engine: Engine) -> None:
    cleared: list[int] = []
    admin = ServingAdmin(engine, lambda: ServingStatus(), clear_up=lambda: cleared.append(len(engine.activated)))
    admin.answer(AdminRequest(status=ServingStatusRequest()).SerializeToString())
    admin.answer(activate("z"))
    assert cleared == []
    admin.answer(activate("a"))
    assert cleared == [1]  # after the release answers
    engine.raises = ArtifactError("r1", "golden")
    admin.answer(activate("b"))
    assert cleared == [1, 1]


@pytest.mark.parametrize(
    ("request_bytes", "raises", "code", "says"),
    [
        (activate("z"), None, AdminReply.CODE_INVALID_ARGUMENT, "slot: expected a or b"),
        (b"\xff\xff", None, AdminReply.CODE_INVALID_ARGUMENT, "AdminRequest: expected a protobuf message"),
        (b"", None, AdminReply.CODE_INVALID_ARGUMENT, "body: expected activate or status"),
        (b"\x0a" * 5000, None, AdminReply.CODE_INVALID_ARGUMENT, "at most 4096 bytes"),
        (activate("a"), ArtifactError("r1", "golden"), AdminReply.CODE_FAILED_PRECONDITION, "golden"),
        (activate("a"), DeviceError("closed", remedy="open"), AdminReply.CODE_UNAVAILABLE, "closed"),
        (activate("a"), RuntimeError("surprise"), AdminReply.CODE_UNAVAILABLE, "RuntimeError: surprise"),
    ],
)
def test_refusals(
    path: Path,
    engine: Engine,
    wait_until: Wait,
    request_bytes: bytes,
    raises: Exception | None,
    code: int,
    says: str,
) -> None:
    engine.raises = raises
    reply = ask(path, request_bytes, wait_until)
    assert reply.code == code
    assert says in reply.detail
    assert engine.activated == []
    engine.raises = None
    assert ask(path, activate("a"), wait_until).code == AdminReply.CODE_OK


@pytest.mark.parametrize("garbage", [b"", b"\x00\x00", struct.pack(">I", MESSAGE_BYTES + 1), b"\x00\x00\x00\x09ab"])
def test_garbage_and_silence_cost_nobody_else_anything(path: Path, wait_until: Wait, garbage: bytes) -> None:
    with closing(socket.socket(socket.AF_UNIX)) as raw:
        raw.connect(str(path))
        raw.sendall(garbage)
        raw.shutdown(socket.SHUT_WR)
        raw.settimeout(20.0)
        assert raw.recv(1) == b""
    assert ask(path, activate("a"), wait_until).code == AdminReply.CODE_OK


def test_nobody_answers(tmp_path: Path) -> None:
    with (
        closing(LocalCall(tmp_path / "none.sock", b"", timeout_s=1.0)) as call,
        pytest.raises(LocalCallError, match="No"),
    ):
        call.poll()


def test_an_answer_that_is_late_torn_or_too_long(tmp_path: Path) -> None:
    path, now = tmp_path / "s.sock", [0.0]
    with closing(socket.socket(socket.AF_UNIX)) as listener:
        listener.bind(str(path))
        listener.listen(4)
        late = LocalCall(path, b"q", timeout_s=5.0, monotonic=lambda: now[0])
        assert late.poll() is None
        now[0] = 5.1
        with pytest.raises(LocalCallError, match="no answer in time"):
            late.poll()
        late.close()
        listener.accept()[0].close()
        for reply, says in ((b"\x00\x00\x00\x05ab", "closed before"), (struct.pack(">I", 1 << 30), "1073741824 bytes")):
            with closing(LocalCall(path, b"question", timeout_s=60.0)) as call:
                assert call.poll() is None
                with closing(listener.accept()[0]) as peer:
                    assert peer.recv(100) == b"\x00\x00\x00\x08question"
                    peer.sendall(reply)
                with pytest.raises(LocalCallError, match=says):
                    call.poll()


def test_an_answer_in_pieces_larger_than_the_buffers(tmp_path: Path, wait_until: Wait) -> None:
    path, big = tmp_path / "s.sock", bytes(200_000)

    def echo(data: bytes) -> bytes:
        return data

    door = AdminDoor(echo, path)
    door.start()
    try:
        with closing(LocalCall(path, big, timeout_s=20.0)) as call:
            wait_until(lambda: call.poll() == big, what="the echo")
        assert threading.active_count() < 20
    finally:
        door.stop()
