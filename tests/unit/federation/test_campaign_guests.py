"""Nodes that are no devices take part in a campaign under the names of their keys, and are remembered."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

from skerry_server.federation.campaign_job import _with_guests
from skerry_server.federation.exchange import Broadcast, Exchange, Reply


class Nodes:
    """An exchange of which only the nodes matter."""

    def __init__(self) -> None:
        self.connected: dict[str, int] = {"guest-a": 11}

    def nodes(self) -> set[int]:
        return {1, *self.connected.values()}

    def guests(self) -> Mapping[str, int]:
        return dict(self.connected)

    def send(self, broadcast: Broadcast, node_ids: Collection[int]) -> dict[int, str]:
        return {}

    def receive(self, message_ids: Iterable[str]) -> list[Reply]:
        return []


class Deaf:
    """An exchange that knows no guests."""

    def nodes(self) -> set[int]:
        return {1}

    def send(self, broadcast: Broadcast, node_ids: Collection[int]) -> dict[int, str]:
        return {}

    def receive(self, message_ids: Iterable[str]) -> list[Reply]:
        return []


def devices() -> dict[str, int | None]:
    return {"device-1": 1, "device-2": None}


def test_guests_join_the_devices_and_keep_their_place_when_they_go() -> None:
    exchange, guests = Nodes(), dict[str, int]()
    resolve = _with_guests(devices, exchange, guests)
    assert guests == {"guest-a": 11}  # known before the first round chooses
    assert resolve() == {"device-1": 1, "device-2": None, "guest-a": 11}
    exchange.connected = {"guest-b": 12}
    assert resolve() == {"device-1": 1, "device-2": None, "guest-a": None, "guest-b": 12}
    assert list(guests) == ["guest-a", "guest-b"]  # the next round asks both
    exchange.connected = {"guest-a": 13, "guest-b": 12}
    assert resolve()["guest-a"] == 13  # it came back as another node


def test_the_guests_of_a_run_that_was_lost_are_known_to_the_next_one() -> None:
    guests = {"guest-a": 11}
    exchange = Nodes()
    exchange.connected = {}
    assert _with_guests(devices, exchange, guests)()["guest-a"] is None


def test_a_campaign_without_an_app_for_guests_asks_devices_only() -> None:
    exchange: Exchange = Nodes()
    assert _with_guests(devices, exchange, None)() == devices()
    assert _with_guests(devices, Deaf(), {})() == devices()
