"""A gateway's answers: what it tells, what it refuses, and what survives which fault."""

from __future__ import annotations

import tracemalloc
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from skerry_agent.training.worker import RefusedError
from skerry_contract.campaign import TrainReply
from skerry_contract.counted import counted_round, encode_counted
from skerry_contract.site import split_members
from skerry_contract.tensors import decode_bundle, encode_bundle
from skerry_gateway.roster import RosterFile
from skerry_gateway.site_journal import SiteJournal
from skerry_server.federation.exchange import Reply
from unit.federation.fakes import Clock, FakeDevice
from unit.gateway.site_world import CAMPAIGN, MODEL, KilledError, Site, SiteExchange, document, evaluate


def four(faults: dict[str, str] | None = None, **changes: object) -> list[FakeDevice]:
    made = [
        FakeDevice("a", 1, adds=1.0, examples=10, delay_s=0.1),
        FakeDevice("b", 2, adds=2.0, examples=30, delay_s=0.2),
        FakeDevice("c", 3, adds=4.0, examples=20, delay_s=0.3),
        FakeDevice("d", 4, adds=8.0, examples=40, delay_s=0.4),
    ]
    for device in made:
        device.faults = deque((faults or {}).get(device.name, "").split())
    return made


def site(tmp_path: Path, devices: list[FakeDevice], **changes: float) -> Site:
    return Site(tmp_path / "site", devices, Clock(), **changes)


def shift(reply: TrainReply) -> float:
    """How far the answer is from the model."""
    return float(decode_bundle(reply.parameters)["w"][0] - MODEL["w"][0])


def test_the_answer_is_the_weighted_mean_with_the_sums(tmp_path: Path) -> None:
    reply = (made := site(tmp_path, four())).train(made.gateway())
    # (10 * 1 + 30 * 2 + 20 * 4 + 40 * 8) / 100
    assert shift(reply) == pytest.approx(4.7)
    assert (reply.device_id, reply.examples, reply.steps, split_members(reply.members)) == (
        "gw",
        100,
        12,
        ("a", "b", "c", "d"),
    )
    assert (reply.loss, reply.validation_examples, reply.validation_accuracy) == pytest.approx((0.5, 20, 0.5))
    assert [(figures.round, figures.asked, figures.counted) for figures in made.rounds] == [(1, 4, 4)]
    assert made.journalled() == []  # nothing of a single device is left


def test_evaluation_weighs_by_validation_examples(tmp_path: Path) -> None:
    devices = four()
    for device, accuracy in zip(devices, (0.1, 0.2, 0.3, 0.8), strict=True):
        device.accuracy = accuracy
    made = site(tmp_path, devices)
    reply = evaluate(made.gateway(), last=1)
    assert (reply.device_id, reply.examples) == ("gw", 20)
    assert (reply.accuracy, reply.loss) == pytest.approx((0.35, 0.3))


@dataclass(frozen=True)
class Story:
    """A fault and what becomes of the round.

    Attributes:
        faults: Device to its faults.
        away: Devices that are not connected.
        counted: Devices in the answer; empty: it is refused.
        reason: Of the refusal.
        quorum: Share.
    """

    name: str
    faults: dict[str, str]
    counted: str
    away: str = ""
    reason: str = ""
    quorum: float = 0.5


STORIES = (
    Story("everybody answers", {}, "abcd"),
    Story("half of the site is away", {}, "ab", away="cd"),
    Story("half of the site dies in the round", {"a": "silent silent silent", "c": "silent silent silent"}, "bd"),
    Story("one more and the quorum is missed", {}, "", away="bcd", reason="site-quorum: 1 of at least 2 devices"),
    Story("all refuse", dict.fromkeys("abcd", "refuse"), "", reason="site-quorum: 0 of at least 2 devices answered"),
    Story("garbage, then sense", {"b": "garbage"}, "abcd", quorum=1.0),
    Story("nothing but garbage", {"b": "garbage nan shape"}, "acd"),
    Story("another network", {"d": "names names names"}, "abc"),
    Story("an answer for somebody else", {"a": "other-device other-device other-device"}, "bcd"),
    Story("an answer comes twice", {"a": "twice"}, "abcd"),
    Story("an error, then an answer", {"c": "error"}, "abcd", quorum=1.0),
    Story("the site's SuperLink is killed", {"b": "lost"}, "abcd"),
    Story("it is killed again and again", {"b": "lost lost lost"}, "abcd"),
    Story("all must answer and one is away", {}, "", away="d", reason="site-quorum: 3 of at least 4", quorum=1.0),
)


