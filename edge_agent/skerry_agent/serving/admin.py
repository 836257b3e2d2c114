"""How the control process activates a slot and asks for the status, over a unix socket.

The socket can be opened by its own user only (mode 0600), which is all the authentication there is. Its threads leave
the real-time class of the doors: a release that is built and measured must not take a core from answers.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Protocol, cast

from skerry_agent.errors import ArtifactError, DeviceError
from skerry_agent.isolation import leave_realtime
from skerry_agent.local_call import answer_one
from skerry_agent.socket_address import SocketAddress
from skerry_agent.update.slots import SlotName
from skerry_contract.errors import WireError
from skerry_contract.v1.agent_local_pb2 import ServingStatus
from skerry_contract.v1.serving_admin_pb2 import AdminReply, AdminRequest
from skerry_contract.wire import parse_message

_log = logging.getLogger(__name__)

#: Questions that are answered at the same time, and those that may wait.
THREADS = 2
WAITING = 8
#: How long a question may take to come, and an answer to go (s).
PATIENCE_S = 5.0
#: How often the door looks whether it must close (s).
LOOK_S = 0.2
REQUEST_BYTES = 4096


class Activates(Protocol):
    """What the door needs of an engine."""

    def activate(self, slot: SlotName, *, release_id: str = "") -> object:
        """Let the release in a slot answer; raises ArtifactError if it is refused, DeviceError if that must wait."""
        ...


class ServingAdmin:
    """Activates slots and tells the status.

    Args:
        engine: Whose releases are swapped.
        status: Gives the status message.
        clear_up: Called after each activation, refused ones as well: loading a release leaves much behind.
    """

    def __init__(
        self, engine: Activates, status: Callable[[], ServingStatus], *, clear_up: Callable[[], None] = lambda: None
    ) -> None:
        self._engine = engine
        self._status = status
        self._clear_up = clear_up

    def answer(self, data: bytes) -> bytes:
        """The serialized AdminReply to a serialized AdminRequest; never raises."""
        return self._answer(data).SerializeToString()

    def _answer(self, data: bytes) -> AdminReply:
        try:
            request = parse_message(AdminRequest, data, limit=REQUEST_BYTES)
            match request.WhichOneof("body"):
                case "activate":
                    self._activate(request.activate.slot, request.activate.release_id)
                case "status":
                    pass
                case _:
                    raise WireError("body", expected="activate or status", got="none of them")
            return AdminReply(status=self._status())
        except WireError as error:
            return AdminReply(code=AdminReply.CODE_INVALID_ARGUMENT, detail=str(error))
        except ArtifactError as error:
            _log.error("activation is refused: %s", error)
            return AdminReply(code=AdminReply.CODE_FAILED_PRECONDITION, detail=str(error))
        except DeviceError as error:
            return AdminReply(code=AdminReply.CODE_UNAVAILABLE, detail=str(error))
        except Exception as error:
            _log.exception("a question of control cannot be answered")
            return AdminReply(code=AdminReply.CODE_UNAVAILABLE, detail=f"{type(error).__name__}: {error}"[:500])

    def _activate(self, slot: str, release_id: str) -> None:
        if slot not in ("a", "b"):
            raise WireError("slot", expected="a or b", got=slot[:20])
        try:
            self._engine.activate(cast("SlotName", slot), release_id=release_id)
        finally:
            self._clear_up()


class AdminDoor:
    """Listens on a unix socket; owns its threads.

    Args:
        answer: Serialized question to serialized answer; must not raise.
        path: The socket; a stale one is replaced.

    Raises:
        DeviceError: The path cannot be bound.
    """

    def __init__(self, answer: Callable[[bytes], bytes], path: Path) -> None:
        self._answer = answer
        self._path = path
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        self._address = SocketAddress(path)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        previous = os.umask(0o177)
        try:
            self._socket.bind(str(self._address.path))
            self._socket.listen(WAITING)
        except OSError as error:
            self._socket.close()
            self._address.close()
            raise DeviceError(f"the socket {path} cannot be bound", remedy="check the owner of its folder") from error
        finally:
            os.umask(previous)
        self._socket.settimeout(LOOK_S)
        self._room = threading.Semaphore(THREADS + WAITING)
        self._stopping = threading.Event()
        self._pool = ThreadPoolExecutor(THREADS, thread_name_prefix="admin-door", initializer=leave_realtime)
        self._thread = threading.Thread(target=self._listen, name="admin-door", daemon=True)

    def start(self) -> None:
        """Answer."""
        self._thread.start()

    def stop(self) -> None:
        """Finish what runs, end the threads, remove the socket."""
        self._stopping.set()
        if self._thread.ident is not None:
            self._thread.join()
        self._pool.shutdown(cancel_futures=True)
        self._socket.close()
        self._path.unlink(missing_ok=True)
        self._address.close()

    def _listen(self) -> None:
        while not self._stopping.is_set():
            with contextlib.suppress(TimeoutError):
                connection, _ = self._socket.accept()
                if self._room.acquire(blocking=False):
                    self._pool.submit(self._serve, connection)
                else:
                    connection.close()

    def _serve(self, connection: socket.socket) -> None:
        try:
            answer_one(connection, self._answer, timeout_s=PATIENCE_S)
        except OSError as error:
            _log.info("a question of control was not answered: %s", error)
        finally:
            self._room.release()
