"""A long-lived node on the lane of our own SuperLink: it waits for an instruction in a request that returns with it.

- Nothing is polled: an idle node makes one request per :data:`~skerry_contract.lane.WAIT_S`, a round costs it one, and
  one each way for parameters above the inline bound.
- An answer that could not be left is left later, by the same request that waits for the next instruction, until nobody
  waits for it any more. An instruction whose answer was never left comes again.
- HTTP 401 means that the SuperLink does not know the key: the device was enrolled a moment ago, was revoked, or the
  SuperLink lost its state. The control plane registers what may take part; the node says so, waits and tries again.
"""

from __future__ import annotations

import logging
import ssl
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from cryptography.hazmat.primitives.asymmetric import ec

from skerry_agent.training.backoff import Backoff
from skerry_agent.training.lane_client import BlobMissingError, LaneClient, Message, fetch
from skerry_agent.training.node_link import (
    AWAY_LAST_S,
    UNKNOWN_FIRST_S,
    UNKNOWN_LAST_S,
    LinkError,
    NotRegisteredError,
    RunEndedError,
    Worker,
    pause,
)
from skerry_agent.training.server_clock import ServerClock
from skerry_agent.training.worker import RefusedError
from skerry_contract import lane
from skerry_contract.campaign import REASON_CHARACTERS
from skerry_contract.errors import WireError

logger = logging.getLogger(__name__)

#: How often a node that works says that it is alive (seconds); the SuperLink calls it offline after 40.
ALIVE_S = 8.0
#: How often somebody looks whether the node has to go (seconds).
WATCH_S = 0.5
#: A response without an instruction that came sooner than this is followed by a pause (seconds).
HASTE_S = 0.2


@dataclass
class _Answer:
    """What is still to be left at the SuperLink."""

    message_id: str
    frame: bytes
    blobs: dict[str, bytes]
    expires: float
    put: set[str] = field(default_factory=set)


