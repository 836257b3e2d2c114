"""What a device refuses in secure aggregation: a control plane that asks for more than one sum."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from skerry_agent.state_table import IllegalEventError
from skerry_agent.training import secure_machine
from skerry_agent.training.secure_aggregation import SESSIONS
from skerry_agent.training.secure_machine import Stage, Step
from skerry_agent.training.worker import RefusedError
from skerry_contract.campaign import Scalar
from skerry_contract.secagg_codec import bitmap
from skerry_contract.secagg_ring import VectorLayout
from skerry_contract.secagg_roster import Entry, Roster, load_authority
from skerry_contract.secure_aggregation import (
    CONFIRM,
    KEYS,
    MASKED,
    SECAGG_KINDS,
    SHARES,
    UNMASK,
    KeysInstruction,
    KeysReply,
)
from skerry_server.federation.secure_aggregation.session import SecureSession
from skerry_server.fleet.authority import CertificateAuthority
from unit.federation.fakes import Clock
from unit.federation.secure_rig import NOW, SecureDevice, authority, fleet, identity_of, instruction, model

Fields = dict[str, Scalar]


class Table:
    """A control plane that can be led through a session step by step."""

    def __init__(self, count: int = 5, **terms: Any) -> None:
        self.clock = Clock()
        self.devices = fleet(count, self.clock)
        values: dict[str, Any] = {
            "campaign_id": "campaign-a",
            "round": 1,
            "session": "0" * 31 + "1",
            "bits": 32,
            "bound": 8.0,
            "weight_bound": 64,
            "minimum": 3,
            "lifetime_ms": 60_000,
        }
        self.terms = KeysInstruction(**{**values, **terms})
        authority_ = load_authority(authority().certificate_pem)
        self.session = SecureSession(self.terms, VectorLayout.of(model()), authority_)
        self.asked: dict[str, dict[str, Fields]] = {}

    @property
    def device(self) -> SecureDevice:
        """The one that is asked strange things."""
        return self.devices[0]

    def question(self, kind: str, name: str) -> Fields:
        """What the honest control plane asks a device."""
        session = self.session
        questions: dict[str, Callable[[], Fields]] = {
            KEYS: self.terms.to_fields,
            SHARES: session.shares_fields,
            MASKED: lambda: session.masked_fields(instruction(self.terms.round), model()),
            CONFIRM: lambda: session.confirm_fields(name),
            UNMASK: session.unmask_fields,
        }
        return questions[kind]()

    def lead(self, *, until: str) -> None:
        """Every phase before ``until``, with everybody."""
        session = self.session
        steps = {
            KEYS: (session.take_keys, session.close_keys),
            SHARES: (session.take_shares, session.close_shares),
            MASKED: (session.take_masked, session.close_masked),
            CONFIRM: (session.take_confirm, session.close_confirm),
            UNMASK: (session.take_unmask, session.close_unmask),
        }
        for kind in SECAGG_KINDS[: SECAGG_KINDS.index(until)]:
            take, close = steps[kind]
            for device in self.devices:
                take(device.name, device.worker.handle(kind, self.question(kind, device.name)))
            close()

    def refused(self, kind: str, **changes: Any) -> str:
        """The reason for which the device refuses the changed question; it answers the right one afterwards."""
        question = self.question(kind, self.device.name)
        with pytest.raises(RefusedError) as caught:
            self.device.worker.handle(kind, {**question, **changes})
        assert caught.value.final
        assert self.device.worker.handle(kind, question)["session"] == self.terms.session
        return caught.value.reason


def bits_of(*indices: int) -> bytes:
    """Of five devices."""
    return bitmap(indices, 5)


@pytest.mark.parametrize(
    ("kind", "changes", "reason"),
    [
        (KEYS, {"minimum": 2}, "minimum: expected 3 to"),
        (KEYS, {"bits": 17}, "ring"),
        (KEYS, {"bound": float("inf")}, "bound"),
        (KEYS, {"round": "1"}, "round: expected int"),
        (KEYS, {"campaign_id": "../x"}, "campaign_id"),
        (SHARES, {"roster": b"\0\0"}, "1 to 1024 devices"),
        (SHARES, {"roster": b"\0\5" + bytes(40)}, "roster"),
        (MASKED, {"members": bits_of(0, 1, 2)}, "at least 4 of 5"),
        (MASKED, {"members": bits_of(1, 2, 3, 4)}, "this device among them"),
        (MASKED, {"members": b"\xff"}, "bitmap"),
        (MASKED, {"round": 2}, "round: expected campaign-a 1"),
        (MASKED, {"wire": "int8"}, "wire"),
        (MASKED, {"parameters": b"\xff"}, "TensorBundle"),
        (MASKED, {"personal": "*"}, "0 values"),
        (CONFIRM, {"survivors": bits_of(0, 1, 2)}, "at least 4 of 5"),
        (CONFIRM, {"survivors": bits_of(1, 2, 3, 4)}, "this device among them"),
        (CONFIRM, {"dealt": b""}, "4 times"),
        (UNMASK, {"survivors": bits_of(0, 1, 2, 3)}, "those that this device confirmed"),
        (UNMASK, {"signatures": b"\0\0\0\1x"}, "signature"),
        (UNMASK, {"signatures": b"\0\x09\0\1x"}, "index 9"),
        (UNMASK, {"signatures": b"\0"}, "2 bytes at 0"),
    ],
)
def test_a_question_that_does_not_fit_is_refused_and_changes_nothing(
    kind: str, changes: dict[str, Any], reason: str
) -> None:
    table = Table()
    table.lead(until=kind)
    assert reason in table.refused(kind, **changes)


def test_a_second_answer_to_another_question_is_refused() -> None:
    for kind, changes in (
        (SHARES, {"roster": b"\0\5"}),
        (MASKED, {"members": bits_of(0, 1, 2, 3)}),
        (CONFIRM, {"survivors": bits_of(0, 1, 2, 3)}),
        (UNMASK, {"signatures": b"\0\0"}),
    ):
        table = Table()
        table.lead(until=kind)
        question = table.question(kind, table.device.name)
        answer = table.device.worker.handle(kind, question)
        assert table.device.worker.handle(kind, question) == answer
        with pytest.raises(RefusedError, match="expected the question that was answered"):
            table.device.worker.handle(kind, {**question, **changes})
        assert table.device.worker.handle(kind, question) == answer


def test_too_few_signatures_reveal_nothing() -> None:
    for times, reason in ((1, "expected 4 of 5 devices, got 1"), (2, "one of each survivor")):
        table = Table()
        table.lead(until=UNMASK)
        signatures = bytes(table.question(UNMASK, table.device.name)["signatures"])  # type: ignore[arg-type]
        first = signatures[: 4 + int.from_bytes(signatures[2:4], "big")]
        assert reason in table.refused(UNMASK, signatures=first * times)


def test_one_share_per_device_and_secrets_are_gone_afterwards() -> None:
    table = Table()
    table.lead(until=UNMASK)
    worker = table.device.worker
    assert worker.open_sessions == 1
    answer = worker.handle(UNMASK, table.question(UNMASK, table.device.name))
    assert answer["owners"] == bits_of(0, 1, 2, 3, 4)
    assert len(bytes(answer["shares"])) == 5 * 32  # type: ignore[arg-type]
    assert worker.open_sessions == 0
    secrets = worker._sessions[table.terms.session].session._secrets
    assert (secrets.sealing_key, secrets.mask_key, secrets.seed, secrets.shared, secrets.held) == (
        b"",
        b"",
        b"",
        {},
        {},
    )


def test_a_round_that_was_unmasked_is_not_masked_again() -> None:
    table = Table()
    table.lead(until=UNMASK)
    table.device.worker.handle(UNMASK, table.question(UNMASK, table.device.name))
    again = KeysInstruction(**{**table.terms.to_fields(), "session": "f" * 32})  # type: ignore[arg-type]
    with pytest.raises(RefusedError, match="round-used-up: round 1 is unmasked, 1 is not asked again"):
        table.device.worker.handle(KEYS, again.to_fields())
    other = {**again.to_fields(), "campaign_id": "campaign-b"}
    assert table.device.worker.handle(KEYS, other)["session"] == "f" * 32


def test_other_terms_for_the_same_session_are_refused() -> None:
    table = Table()
    table.lead(until=SHARES)
    with pytest.raises(RefusedError, match="the terms of the first message"):
        table.device.worker.handle(KEYS, {**table.terms.to_fields(), "bound": 9.0})


def test_a_new_session_of_the_campaign_ends_the_old_one() -> None:
    table = Table()
    table.lead(until=CONFIRM)
    table.device.worker.handle(KEYS, {**table.terms.to_fields(), "session": "f" * 32})
    assert table.device.worker.open_sessions == 1
    with pytest.raises(RefusedError, match="expected one that this device is in"):
        table.device.worker.handle(CONFIRM, table.question(CONFIRM, table.device.name))


def test_sessions_end_by_themselves_and_are_counted() -> None:
    table = Table()
    worker = table.device.worker
    for number in range(SESSIONS):
        worker.handle(
            KEYS, {**table.terms.to_fields(), "session": f"{number:032d}", "campaign_id": f"campaign-{number}"}
        )
    last = {**table.terms.to_fields(), "session": "f" * 32, "campaign_id": "campaign-z"}
    with pytest.raises(RefusedError, match="4 sessions") as caught:
        worker.handle(KEYS, last)
    assert not caught.value.final
    table.clock.sleep(60.0)
    assert worker.handle(KEYS, last)["session"] == "f" * 32
    assert worker.open_sessions == 1


def test_steps_out_of_turn_are_refused() -> None:
    table = Table()
    table.lead(until=MASKED)
    question = {"session": table.terms.session, "survivors": bits_of(0, 1, 2, 3, 4), "dealt": b""}
    with pytest.raises(RefusedError, match="a session that is shared takes no confirm"):
        table.device.worker.handle(CONFIRM, question)
    with pytest.raises(ValueError, match="none of secure aggregation"):
        table.device.worker.handle("train", question)


def test_a_roster_with_an_entry_that_the_authority_did_not_certify_is_refused() -> None:
    table = Table()
    foreign = SecureDevice(
        "device-009", 9, table.clock, identity_of("device-009", CertificateAuthority.create(now=NOW))
    )
    table.lead(until=SHARES)
    entries = table.session.roster.entries
    reply = KeysReply.from_fields(foreign.worker.handle(KEYS, table.terms.to_fields()))
    entry = Entry("device-009", reply.sealing_key, reply.mask_key, reply.certificate, reply.signature)
    roster = Roster((*entries, entry), table.terms.digest)
    assert "roster[device-009].certificate" in table.refused(SHARES, roster=roster.encode())


def test_a_roster_of_which_this_device_is_not_part_is_refused() -> None:
    table = Table()
    table.lead(until=SHARES)
    others = Roster(table.session.roster.entries[1:], table.terms.digest)
    assert "this device's entry as it sent it" in table.refused(SHARES, roster=others.encode())


def test_the_table_goes_forwards_only() -> None:
    stages = list(Stage)
    for place, stage in enumerate(stages):
        for step in Step:
            if secure_machine.TABLE[stage].get(step):
                assert secure_machine.advance(stage, step) is stages[place + 1]
            else:
                with pytest.raises(IllegalEventError):
                    secure_machine.advance(stage, step)
    assert sum(len(row) for row in secure_machine.TABLE.values()) == 4