@pytest.mark.parametrize("story", STORIES, ids=lambda story: story.name)
def test_a_round_with_faults(tmp_path: Path, story: Story) -> None:
    devices = four(story.faults)
    weights = {device.name: (device.examples, device.adds) for device in devices}
    for device in devices:
        if device.name in story.away:
            device.node_id = None
    made = site(tmp_path, devices, quorum=story.quorum)
    if not story.counted:
        with pytest.raises(RefusedError) as caught:
            made.train(made.gateway())
        assert caught.value.reason.startswith(story.reason)
        assert caught.value.final
        assert made.rounds == []
        return
    reply = made.train(made.gateway())
    assert "".join(split_members(reply.members)) == story.counted
    total = sum(weights[name][0] for name in story.counted)
    assert reply.examples == total
    assert shift(reply) == pytest.approx(sum(weights[n][0] * weights[n][1] for n in story.counted) / total)


def test_a_quorum_that_is_missed_keeps_what_came_for_the_next_attempt(tmp_path: Path) -> None:
    devices = four()
    for device in devices[1:]:
        device.node_id = None
    made = site(tmp_path, devices)
    with pytest.raises(RefusedError):
        made.train(made.gateway())
    assert made.journalled() == ["_opened", "a"]
    made.clock.now -= 20.0  # the same question within its time
    devices[1].node_id = 2
    assert split_members(made.train(made.gateway()).members) == ("a", "b")
    assert made.asked()["a"] == 1


@pytest.mark.parametrize("kill_after", [0, 1, 2, 3])
def test_a_gateway_that_is_killed_counts_every_update_once(tmp_path: Path, kill_after: int) -> None:
    made = site(tmp_path, four(), quorum=1.0)
    with pytest.raises(KilledError):
        made.train(made.gateway(kill_after=kill_after))
    assert len([name for name in made.journalled() if name != "_opened"]) == kill_after
    before = made.asked()
    reply = made.train(made.gateway())
    assert shift(reply) == pytest.approx(4.7)
    assert reply.examples == 100
    again = {name for name, count in made.asked().items() if count > before[name]}
    assert len(again) == 4 - kill_after  # who is journalled is not asked again


def test_a_damaged_update_is_asked_for_again(tmp_path: Path) -> None:
    made = site(tmp_path, four(), quorum=1.0)
    with pytest.raises(KilledError):
        made.train(made.gateway(kill_after=3))
    (kept,) = made.folder.glob("rounds/*/*/b.kept")
    kept.write_bytes(kept.read_bytes()[:-3])
    assert shift(made.train(made.gateway())) == pytest.approx(4.7)
    assert made.asked()["b"] == 2


def test_an_answer_that_got_lost_is_given_again_without_asking_anybody(tmp_path: Path) -> None:
    made = site(tmp_path, four())
    first = made.train(made.gateway(), wire="int8", counted=encode_counted(CAMPAIGN, {"gw": 0}))
    again = made.train(made.gateway(), wire="int8", counted=encode_counted(CAMPAIGN, {"gw": 0}))
    assert again == first
    assert set(made.asked().values()) == {1}
    plain = made.train(made.gateway(), wire="float32", counted=encode_counted(CAMPAIGN, {"gw": 0}))
    assert (plain.wire, plain.members) == ("float32", first.members)
    assert shift(plain) == pytest.approx(4.7, abs=0.05)


@pytest.mark.parametrize(("counted", "told"), [(1, 1), (0, 0)])
def test_devices_hear_whether_their_update_counted(tmp_path: Path, counted: int, told: int) -> None:
    devices = four({"d": "refuse"})
    made = site(tmp_path, devices)
    made.train(made.gateway(), wire="int8", counted=encode_counted(CAMPAIGN, {"gw": 0}))
    made.train(made.gateway(), wire="int8", round=2, counted=encode_counted(CAMPAIGN, {"gw": counted}))
    fields = made.exchanges[-1].broadcasts[0].fields["counted"]
    assert isinstance(fields, bytes)
    heard = {name: counted_round(fields, CAMPAIGN, name) for name in "abcd"}
    assert heard == {"a": told, "b": told, "c": told, "d": 0}


def test_a_mean_that_did_not_count_leaves_no_residual(tmp_path: Path) -> None:
    made = site(tmp_path, four())
    first = made.train(made.gateway(), wire="int8", counted=encode_counted(CAMPAIGN, {"gw": 0}))
    later = made.train(made.gateway(), wire="int8", round=2, seed=7, counted=encode_counted(CAMPAIGN, {"gw": 0}))
    fresh = Site(tmp_path / "fresh", four(), Clock())
    for device, other in zip(made.fleet, fresh.fleet, strict=True):
        other.asked = device.asked - 1
    alone = fresh.train(fresh.gateway(), wire="int8", round=2, seed=7, counted=encode_counted(CAMPAIGN, {"gw": 0}))
    assert later.parameters == alone.parameters
    assert first.wire == "int8"


REFUSED: tuple[tuple[dict[str, object], str], ...] = (
    ({"control": encode_bundle(MODEL)}, "needs-each: a control variate"),
    ({"clip_norm": 1.0}, "needs-each: privacy that the control plane adds"),
    ({"campaign_id": "campaign-2"}, "the roster of this site does not name campaign campaign-2"),
    ({"parameters_wire": "int8", "base_sha256": "0" * 64}, "no-base-model"),
)