class LaneNode:
    """Connects a worker to a SuperLink for as long as it is told to; owns its watching thread."""

    def __init__(
        self,
        address: str,
        key: ec.EllipticCurvePrivateKey,
        worker: Worker,
        *,
        tls: Callable[[], ssl.SSLContext],
        on_link: Callable[[int, str], None] = lambda node_id, detail: None,
        clock: ServerClock | None = None,
        alive_s: float = ALIVE_S,
        watch_s: float = WATCH_S,
    ) -> None:
        """Prepare a node.

        Args:
            address: host:port of the SuperLink.
            key: The device's node key (EC P-384), whose public half the control plane has registered.
            worker: Carries out instructions.
            tls: Makes the context of a connection.
            on_link: Hears the node's identifier, 0 while there is none, and what it waits for.
            clock: Tells the SuperLink's time; made from this machine's clocks if there is none.
            alive_s: See :data:`ALIVE_S`.
            watch_s: See :data:`WATCH_S`.
        """
        self._address = address
        self._key = key
        self._worker = worker
        self._tls = tls
        self._on_link = on_link
        self._clock = clock or ServerClock()
        self._alive_s, self._watch_s = alive_s, watch_s
        self._answer: _Answer | None = None
        #: Held while the worker works, and while ``leave`` looks at what the worker uses.
        self._working = threading.Lock()

    def run(self, stop: threading.Event, leave: Callable[[], bool] = lambda: False) -> None:
        """Serve until ``stop`` is set or ``leave()`` is true; reconnects for ever; detaches at the end.

        Raises:
            LaneAbsentError: The SuperLink has no lane.
            DeviceError: The device has no authority to trust.
        """
        away = Backoff(first_s=0.2, last_s=AWAY_LAST_S)
        unknown = Backoff(first_s=UNKNOWN_FIRST_S, last_s=UNKNOWN_LAST_S)
        while not stop.is_set() and not leave():
            client = self._client()
            try:
                node_id = client.attach()
                logger.info("node %d of the SuperLink at %s", node_id, self._address)
                away.reset()
                unknown.reset()
                self._serve(client, stop, leave)
                return
            except NotRegisteredError:
                delay = unknown.next_s()
                logger.info("the SuperLink at %s does not admit this device's key", self._address)
                self._on_link(0, f"SuperLink {self._address} does not admit this device's key (yet); it waits")
            except LinkError as error:
                delay = away.next_s()
                logger.info("the SuperLink at %s is away: %s", self._address, error)
                self._on_link(0, f"SuperLink {self._address} is away: {error}")
            finally:
                client.close()
            pause(delay, stop, leave)

    def _client(self) -> LaneClient:
        return LaneClient(self._address, self._key, tls=self._tls, clock=self._clock)

    def _serve(self, client: LaneClient, stop: threading.Event, leave: Callable[[], bool]) -> None:
        """Exchange until the node has to go; raises NotRegisteredError."""
        going, ended = threading.Event(), threading.Event()
        watch = threading.Thread(
            target=self._watch, args=(client, stop, leave, going, ended), name="lane-watch", daemon=True
        )
        watch.start()
        try:
            self._on_link(client.node_id, "")
            self._loop(client, lambda: going.is_set() or stop.is_set(), going)
        finally:
            ended.set()
            watch.join()
            self._part(client)
            self._on_link(0, "")

    def _watch(
        self,
        client: LaneClient,
        stop: threading.Event,
        leave: Callable[[], bool],
        going: threading.Event,
        ended: threading.Event,
    ) -> None:
        """Ends the wait when the node has to go, and says that it is alive while it works."""
        other = self._client()
        other.node_id = client.node_id
        said = time.monotonic()
        while not ended.wait(self._watch_s):
            if self._working.acquire(blocking=False):
                try:
                    if stop.is_set() or going.is_set() or leave():
                        going.set()
                        client.interrupt()
                finally:
                    self._working.release()
                said = time.monotonic()
                other.close()
            elif time.monotonic() - said > self._alive_s:
                said = time.monotonic()
                try:
                    other.exchange(wait_s=-1.0)
                except (LinkError, NotRegisteredError) as error:
                    logger.debug("heartbeat failed: %s", error)  # the next exchange meets the same SuperLink
            if stop.is_set():
                going.set()
        other.close()

    def _loop(self, client: LaneClient, has_to_go: Callable[[], bool], going: threading.Event) -> None:
        away = Backoff(first_s=0.1, last_s=AWAY_LAST_S)
        while not has_to_go():
            asked = time.monotonic()
            try:
                message = self._exchange(client, lane.WAIT_S)
                if message is not None:
                    with self._working:
                        self._answer = self._carry_out(client, message)
            except LinkError as error:
                if has_to_go():
                    return
                delay = away.next_s()
                logger.info("the SuperLink at %s does not answer (%s); again in %.1f s", self._address, error, delay)
                self._on_link(client.node_id, f"SuperLink {self._address} does not answer")
                going.wait(delay)
                continue
            if away.reset():
                self._on_link(client.node_id, "")
            if message is None and time.monotonic() - asked < HASTE_S and not has_to_go():
                going.wait(HASTE_S)

    def _exchange(self, client: LaneClient, wait_s: float) -> Message | None:
        """Leave the answer that is still here, and wait."""
        answer = self._answer
        if answer is not None and time.monotonic() > answer.expires:
            logger.warning("the answer to message %s is given up: it came too late", answer.message_id[:12])
            answer = self._answer = None
        if answer is None:
            return client.exchange(wait_s=wait_s)[1]
        try:
            for sha256, data in answer.blobs.items():
                if sha256 not in answer.put:
                    client.put_blob(sha256, data, message_id=answer.message_id)
                    answer.put.add(sha256)
            accepted, message = client.exchange(wait_s=wait_s, message_id=answer.message_id, answer=answer.frame)
        except RunEndedError:
            accepted, message = False, None
        except BlobMissingError as error:
            answer.put.clear()
            raise LinkError(str(error)) from error
        if not accepted:
            logger.info("nobody waits for the answer to message %s any more", answer.message_id[:12])
        self._answer = None
        return message

    def _part(self, client: LaneClient) -> None:
        """Leave what is still here, and go."""
        try:
            client.close()  # it may have been interrupted
            if self._answer is not None:
                self._exchange(client, 0.0)
            client.detach()
        except (LinkError, NotRegisteredError, RunEndedError) as error:
            logger.info("the SuperLink was not told that node %d goes: %s", client.node_id, error)

    def _carry_out(self, client: LaneClient, message: Message) -> _Answer:
        """The answer to an instruction; whatever goes wrong becomes an error with its reason.

        Raises:
            LinkError: Its parameters could not be fetched; it comes again.
        """
        expires = time.monotonic() + message.left_s
        try:
            fields = lane.unpack_fields(message.frame, read=lambda sha256, size: fetch(client, sha256, size))
            frame, blobs = lane.pack_fields(self._worker.handle(message.kind, fields))
        except (RefusedError, WireError) as error:
            final = not isinstance(error, RefusedError) or error.final
            logger.warning("refused: %s", error)
            frame, blobs = _error(str(error), final), {}
        except LinkError:
            raise
        except Exception as error:  # the node must outlive a defect of the trainer, and the server must hear of it
            logger.exception("the worker failed")
            frame, blobs = _error(f"{type(error).__name__}: {error}", False), {}
        return _Answer(message.message_id, frame, blobs, expires)


def _error(reason: str, refused: bool) -> bytes:
    return lane.pack({"error": {"reason": reason[:REASON_CHARACTERS], "refused": refused}})
