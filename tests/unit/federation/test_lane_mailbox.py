"""What the lane keeps: who gets which instruction how often, whose answer counts, and when everything is forgotten."""

from __future__ import annotations

from pathlib import Path

import pytest

from skerry_server.federation.flower.lane_blobs import UNNAMED_S, BlobError, BlobFolder
from skerry_server.federation.flower.lane_mailbox import DELIVERIES, PER_NODE, Mailbox, NoMessageError


class Clock:
    """Stands still."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def box(tmp_path: Path, clock: Clock) -> Mailbox:
    return Mailbox(tmp_path / "mailbox.db", wall=clock)


def post(box: Mailbox, *nodes: str, run: str = "r1", owner: str = "c", blobs: tuple[str, ...] = ()) -> dict[str, str]:
    return box.post(nodes, run_id=run, owner=owner, kind="train", ttl_s=60.0, frame=b"question", blobs=blobs)


def test_an_instruction_comes_again_until_it_is_answered_and_the_first_answer_counts(box: Mailbox) -> None:
    sent = post(box, "1", "2")
    for _ in range(2):
        instruction = box.next_for("1")
        assert instruction is not None
        assert (instruction.message_id, instruction.run_id, instruction.kind) == (sent["1"], "r1", "train")
        assert (instruction.frame, instruction.left_s) == (b"question", 60.0)
    assert box.answer("1", sent["1"], b"first") == "r1"
    assert box.answer("1", sent["1"], b"second") == "r1"
    assert box.next_for("1") is None
    assert box.answers("r1", most_bytes=100) == [(sent["1"], b"first")]
    box.drop("r1", [sent["1"]])
    assert box.answers("r1", most_bytes=100) == []
    assert box.next_for("2") is not None


def test_what_was_accepted_is_there_for_the_next_process(box: Mailbox, tmp_path: Path, clock: Clock) -> None:
    sent = post(box, "1", "2")
    box.attach("1")
    box.answer("1", sent["1"], b"answer")
    again = Mailbox(tmp_path / "mailbox.db", wall=clock)  # the first was killed: it is not closed
    assert again.attached(["1", "2"]) == {"1"}
    assert again.answers("r1", most_bytes=100) == [(sent["1"], b"answer")]
    instruction = again.next_for("2")
    assert instruction is not None
    assert instruction.message_id == sent["2"]


def test_a_node_that_never_answers_is_not_asked_for_ever(box: Mailbox) -> None:
    sent = post(box, "1")
    for _ in range(DELIVERIES):
        assert box.next_for("1") is not None
    assert box.next_for("1") is None
    assert box.exhausted("1") == [sent["1"]]


@pytest.mark.parametrize("case", ["another node", "unknown", "expired", "dropped", "ended"])
def test_an_answer_that_nobody_waits_for_is_refused(box: Mailbox, clock: Clock, case: str) -> None:
    message_id = post(box, "1", blobs=("a" * 64,))["1"]
    node = "2" if case == "another node" else "1"
    if case == "expired":
        clock.now += 61.0
        assert box.next_for("1") is None
        assert not box.may_read("1", "a" * 64)
    elif case == "dropped":
        box.drop("other run", [message_id])
        assert box.next_for("1") is not None
        box.drop("r1", [message_id])
    elif case == "ended":
        box.end_run("r1")
    name = "f" * 32 if case == "unknown" else message_id
    assert not box.may_write(node, name)
    with pytest.raises(NoMessageError):
        box.answer(node, name, b"answer")
    assert box.answers("r1", most_bytes=100) == []


def test_a_campaign_that_comes_back_with_another_run_takes_its_old_questions_back(box: Mailbox) -> None:
    post(box, "1", run="old", owner="c")
    other = post(box, "1", run="of another campaign", owner="d")
    new = post(box, "1", run="new", owner="c")
    first = box.next_for("1")
    assert first is not None
    assert first.message_id == other["1"]
    box.answer("1", other["1"], b"")
    second = box.next_for("1")
    assert second is not None
    assert second.message_id == new["1"]


def test_blobs_belong_to_the_nodes_whose_messages_name_them(box: Mailbox) -> None:
    model, update = "a" * 64, "b" * 64
    sent = post(box, "1", "2", blobs=(model,))
    assert [box.may_read(node, model) for node in ("1", "2", "3")] == [True, True, False]
    assert box.may_write("1", sent["1"])
    assert not box.may_write("2", sent["1"])
    box.answer("1", sent["1"], b"answer", [update])
    assert box.blobs_named_by(sent["1"]) == {model, update}
    assert not box.may_write("1", sent["1"])
    box.drop("r1", [sent["1"]])
    assert (box.named(model), box.named(update)) == (True, False)
    assert box.blobs_of("r1") == {model}
    box.end_run("r1")
    assert not box.named(model)


def test_everything_is_bounded(box: Mailbox, clock: Clock) -> None:
    for _ in range(PER_NODE):
        assert "1" in post(box, "1", owner="")
    assert list(post(box, "1", "2", owner="")) == ["2"]
    clock.now += 61.0
    box.expire()
    assert "1" in post(box, "1", owner="")


def test_answers_come_in_portions(box: Mailbox) -> None:
    sent = post(box, *map(str, range(5)))
    for node, message_id in sent.items():
        box.answer(node, message_id, b"x" * 40)
    portion = box.answers("r1", most_bytes=100)
    assert len(portion) == 2
    box.drop("r1", [message_id for message_id, _ in portion])
    assert len(box.answers("r1", most_bytes=1)) == 1
    assert len(box.answers("r1", most_bytes=1000)) == 3


def test_a_blob_is_what_its_name_says(tmp_path: Path) -> None:
    folder = BlobFolder(tmp_path / "blobs")
    name = "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824"  # SHA-256 of "hello"
    with folder.receive() as incoming:
        incoming.write(b"hel")
        incoming.write(b"lo!")
        with pytest.raises(BlobError, match="digest"):
            folder.keep(incoming, name)
    assert list((tmp_path / "blobs").iterdir()) == []
    with folder.receive() as incoming:
        incoming.write(b"hello")
        folder.keep(incoming, name)
    assert folder.read(name, 5) == b"hello"
    with pytest.raises(BlobError, match="5 bytes, not 6"):
        folder.read(name, 6)
    folder.put(name, b"hello")
    assert folder.size(name) == 5
    folder.remove(name)
    folder.remove(name)
    with pytest.raises(BlobError, match="not there"):
        folder.size(name)


def test_what_nobody_names_is_swept_once_it_is_old(tmp_path: Path) -> None:
    import os

    folder = BlobFolder(tmp_path)
    for name in ("named", "fresh", "old"):
        folder.put(name, b"x")
    for name in ("named", "old"):
        stat = (tmp_path / name).stat()
        os.utime(tmp_path / name, (stat.st_atime, stat.st_mtime - 2 * UNNAMED_S))
    assert folder.sweep(lambda name: name == "named") == 1
    assert sorted(file.name for file in tmp_path.iterdir()) == ["fresh", "named"]


def test_another_file_is_another_mailbox_and_the_same_file_the_same(tmp_path: Path) -> None:
    first = Mailbox(tmp_path / "mailbox.sqlite")
    first.attach("7")
    first.close()
    again = Mailbox(tmp_path / "mailbox.sqlite")
    other = Mailbox(tmp_path / "other.sqlite")
    assert again.identity == first.identity != other.identity
    assert (again.attached(["7", "8"]), other.attached(["7", "8"])) == ({"7"}, set())
    other.attach("7")
    other.attach("7")
    assert other.attached(["7"]) == {"7"}
    again.close()
    other.close()
