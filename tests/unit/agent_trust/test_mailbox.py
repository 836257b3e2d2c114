"""Bounds, order and deadlines of what arrives on the trust topics."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest
from tuf.api.exceptions import DownloadError, DownloadHTTPError, DownloadLengthMismatchError

from skerry_agent.trust.errors import GivenUpError, NotDeliveredError, NotListedError
from skerry_agent.trust.fetcher import BASE_URL, MqttFetcher
from skerry_agent.trust.mailbox import TrustMailbox
from skerry_contract.errors import WireError
from skerry_contract.limits import TRUST_FILE_BYTES, TRUST_FILES
from unit.agent_trust.repository import index_of


def get(mailbox: TrustMailbox, name: str) -> bytes:
    """Without waiting."""
    return mailbox.get(name, deadline=-1.0)


def test_only_what_the_index_names_is_there() -> None:
    mailbox = TrustMailbox()
    mailbox.put("timestamp.json", b"t")
    with pytest.raises(NotDeliveredError, match="signed metadata have not come"):
        get(mailbox, "timestamp.json")
    mailbox.put("index", index_of({"timestamp.json": 1, "3.snapshot.json": 1}))
    assert get(mailbox, "timestamp.json") == b"t"
    with pytest.raises(NotDeliveredError, match=r"3\.snapshot\.json has not come"):
        get(mailbox, "3.snapshot.json")
    with pytest.raises(NotListedError, match=r"no 2\.root\.json"):
        get(mailbox, "2.root.json")


def test_files_go_when_they_are_cleared_or_not_named_any_more() -> None:
    mailbox = TrustMailbox()
    mailbox.put("index", index_of({"1.snapshot.json": 4, "2.snapshot.json": 4}))
    mailbox.put("1.snapshot.json", b"1234")
    mailbox.put("2.snapshot.json", b"1234")
    mailbox.put("3.snapshot.json", b"1234")
    mailbox.put("2.snapshot.json", b"")
    assert mailbox.names() == ["1.snapshot.json", "3.snapshot.json"]
    mailbox.put("index", index_of({"3.snapshot.json": 4}))
    assert mailbox.names() == ["3.snapshot.json"]
    assert mailbox.stored_bytes == 4
    mailbox.put("index", b"")
    with pytest.raises(NotDeliveredError):
        get(mailbox, "3.snapshot.json")


@pytest.mark.parametrize(
    ("payload", "field"),
    [
        (b"\xff\xff", "TrustIndex"),
        (index_of({"timestamp.json": TRUST_FILE_BYTES + 1}), r"index.files\[0\].size"),
        (index_of({"timestamp.json": 0}), r"index.files\[0\].size"),
        (index_of({"../etc/passwd": 1}), r"index.files\[0\].name"),
        (index_of({"index": 1}), r"index.files\[0\].name"),
        (index_of({"a.json": 1}) * 2, r"index.files\[1\].name"),
        (index_of({f"{number}.root.json": 1 for number in range(TRUST_FILES + 1)}), "index.files"),
        (b"\0" * (TRUST_FILE_BYTES + 1), "index"),
    ],
)
def test_a_malformed_index_leaves_the_one_before(payload: bytes, field: str) -> None:
    mailbox = TrustMailbox()
    mailbox.put("index", index_of({"timestamp.json": 1}))
    mailbox.put("timestamp.json", b"t")
    with pytest.raises(WireError, match=field):
        mailbox.put("index", payload)
    assert get(mailbox, "timestamp.json") == b"t"


def test_a_file_is_bounded_and_so_are_all() -> None:
    mailbox = TrustMailbox(byte_limit=1000)
    with pytest.raises(WireError, match="at most"):
        mailbox.put("1.root.json", b"x" * (TRUST_FILE_BYTES + 1))
    mailbox.put("index", index_of({"1.root.json": 600, "2.root.json": 600, "timestamp.json": 500}))
    mailbox.put("1.root.json", b"r" * 600)
    mailbox.put("9.junk.json", b"j" * 300)
    with pytest.raises(WireError, match="1000 bytes in all"):
        mailbox.put("2.root.json", b"r" * 600)
    assert mailbox.stored_bytes == 900
    mailbox.put("2.root.json", b"r" * 400)
    assert mailbox.names() == ["1.root.json", "2.root.json"], "what is not named gives way"
    mailbox.put("timestamp.json", b"t" * 500)
    assert mailbox.names() == ["2.root.json", "timestamp.json"], "the timestamp always finds room"
    assert mailbox.stored_bytes == 900


def test_a_flood_of_names_stays_within_the_bound() -> None:
    mailbox = TrustMailbox()
    mailbox.put("index", index_of({"timestamp.json": 1}))
    for number in range(TRUST_FILES * 2):
        mailbox.put(f"{number}.junk.json", b"j")
    assert len(mailbox.names()) == TRUST_FILES
    mailbox.put("timestamp.json", b"t")
    assert get(mailbox, "timestamp.json") == b"t"
    assert len(mailbox.names()) == TRUST_FILES


def test_news_are_a_new_index_and_a_new_timestamp() -> None:
    mailbox = TrustMailbox()
    news: list[str] = []
    mailbox.on_news(lambda: news.append("!"))
    index = index_of({"timestamp.json": 1})
    for name, payload, count in [
        ("index", index, 1),
        ("index", index, 1),
        ("timestamp.json", b"1", 2),
        ("timestamp.json", b"1", 2),
        ("timestamp.json", b"2", 3),
        ("1.root.json", b"1", 3),
        ("timestamp.json", b"", 3),
        ("index", b"", 3),
    ]:
        mailbox.put(name, payload)
        assert len(news) == count, (name, payload)


def test_a_waiting_reader_gets_what_comes_and_can_be_given_up(wait_until: Callable[..., None]) -> None:
    mailbox = TrustMailbox()
    mailbox.put("index", index_of({"1.root.json": 1, "2.root.json": 1}))
    got: list[object] = []
    given_up = threading.Event()

    def read() -> None:
        got.append(mailbox.get("1.root.json", deadline=1e6))
        try:
            mailbox.get("2.root.json", deadline=1e6, given_up=given_up.is_set)
        except GivenUpError as error:
            got.append(error)

    thread = threading.Thread(target=read)
    thread.start()
    mailbox.put("1.root.json", b"r")
    wait_until(lambda: got, what="the file")
    given_up.set()
    mailbox.wake()
    thread.join(timeout=10)
    assert not thread.is_alive()
    assert got[0] == b"r"
    assert isinstance(got[1], GivenUpError)


def fetcher(mailbox: TrustMailbox) -> MqttFetcher:
    return MqttFetcher(mailbox, deadline=-1.0, given_up=lambda: False)


def test_the_fetcher_says_what_ngclient_understands() -> None:
    mailbox = TrustMailbox()
    mailbox.put("index", index_of({"timestamp.json": 3, "5.root.json": 1}))
    mailbox.put("timestamp.json", b"abc")
    assert fetcher(mailbox).download_bytes(f"{BASE_URL}timestamp.json", 3) == b"abc"
    assert b"".join(fetcher(mailbox).fetch("mqtt://elsewhere/timestamp.json")) == b"abc"
    with pytest.raises(DownloadLengthMismatchError):
        fetcher(mailbox).download_bytes(f"{BASE_URL}timestamp.json", 2)
    for name in ("2.root.json", "index", "..%2fetc.json", "", "UPPER.json"):
        with pytest.raises(DownloadHTTPError) as refused:
            fetcher(mailbox).download_bytes(f"{BASE_URL}{name}", 10)
        assert refused.value.status_code == 404
    with pytest.raises(DownloadError) as late:
        fetcher(mailbox).download_bytes(f"{BASE_URL}5.root.json", 10)
    assert isinstance(late.value.__cause__, NotDeliveredError)
