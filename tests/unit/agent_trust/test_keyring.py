"""Which keys are trusted, for what, and how a desired state of an unknown key gets its second look."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from skerry_agent.errors import DeviceError
from skerry_agent.trust.keyring import PAST_KEYS, InstructionKeys, Keyring, keep_keys, read_keys
from skerry_agent.trust.places import TrustPlaces
from skerry_agent.trust.second_look import SecondLook
from skerry_contract.errors import SignatureError
from skerry_contract.signing import DESIRED, RELEASE, Ed25519Signer
from skerry_contract.v1.common_pb2 import SignedEnvelope
from unit.agent_trust.trust_device import ENROLLED, HastyDisk, experienced
from unit.update.releases import make_desired, make_release, new_signer

FIRST, SECOND, THIRD = new_signer(), new_signer(), new_signer()


def name(*signers: Ed25519Signer) -> list[str]:
    return [signer.public_key.hex() for signer in signers]


def keep(places: TrustPlaces, current: Sequence[str], enrolled: Sequence[str] = ()) -> bool:
    return keep_keys(places, current, enrolled or name(FIRST), HastyDisk())


def trusts(keyring: Keyring, signer: Ed25519Signer) -> bool:
    envelope = signer.sign(RELEASE, b"x")
    try:
        verified = keyring.verify(RELEASE, envelope) == b"x"
    except SignatureError:
        verified = False
    assert keyring.knows_signer(envelope) is verified
    return verified


def test_keys_of_the_enrolment_until_others_are_known_then_current_and_past(tmp_path: Path) -> None:
    places = TrustPlaces(tmp_path)
    now = Keyring(places.keys, name(FIRST), past=False)
    slots = Keyring(places.keys, name(FIRST), past=True)
    assert [trusts(now, signer) for signer in (FIRST, SECOND)] == [True, False]

    state = now.state
    assert keep(places, name(SECOND))
    assert now.state != state
    assert [trusts(now, signer) for signer in (FIRST, SECOND, THIRD)] == [False, True, False]
    assert [trusts(slots, signer) for signer in (FIRST, SECOND, THIRD)] == [True, True, False]

    assert keep(places, name(THIRD, SECOND))
    assert not keep(places, name(THIRD, SECOND))
    assert [trusts(now, signer) for signer in (FIRST, SECOND, THIRD)] == [False, True, True]
    assert read_keys(places.keys) == InstructionKeys(tuple(name(THIRD, SECOND)), tuple(name(FIRST)))

    assert keep(places, name(FIRST)), "a key may come back"
    assert [trusts(now, signer) for signer in (FIRST, SECOND)] == [True, False]
    assert [trusts(slots, signer) for signer in (FIRST, SECOND, THIRD)] == [True, True, True]


@pytest.mark.parametrize("content", [b"", b"{}", b"[]", b"\xff", b'{"keys": "{}", "sha256": ""}', b"[" * 10_000])
def test_a_damaged_file_means_the_keys_of_the_enrolment(tmp_path: Path, content: bytes) -> None:
    places = TrustPlaces(tmp_path)
    keep(places, name(SECOND))
    slots = Keyring(places.keys, name(FIRST), past=True)
    places.keys.write_bytes(content)
    assert [trusts(slots, signer) for signer in (FIRST, SECOND)] == [True, False]
    assert keep(places, name(SECOND)), "the next refresh writes it anew"
    assert [trusts(slots, signer) for signer in (FIRST, SECOND)] == [True, True]


def test_a_file_whose_digest_does_not_hold_is_damaged(tmp_path: Path) -> None:
    places = TrustPlaces(tmp_path)
    keep(places, name(SECOND))
    places.keys.write_text(places.keys.read_text().replace(name(SECOND)[0], name(THIRD)[0]))
    assert read_keys(places.keys) is None


def test_past_keys_are_bounded_newest_first() -> None:
    keys = InstructionKeys(("00",))
    for number in range(1, PAST_KEYS + 10):
        keys = keys.replaced([f"{number:02x}"])
    assert len(keys.past) == PAST_KEYS
    assert keys.past[0] == f"{PAST_KEYS + 8:02x}"


def test_broken_keys_of_the_enrolment_are_the_devices_fault(tmp_path: Path) -> None:
    for keys in ([], ["zz"], ["aa"]):
        with pytest.raises(DeviceError, match="release_keys"):
            Keyring(tmp_path / "keys.json", keys, past=False)


@pytest.mark.parametrize("keys", [[], ["aa"], ["AA" * 32], ["aa" * 32] * 17, [3], "aa", None])
def test_only_well_formed_keys_are_learnt(tmp_path: Path, keys: list[object]) -> None:
    repository, device, _old = experienced(tmp_path)
    before = device.kept()
    repository.list_keys(keys)
    answer = device.judge(repository.publish(), "b")
    assert (answer.approved, answer.final) == (False, False)
    assert "does not list 1 to 16 keys" in answer.detail
    assert device.kept() == before


def test_a_refresh_learns_keys_with_and_without_a_question(tmp_path: Path) -> None:
    repository, device, _old = experienced(tmp_path)
    assert read_keys(device.places.keys) == InstructionKeys(("aa" * 32,), tuple(ENROLLED))
    repository.list_keys(["bb" * 32, "cc" * 32])
    answer = device.judge(repository.publish(), None)
    assert (answer.approved, answer.final) == (False, True)
    assert read_keys(device.places.keys) == InstructionKeys(("bb" * 32, "cc" * 32), ("aa" * 32, *ENROLLED))
    del repository.targets.targets["keys"]
    device.judge(repository.publish(), None)
    assert read_keys(device.places.keys) == InstructionKeys(("bb" * 32, "cc" * 32), ("aa" * 32, *ENROLLED))


class Offers:
    def __init__(self, path: Path) -> None:
        self.keyring = Keyring(path, name(FIRST), past=False)
        self.offered: list[bytes] = []
        self.refreshes = 0
        self.look = SecondLook(self.keyring, offer=self.offered.append, refresh=self._refresh)

    def _refresh(self) -> None:
        self.refreshes += 1


RELEASED = make_release("digits-1", signer=FIRST)


@pytest.mark.parametrize(
    ("payload", "unknown"),
    [
        (make_desired(1, RELEASED, signer=FIRST), False),
        (make_desired(1, None, signer=FIRST), False),
        (make_desired(1, RELEASED, signer=SECOND), True),
        (make_desired(1, make_release("digits-2", signer=SECOND), signer=FIRST), True),
        (SECOND.sign(DESIRED, b"\xff").SerializeToString(), False),
        (SignedEnvelope(kind=DESIRED).SerializeToString(), True),
        (b"\xff\xff", False),
    ],
)
def test_what_gets_a_second_look(tmp_path: Path, payload: bytes, unknown: bool) -> None:
    places = TrustPlaces(tmp_path)
    offers = Offers(places.keys)
    offers.look.desired(payload)
    offers.look.step()
    assert offers.offered == [payload]
    assert offers.refreshes == unknown
    keep(places, name(SECOND))
    offers.look.step()
    assert len(offers.offered) == 1 + unknown
    assert set(offers.offered) == {payload}


def test_a_newer_desired_state_replaces_the_kept_one(tmp_path: Path) -> None:
    places = TrustPlaces(tmp_path)
    offers = Offers(places.keys)
    offers.look.desired(make_desired(1, RELEASED, signer=SECOND))
    offers.look.desired(make_desired(2, RELEASED, signer=FIRST))
    keep(places, name(SECOND))
    offers.look.step()
    assert len(offers.offered) == 2
