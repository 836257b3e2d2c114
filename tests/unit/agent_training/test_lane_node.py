"""The node on the lane against a SuperLink that misbehaves: nothing is lost, and it goes when told."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from skerry_agent.training.lane_client import BlobMissingError, LaneClient, Message, fetch
from skerry_agent.training.lane_node import LaneNode
from skerry_agent.training.node import TrainingNode
from skerry_agent.training.node_hint import NodeHint
from skerry_agent.training.node_link import LaneAbsentError, LinkError, NotRegisteredError, RunEndedError
from skerry_agent.training.server_clock import ServerClock
from skerry_agent.training.worker import RefusedError
from skerry_contract import lane
from skerry_contract.campaign import INLINE_BYTES, Scalar
from skerry_contract.errors import WireError

KEY = ec.generate_private_key(ec.SECP384R1())
LARGE = b"x" * (INLINE_BYTES + 1)


def no_tls() -> Any:
    raise AssertionError("nothing is connected here")


def message(number: int, left_s: float = 60.0, **fields: Scalar) -> Message:
    frame, _ = lane.pack_fields(fields)
    return Message(f"m{number}", "1", "train", left_s, frame)


class Link:
    """A SuperLink: what happens at each request of a kind, and what was asked. An exception happens instead."""

    def __init__(self, stop: threading.Event, **scripts: list[Any]) -> None:
        self.stop = stop
        self.scripts = scripts
        self.asked: list[tuple[Any, ...]] = []

    def happen(self, kind: str, *details: Any) -> Any:
        self.asked.append((kind, *details))
        script = self.scripts.get(kind, [])
        step = script.pop(0) if script else None
        if isinstance(step, Exception):
            raise step
        return step


class FakeClient(LaneClient):
    """Talks to :class:`Link`."""

    def __init__(self, link: Link) -> None:
        super().__init__("nowhere:1", KEY, tls=no_tls, clock=ServerClock())
        self._link = link

    def attach(self) -> int:
        self._link.happen("attach")
        self.node_id = 7
        return 7

    def exchange(self, *, wait_s: float, message_id: str = "", answer: bytes = b"") -> tuple[bool, Message | None]:
        if wait_s < 0:
            self._link.asked.append(("alive",))
            return False, None
        left = lane.unpack(answer) if message_id else None
        told = self._link.happen("exchange", message_id, left[0] if left else None)
        if told is None and not self._link.scripts.get("exchange"):
            self._link.stop.set()
        return bool(message_id), told

    def put_blob(self, sha256: str, data: bytes, *, message_id: str) -> None:
        self._link.happen("put", sha256, message_id)

    def detach(self) -> None:
        self._link.happen("detach")


class Node(LaneNode):
    """Its client is the fake."""

    link: Link

    def _client(self) -> LaneClient:
        return FakeClient(self.link)


class Doubles:
    """A worker."""

    def handle(self, kind: str, fields: Mapping[str, object]) -> Mapping[str, Scalar]:
        if fields.get("do") == "refuse":
            raise RefusedError("not today", final=False)
        if fields.get("do") == "break":
            raise ZeroDivisionError("a defect")
        if fields.get("do") == "large":
            return {"parameters": LARGE}
        return {"twice": int(str(fields["x"])) * 2}


def serve(**scripts: list[Any]) -> tuple[list[tuple[Any, ...]], list[tuple[int, str]]]:
    """Run a node until the script of exchanges is over; what the SuperLink saw, and what the node said."""
    stop = threading.Event()
    heard: list[tuple[int, str]] = []
    node = Node(
        "nowhere:1", KEY, Doubles(), tls=no_tls, on_link=lambda node_id, detail: heard.append((node_id, detail))
    )
    node.link = Link(stop, **scripts)
    thread = threading.Thread(target=node.run, args=(stop,))
    thread.start()
    thread.join(20)
    assert not thread.is_alive()
    return node.link.asked, heard


def test_the_answer_travels_with_the_question_for_the_next_instruction() -> None:
    asked, heard = serve(exchange=[message(1, x=2), message(2, x=5), None])
    assert asked == [
        ("attach",),
        ("exchange", "", None),
        ("exchange", "m1", {"fields": {"twice": 4}}),
        ("exchange", "m2", {"fields": {"twice": 10}}),
        ("detach",),
    ]
    assert (heard[0], heard[-1]) == ((7, ""), (0, ""))


def test_an_answer_is_left_again_until_the_superlink_has_it() -> None:
    asked, heard = serve(exchange=[message(1, x=2), LinkError("reset"), LinkError("HTTP 502"), None])
    answers = [entry for entry in asked if entry[0] == "exchange" and entry[1]]
    assert answers == [("exchange", "m1", {"fields": {"twice": 4}})] * 3
    assert (7, "SuperLink nowhere:1 does not answer") in heard


def test_an_answer_that_comes_too_late_is_given_up() -> None:
    asked, _ = serve(exchange=[message(1, left_s=-1.0, x=2), None])
    assert [entry[1] for entry in asked if entry[0] == "exchange"] == ["", ""]


def test_parameters_are_put_before_the_answer_that_names_them_and_again_when_they_are_lost() -> None:
    asked, _ = serve(exchange=[message(1, do="large"), BlobMissingError("gone"), None])
    sha256 = hashlib.sha256(LARGE).hexdigest()
    named = {"fields": {"parameters": {"sha256": sha256, "size": len(LARGE)}}}
    assert asked[2:-1] == [("put", sha256, "m1"), ("exchange", "m1", named)] * 2


def test_an_answer_that_nobody_wants_any_more_is_dropped() -> None:
    asked, _ = serve(exchange=[message(1, do="large"), None], put=[RunEndedError("410")])
    assert [entry[0] for entry in asked] == ["attach", "exchange", "put", "exchange", "detach"]
    assert asked[3] == ("exchange", "", None)


@pytest.mark.parametrize(
    ("do", "error"),
    [
        ("refuse", {"reason": "not today", "refused": False}),
        ("break", {"reason": "ZeroDivisionError: a defect", "refused": False}),
    ],
)
def test_whatever_goes_wrong_is_an_answer_with_its_reason(do: str, error: dict[str, object]) -> None:
    asked, _ = serve(exchange=[message(1, do=do), None])
    assert asked[2] == ("exchange", "m1", {"error": error})


def test_a_frame_that_is_none_is_refused_for_good() -> None:
    asked, _ = serve(exchange=[Message("m1", "1", "train", 60.0, b"garbage"), None])
    assert asked[2][2]["error"]["refused"] is True


def test_a_key_that_is_not_admitted_yet_is_tried_again_and_what_was_done_is_not_lost() -> None:
    asked, heard = serve(
        attach=[NotRegisteredError("401"), LinkError("refused"), None, None],
        exchange=[message(1, x=1), NotRegisteredError("revoked, or its state is lost"), None, None],
    )
    kinds = [entry[0] for entry in asked]
    assert kinds[:3] == ["attach"] * 3
    assert [entry for entry in asked if entry[1:2] == ("m1",)][-1] == ("exchange", "m1", {"fields": {"twice": 2}})
    details = [detail for _, detail in heard]
    assert any("does not admit" in detail for detail in details)
    assert any("is away" in detail for detail in details)


def test_a_node_that_works_says_that_it_is_alive() -> None:
    stop, alive = threading.Event(), threading.Event()

    class Watched(Link):
        def __init__(self) -> None:
            super().__init__(stop, exchange=[message(1), None])
            self.asked = Noticing()

    class Noticing(list[tuple[Any, ...]]):
        def append(self, entry: tuple[Any, ...]) -> None:
            super().append(entry)
            if entry == ("alive",):
                alive.set()

    class Works:
        def handle(self, kind: str, fields: Mapping[str, object]) -> Mapping[str, Scalar]:
            assert alive.wait(10), "it never said so"
            return {}

    node = Node("nowhere:1", KEY, Works(), tls=no_tls, alive_s=0.0, watch_s=0.01)
    node.link = Watched()
    node.run(stop)
    assert alive.is_set()


def test_a_superlink_without_a_lane_says_so_and_nothing_is_left_behind(tmp_path: Path) -> None:
    node = Node("nowhere:1", KEY, Doubles(), tls=no_tls)
    node.link = Link(threading.Event(), attach=[LaneAbsentError("404")])
    with pytest.raises(LaneAbsentError):
        node.run(threading.Event())
    assert node.link.asked == [("attach",)]
    stopped = threading.Event()
    stopped.set()
    TrainingNode("nowhere:1", KEY, NodeHint(tmp_path / "hint"), Doubles(), tls=no_tls).run(stopped)  # joins nothing


class Pieces(FakeClient):
    """Gives a blob as told: how many bytes at each attempt, or an error."""

    def __init__(self, data: bytes, attempts: list[int | Exception]) -> None:
        super().__init__(Link(threading.Event()))
        self._data, self._attempts = data, attempts
        self.starts: list[int] = []

    def get_blob(self, sha256: str, size: int, *, take: Callable[[memoryview], object], start: int = 0) -> int:
        self.starts.append(start)
        step = self._attempts.pop(0)
        if isinstance(step, Exception):
            raise step
        take(memoryview(self._data)[start : start + step])
        return start + step


def test_a_blob_is_fetched_on_where_the_connection_broke() -> None:
    client = Pieces(b"0123456789", [4, LinkError("reset"), 6])
    assert fetch(client, hashlib.sha256(b"0123456789").hexdigest(), 10) == b"0123456789"
    assert client.starts == [0, 4, 4]


@pytest.mark.parametrize(
    ("attempts", "error", "match"),
    [
        ([LinkError("404")] * 5, LinkError, "404"),
        ([1] * 5, LinkError, "broke off at 5 of 10"),
        ([10], WireError, "another content"),
    ],
)
def test_a_blob_that_cannot_be_had_or_is_another_is_an_error(
    attempts: list[int | Exception], error: type[Exception], match: str
) -> None:
    with pytest.raises(error, match=match):
        fetch(Pieces(b"0123456789", list(attempts)), "a" * 64, 10)


class Answer:
    """A response of so many bytes."""

    headers: Mapping[str, str] = {}

    def __init__(self, status: int) -> None:
        self.status = status

    def read(self, most: int = 0) -> bytes:
        return lane.pack({}) if self.status == 200 else b"no"


class Signing(LaneClient):
    """Notes when each request was signed; the SuperLink answers as told."""

    def __init__(self, clock: ServerClock, statuses: list[int]) -> None:
        super().__init__("nowhere:1", KEY, tls=no_tls, clock=clock)
        self._statuses = statuses
        self.signed: list[tuple[str, str]] = []

    def _send(self, method: str, path: str, body: bytes, headers: Mapping[str, str], wait_s: float) -> Any:
        self.signed.append((headers[lane.TIME_HEADER], headers[lane.SIGNATURE_HEADER]))
        return Answer(self._statuses.pop(0))


def test_a_signed_time_serves_for_a_second_and_never_again_once_it_was_refused() -> None:
    now = [1_700_000_000.0]
    client = Signing(ServerClock(wall=lambda: now[0]), [200, 200, 200, 401, 200])
    for later in (0.0, 0.9, 0.2, 0.0):
        now[0] += later
        if client._statuses[0] == 401:
            with pytest.raises(NotRegisteredError):
                client.exchange(wait_s=0.0)
        else:
            client.exchange(wait_s=0.0)
    client.exchange(wait_s=0.0)
    first, second, third, refused, after = client.signed
    assert first == second != third == refused
    assert after[0] == refused[0], "the same moment"
    assert after[1] != refused[1], "signed anew: ECDSA draws a number for each"
