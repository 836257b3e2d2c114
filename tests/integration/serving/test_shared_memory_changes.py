"""The shared-memory door when the release changes under its clients, the server restarts, or lies."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from integration.engine.tiny_bundle import TinyRelease, some_input
from integration.serving.doors_rig import RELEASE, Doors, open_doors
from skerry_agent.client import (
    BusyError,
    DisconnectedError,
    FailedError,
    RefusedRequestError,
    SharedMemoryClient,
    UnfitInputError,
)
from skerry_agent.engine.backend import Port
from skerry_agent.engine.errors import BackendError, OverloadedError
from skerry_agent.engine.model import ModelSpec
from skerry_agent.engine.prediction import Prediction
from skerry_agent.errors import AgentError, InputError
from skerry_agent.serving import shared_memory_layout as layout
from skerry_agent.serving.core import ServingCore
from skerry_agent.serving.shared_memory_door import SharedMemoryDoor


def spec_of(release_id: str, shape: tuple[int, ...], classes: tuple[str, ...]) -> ModelSpec:
    return ModelSpec(
        release_id=release_id,
        task="fake",
        input=Port("input", shape),
        minimum=-1.0,
        maximum=1.0,
        scores=Port("scores", (len(classes),)),
        features=Port("features", (1,)),
        classes=classes,
        maximum_batch=64,
    )


SMALL = spec_of("r1", (2, 3), ("a", "b"))
SAME = spec_of("r2", (2, 3), ("a", "b"))
BIGGER = spec_of("r3", (50, 40), ("a", "b", "c"))


class FakeCore:
    """Answers with the sums of the rows; another release can take over before or in the middle of a request."""

    def __init__(self) -> None:
        self.spec: ModelSpec | None = SMALL
        self.answering: ModelSpec | None = None
        self.error: Exception | None = None
        self.refused: list[InputError] = []

    def status(self) -> Any:
        return type("Status", (), {"detail": "nothing here"})()

    def refuse(self, error: InputError) -> None:
        self.refused.append(error)

    def predict(
        self, x: Any, request_id: str, deadline_us: float | None, checked: ModelSpec | None = None
    ) -> Prediction:
        if self.error is not None:
            raise self.error
        spec = self.answering or self.spec
        assert spec is not None
        sums = x.reshape(len(x), -1).sum(axis=1, keepdims=True)
        scores = np.repeat(sums, len(spec.classes), axis=1).astype(np.float32)
        return Prediction(scores, sums, spec.classes, spec.release_id, request_id, 1.0, "fp32")


@pytest.fixture
def core() -> FakeCore:
    return FakeCore()


@pytest.fixture
def client(core: FakeCore, tmp_path: Path) -> Iterator[SharedMemoryClient]:
    door = SharedMemoryDoor(cast(ServingCore, core), tmp_path / "door" / "shared-memory.sock")
    door.start()
    with SharedMemoryClient.connect(tmp_path, slots=2) as connected:
        yield connected
    door.stop()


def ones(spec: ModelSpec) -> Any:
    return np.ones((1, *spec.input.shape), dtype=np.float32)


def test_a_release_of_the_same_form_goes_on_in_the_same_memory(core: FakeCore, client: SharedMemoryClient) -> None:
    ticket = client.submit(ones(SMALL))
    assert client.receive(ticket).release_id == "r1"
    core.spec = SAME
    assert client.receive(client.submit(ones(SMALL))).release_id == "r2"


def test_a_bigger_input_gets_bigger_memory(core: FakeCore, client: SharedMemoryClient) -> None:
    client.infer(ones(SMALL))
    core.spec = BIGGER
    answer = client.infer(ones(BIGGER))
    assert (answer.release_id, answer.classes) == ("r3", ("a", "b", "c"))
    np.testing.assert_array_equal(answer.scores, [[2000, 2000, 2000]])
    assert client.model.shape == (50, 40)


def test_a_request_in_the_old_form_is_refused_in_terms_of_the_new_one(
    core: FakeCore, client: SharedMemoryClient
) -> None:
    core.spec = BIGGER
    with pytest.raises(UnfitInputError, match=r"expected shape \[1..1, 50, 40\], got \[1, 2, 3\]"):
        client.infer(ones(SMALL))
    client.infer(ones(BIGGER))


def test_a_release_that_takes_over_in_the_middle_of_a_request(core: FakeCore, client: SharedMemoryClient) -> None:
    core.answering = BIGGER
    ticket = client.submit(ones(SMALL))
    with pytest.raises(AgentError, match="r3"):
        client.receive(ticket)
    core.answering = None
    assert client.infer(ones(SMALL)).release_id == "r1"


def test_requests_under_way_are_received_before_the_memory_changes(core: FakeCore, client: SharedMemoryClient) -> None:
    ticket = client.submit(ones(SMALL))
    answered = client.receive(client.submit(ones(SMALL)))
    assert answered.release_id == "r1"
    core.spec = BIGGER
    with pytest.raises(BusyError, match="receive the requests"):
        client.infer(ones(BIGGER))
    assert client.receive(ticket).release_id == "r1"
    assert client.infer(ones(BIGGER)).release_id == "r3"
    with pytest.raises(DisconnectedError):
        client.receive(ticket)


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (BackendError("fake", "run", "broken"), FailedError),
        (OverloadedError(9, 8), BusyError),
        (InputError("input", expected="this", got="that"), RefusedRequestError),
        (RuntimeError("a bug"), FailedError),
    ],
)
def test_every_error_is_told(
    core: FakeCore, client: SharedMemoryClient, error: Exception, kind: type[Exception]
) -> None:
    core.error = error
    with pytest.raises(kind):
        client.infer(ones(SMALL))
    core.error = None
    assert client.infer(ones(SMALL)).release_id == "r1"


def test_a_restart_is_one_clear_error_and_then_a_new_connection(tmp_path: Path) -> None:
    with contextlib.ExitStack() as stack:
        first = stack.enter_context(contextlib.ExitStack())
        first.enter_context(open_doors(tmp_path))
        client = stack.enter_context(SharedMemoryClient.connect(tmp_path))
        client.infer(some_input())
        first.close()
        for _ in range(2):
            with pytest.raises(DisconnectedError, match=r"went away|no serving process answers"):
                client.infer(some_input())
        stack.enter_context(open_doors(tmp_path, TinyRelease(variants={"fp32": 0.0}, release_id="release-two")))
        answer = client.infer(some_input())
        assert answer.release_id == "release-two"
        np.testing.assert_allclose(answer.scores, RELEASE.compute(some_input())[0], atol=1e-5)
    with pytest.raises(DisconnectedError, match="closed"):
        client.infer(some_input())


def welcome_of(rows: int = 1) -> bytes:
    geometry = layout.Geometry(1, rows, (2, 3), 2, 1, 4)
    return layout.encode_welcome(layout.Welcome(geometry, -1, 1, "t", "r", "input"))


def send_with_memory(connection: socket.socket, data: bytes, size: int) -> None:
    descriptor = os.memfd_create("lie")
    os.ftruncate(descriptor, size)
    socket.send_fds(connection, [data], [descriptor])
    os.close(descriptor)


LIES: dict[str, Callable[[socket.socket], object]] = {
    "hangs up": lambda c: None,
    "noise": lambda c: c.send(b"x" * 30),
    "no memory": lambda c: c.send(welcome_of()),
    "memory too small": lambda c: send_with_memory(c, welcome_of(), 100),
    "another layout": lambda c: send_with_memory(c, welcome_of()[:48] + b"\1" + welcome_of()[49:], 1 << 20),
    "another version": lambda c: send_with_memory(c, welcome_of().replace(b"SKRY\1", b"SKRY\2"), 1 << 20),
    "a refusal that is none": lambda c: c.send(layout.HEAD.pack(layout.Kind.REFUSED, 0, 0)),
}


@pytest.mark.parametrize("name", sorted(LIES))
def test_a_server_that_lies(tmp_path: Path, name: str) -> None:
    path = tmp_path / "door" / "shared-memory.sock"
    path.parent.mkdir()
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listener.bind(str(path))
    listener.listen()

    def lie() -> None:
        connection, _ = listener.accept()
        with connection:
            connection.recv(100)
            LIES[name](connection)

    thread = threading.Thread(target=lie)
    thread.start()
    before = len(list(Path("/proc/self/fd").iterdir()))
    with pytest.raises(DisconnectedError):
        SharedMemoryClient.connect(tmp_path)
    thread.join(20)
    listener.close()
    assert len(list(Path("/proc/self/fd").iterdir())) <= before


def test_an_answer_that_does_not_come(tmp_path: Path) -> None:
    path = tmp_path / "door" / "shared-memory.sock"
    path.parent.mkdir()
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listener.bind(str(path))
    listener.listen()
    with listener, pytest.raises(DisconnectedError, match=r"no answer within 0.1 s"):
        SharedMemoryClient.connect(tmp_path, timeout=0.1)


def test_swaps_under_load(tmp_path: Path) -> None:
    """Releases take over while a client asks: every answer is right for the release that it names."""
    releases = {
        name: TinyRelease(variants={"fp32": 0.0}, release_id=name, sequence=n, seed=n, task=f"tiny{n // 3}")
        for n, name in enumerate(("r1", "r2", "r3", "r4", "r5"), 1)
    }
    with open_doors(tmp_path, releases["r1"]) as doors, SharedMemoryClient.connect(tmp_path) as client:
        swapper = threading.Thread(target=swap_all, args=(doors, list(releases.values())))
        swapper.start()
        seen = set()
        x = some_input()
        while swapper.is_alive():
            answer = client.infer(x)
            np.testing.assert_allclose(answer.scores, releases[answer.release_id].compute(x)[0], atol=1e-5)
            seen.add(answer.release_id)
        swapper.join()
        assert client.infer(x).release_id == "r5"
        assert len(seen) > 1
        assert doors.engine.status().counters.errors == 0


def swap_all(doors: Doors, releases: list[TinyRelease]) -> None:
    for release in releases:
        doors.activate(release, "b" if doors.engine.status().slot == "a" else "a")