@pytest.mark.parametrize(("changes", "reason"), REFUSED, ids=[reason[:20] for _, reason in REFUSED])
def test_what_a_mean_would_break_is_refused_before_anybody_is_asked(
    tmp_path: Path, changes: dict[str, object], reason: str
) -> None:
    made = site(tmp_path, four())
    with pytest.raises(RefusedError) as caught:
        made.train(made.gateway(), **changes)
    assert caught.value.reason.startswith(reason)
    assert caught.value.final == reason.startswith("needs-each")
    assert set(made.asked().values()) == {0}
    assert made.journalled() == []


def test_a_kind_that_only_devices_answer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RefusedError, match="needs-each: a gateway does not answer messages"):
        site(tmp_path, four()).gateway().handle("train.secagg-keys", {})


def test_local_noise_passes_and_every_device_weighs_the_same(tmp_path: Path) -> None:
    made = site(tmp_path, four())
    reply = made.train(made.gateway(), clip_norm=1.0, noise_std=0.1)
    assert shift(reply) == pytest.approx((1 + 2 + 4 + 8) / 4)
    assert made.exchanges[0].broadcasts[0].fields["noise_std"] == 0.1


def test_parameters_that_stay_on_the_devices_are_not_told(tmp_path: Path) -> None:
    made = site(tmp_path, four())
    reply = made.train(made.gateway(), personal="b")
    assert list(decode_bundle(reply.parameters)) == ["w"]
    assert shift(reply) == pytest.approx(4.7)


def test_the_sites_superlink_stays_away(tmp_path: Path) -> None:
    made = site(tmp_path, four())
    made.openings_that_fail = 99
    with pytest.raises(RefusedError, match="cannot be reached") as caught:
        made.train(made.gateway())
    assert not caught.value.final
    made.openings_that_fail = 2
    assert shift(made.train(made.gateway())) == pytest.approx(4.7)


def test_one_run_serves_every_round(tmp_path: Path) -> None:
    made = site(tmp_path, four())
    gateway = made.gateway()
    for number in (1, 2, 3):
        made.train(gateway, round=number)
    assert (len(made.exchanges), made.exchanges[0].closed) == (1, False)


def test_a_device_that_left_the_roster_does_not_count(tmp_path: Path) -> None:
    made = site(tmp_path, four(), quorum=1.0)
    with pytest.raises(KilledError):
        made.train(made.gateway(kill_after=2))
    RosterFile(made.folder / "roster.json").replace(document("bcd", quorum=1.0), digest="2")
    assert split_members(made.train(made.gateway()).members) == ("b", "c", "d")


def test_campaigns_that_are_over_leave_nothing(tmp_path: Path) -> None:
    made = site(tmp_path, four(), quorum=1.0)
    with pytest.raises(KilledError):
        made.train(made.gateway(kill_after=2))
    RosterFile(made.folder / "roster.json").replace(document("abcd", campaign_id="campaign-9"), digest="2")
    made.train(made.gateway(), campaign_id="campaign-9")
    assert [path.name for path in made.folder.glob("rounds/*")] == ["campaign-9"]


class OneAtATime(SiteExchange):
    """Makes each answer when it is asked for, so that only the gateway's own memory counts."""

    def send(self, broadcast: object, node_ids: Iterable[int]) -> dict[int, str]:
        self._wanted = deque(device for device in self._site if device.node_id in set(node_ids))
        self._broadcast = broadcast
        return {int(device.node_id or 0): device.name for device in self._wanted}

    def receive(self, message_ids: Iterable[str]) -> list[Reply]:
        if not self._wanted:
            return []
        device = self._wanted.popleft()
        made: Callable[..., Reply | None] = device.answer
        reply = made(self._broadcast, "")
        device.models.clear()
        assert reply is not None
        return [Reply(device.name, fields=reply.fields)]


def test_memory_does_not_grow_with_the_devices(tmp_path: Path) -> None:
    model = {"w": np.ones(200_000, np.float32)}  # 0.8 MB

    def peak(count: int) -> int:
        devices = [FakeDevice(f"d{index}", index + 1) for index in range(count)]
        made = Site(tmp_path / str(count), devices, Clock())
        gateway = made.gateway()
        gateway._link._open_run = lambda: OneAtATime(devices, made.clock)
        tracemalloc.start()
        try:
            assert made.train(gateway, parameters=encode_bundle(model)).examples == 10 * count
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    peak(2)  # what is imported or cached once
    assert peak(16) < peak(4) + (200_000 * 4)


def test_counted_goes_back_with_the_control_plane(tmp_path: Path) -> None:
    journal = SiteJournal(tmp_path)
    journal.answered("c", 3, ["a"])
    assert journal.counted("c", 3) == {"a": 3}
    journal.answered("c", 4, ["a", "b"])
    assert journal.counted("c", 3) == {"a": 3}
    assert SiteJournal(tmp_path).counted("c", 4) == {"a": 4, "b": 4}
    assert journal.counted("c", 2) == {}
