"""ServingAdmin: how the control process activates a slot and asks for the status, over a unix socket.

The socket can be opened by its own user only (mode 0600), which is all the authentication there is.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast

import grpc

from skerry_agent.engine.engine import Engine
from skerry_agent.errors import ArtifactError, DeviceError
from skerry_agent.socket_address import SocketAddress
from skerry_agent.update.slots import SlotName
from skerry_contract.v1.agent_local_pb2 import ActivateRequest, ServingStatus, ServingStatusRequest
from skerry_contract.v1.agent_local_pb2_grpc import ServingAdminServicer, add_ServingAdminServicer_to_server

_log = logging.getLogger(__name__)


class ServingAdmin(ServingAdminServicer):
    """Activates slots and tells the status.

    Args:
        engine: Whose releases are swapped.
        status: Gives the status message.
    """

    def __init__(self, engine: Engine, status: Callable[[], ServingStatus]) -> None:
        self._engine = engine
        self._status = status

    def Activate(self, request: ActivateRequest, context: Any) -> ServingStatus:  # noqa: N802  (name of the contract)
        """Load, check and swap; FAILED_PRECONDITION with the reason if the release is refused."""
        if request.slot not in ("a", "b"):
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"slot: expected a or b, got {request.slot[:20]!r}")
        try:
            self._engine.activate(cast("SlotName", request.slot), release_id=request.release_id)
        except ArtifactError as error:
            _log.error("activation of slot %s is refused: %s", request.slot, error)
            context.abort(grpc.StatusCode.FAILED_PRECONDITION, str(error))
        except DeviceError as error:
            context.abort(grpc.StatusCode.UNAVAILABLE, str(error))
        return self._status()

    def Status(self, request: ServingStatusRequest, context: Any) -> ServingStatus:  # noqa: N802
        """The status."""
        return self._status()


class AdminDoor:
    """The server of ServingAdmin.

    Args:
        servicer: Answers.
        path: Unix socket; a stale one is replaced.

    Raises:
        DeviceError: The path cannot be bound.
    """

    def __init__(self, servicer: ServingAdmin, path: Path) -> None:
        self._path = path
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        self._address = SocketAddress(path)
        self._pool = ThreadPoolExecutor(2, thread_name_prefix="admin-door")
        self._server: Any = grpc.server(self._pool, maximum_concurrent_rpcs=8)
        register: Callable[[ServingAdmin, Any], None] = add_ServingAdminServicer_to_server
        register(servicer, self._server)
        previous = os.umask(0o177)
        try:
            self._server.add_insecure_port(f"unix:{self._address.path}")
        except RuntimeError as error:
            self._pool.shutdown()
            self._address.close()
            raise DeviceError(f"the socket {path} cannot be bound", remedy="check the owner of its folder") from error
        finally:
            os.umask(previous)

    def start(self) -> None:
        """Answer."""
        self._server.start()

    def stop(self) -> None:
        """Finish what runs and remove the socket."""
        self._server.stop(2.0).wait(5.0)
        self._pool.shutdown()
        self._path.unlink(missing_ok=True)
        self._address.close()
