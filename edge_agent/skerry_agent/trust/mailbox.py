"""What arrived on the trust topics, in memory: the broker retains it and sends it again after every connection.

Nothing in here is verified. Invariants: at most :data:`TRUST_FILES` files of at most :data:`TRUST_FILE_BYTES` each and
:data:`MAILBOX_BYTES` in all; the index and the timestamp always find room; a malformed index leaves the one before.
The control loop puts, the thread of :class:`~skerry_agent.trust.approvals.TufApprovals` takes.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping

from skerry_agent.trust.errors import GivenUpError, NotDeliveredError, NotListedError
from skerry_contract.errors import WireError
from skerry_contract.limits import TRUST_FILE_BYTES, TRUST_FILES
from skerry_contract.topics import TRUST_INDEX, check_trust_name
from skerry_contract.v1.release_pb2 import TrustIndex
from skerry_contract.wire import parse_message

log = logging.getLogger(__name__)
#: Most bytes of all files together: real metadata of twenty tasks take a tenth of it.
MAILBOX_BYTES = 4 << 20
TIMESTAMP = "timestamp.json"


def parse_index(payload: bytes) -> Mapping[str, int]:
    """Declared sizes (bytes) of the files that the broker retains, by name.

    Raises:
        WireError: Too many files, a name twice or malformed, a size that no file may have.
    """
    index = parse_message(TrustIndex, payload, limit=TRUST_FILE_BYTES)
    if len(index.files) > TRUST_FILES:
        raise WireError("index.files", expected=f"at most {TRUST_FILES}", got=len(index.files))
    sizes: dict[str, int] = {}
    for number, file in enumerate(index.files):
        field = f"index.files[{number}]"
        name = check_trust_name(file.name, field=f"{field}.name")
        if name == TRUST_INDEX or name in sizes:
            raise WireError(f"{field}.name", expected="each file of metadata once", got=name)
        if not 1 <= file.size <= TRUST_FILE_BYTES:
            raise WireError(f"{field}.size", expected=f"1 to {TRUST_FILE_BYTES} bytes", got=file.size)
        sizes[name] = file.size
    return sizes


class TrustMailbox:
    """May be used by any thread."""

    def __init__(self, *, byte_limit: int = MAILBOX_BYTES, monotonic: Callable[[], float] = time.monotonic) -> None:
        """Empty.

        Args:
            byte_limit: Most bytes of all files.
            monotonic: Seconds, for deadlines.
        """
        self._byte_limit = byte_limit
        self._monotonic = monotonic
        self._changed = threading.Condition()
        self._files: dict[str, bytes] = {}
        self._bytes = 0
        self._index: Mapping[str, int] | None = None
        self._on_news: Callable[[], None] = lambda: None

    @property
    def stored_bytes(self) -> int:
        """Bytes of all files that are kept."""
        return self._bytes

    def names(self) -> list[str]:
        """Files that are kept, sorted."""
        with self._changed:
            return sorted(self._files)

    def on_news(self, call: Callable[[], None]) -> None:
        """Have ``call`` called, on the putting thread, after a new index or timestamp; it must not wait."""
        self._on_news = call

    def put(self, name: str, payload: bytes) -> None:
        """Take in a retained message; an empty one says that the file is gone.

        Args:
            name: Last level of its topic.
            payload: Not trusted.

        Raises:
            WireError: Larger than any file may be, no room, or a malformed index; nothing changes.
        """
        check_trust_name(name, field="name")
        if len(payload) > TRUST_FILE_BYTES:
            raise WireError(name, expected=f"at most {TRUST_FILE_BYTES} bytes", got=f"{len(payload)} bytes")
        with self._changed:
            news = self._put_index(payload) if name == TRUST_INDEX else self._put_file(name, payload)
            self._changed.notify_all()
        if news:
            self._on_news()

    def get(self, name: str, *, deadline: float, given_up: Callable[[], bool] = lambda: False) -> bytes:
        """A file as it came; waits for one that the index names.

        Args:
            name: Which.
            deadline: Moment of ``monotonic`` at which waiting ends.
            given_up: Looked at whenever :meth:`wake` or :meth:`put` was called.

        Raises:
            NotListedError: The index does not name it.
            NotDeliveredError: It, or the index, did not come before the deadline.
            GivenUpError: ``given_up`` said so.
        """
        with self._changed:
            while True:
                if given_up():
                    raise GivenUpError("given up")
                if self._index is not None and name not in self._index:
                    raise NotListedError(f"the control plane has no {name}")
                if self._index is not None and name in self._files:
                    return self._files[name]
                left_s = deadline - self._monotonic()
                if left_s <= 0:
                    what = "signed metadata have not come" if self._index is None else f"{name} has not come"
                    raise NotDeliveredError(f"{what} from the broker")
                self._changed.wait(left_s)

    def wake(self) -> None:
        """Have every waiting :meth:`get` look at ``given_up``."""
        with self._changed:
            self._changed.notify_all()

    def _put_index(self, payload: bytes) -> bool:
        before, self._index = self._index, parse_index(payload) if payload else None
        for name in before or ():
            if self._index is not None and name not in self._index:
                self._drop(name)
        return self._index is not None and self._index != before

    def _put_file(self, name: str, payload: bytes) -> bool:
        news = name == TIMESTAMP and bool(payload) and payload != self._files.get(name)
        if payload:
            self._make_room(name, len(payload) - len(self._files.get(name, b"")))
        self._drop(name)
        if payload:
            self._files[name] = payload
            self._bytes += len(payload)
        return news

    def _make_room(self, name: str, more: int) -> None:
        """Remove files that the index does not name, oldest first; for the timestamp, any."""
        listed = self._index or {}
        candidates = [other for other in self._files if other not in listed and other not in (name, TIMESTAMP)]
        if name == TIMESTAMP:
            candidates += [other for other in self._files if other in listed and other != name]
        count = len(self._files) + (name not in self._files)
        victims: list[str] = []
        free = self._byte_limit - self._bytes
        while (count > TRUST_FILES or more > free) and candidates:
            victims.append(candidates.pop(0))
            count -= 1
            free += len(self._files[victims[-1]])
        if count > TRUST_FILES or more > free:
            raise WireError(
                name, expected=f"at most {TRUST_FILES} files of {self._byte_limit} bytes in all", got="more"
            )
        for victim in victims:
            log.warning("trust: %s gives way to %s", victim, name)
            self._drop(victim)

    def _drop(self, name: str) -> None:
        self._bytes -= len(self._files.pop(name, b""))
