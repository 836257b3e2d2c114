"""The serving process, seen from control: its status over the unix socket, and the request to answer with a slot.

No call waits: gRPC futures are started in one turn of the loop and looked at in a later one.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable
from typing import Any

import grpc

from skerry_agent.config import AgentLayout
from skerry_agent.socket_address import SocketAddress
from skerry_agent.update.decisions import Sight
from skerry_agent.update.ports import ActivationResult
from skerry_agent.update.slots import SlotName
from skerry_contract.v1.agent_local_pb2 import ActivateRequest, ServingStatus, ServingStatusRequest
from skerry_contract.v1.agent_local_pb2_grpc import ServingAdminStub

log = logging.getLogger(__name__)
#: Time between two looks, longest wait for one, and age at which one is not believed any more (seconds).
LOOK_S = 1.0
STATUS_S = 5.0
STALE_S = 15.0
#: Longest wait for serving to load, check and warm up a release (seconds).
ACTIVATE_S = 120.0
_OPTIONS = [("grpc.initial_reconnect_backoff_ms", 200), ("grpc.max_reconnect_backoff_ms", 2_000)]
#: Answers that blame the release or the request; after any other one serving is asked again.
_REFUSALS = frozenset({"FAILED_PRECONDITION", "INVALID_ARGUMENT"})


class ServingClient:
    """See :class:`skerry_agent.update.ports.Serving`; owned by the control loop."""

    def __init__(self, layout: AgentLayout, *, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._layout = layout
        self._monotonic = monotonic
        layout.run.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._address = SocketAddress(layout.serving_socket)
        self._channel: Any = grpc.insecure_channel(f"unix:{self._address.path}", options=_OPTIONS)
        create_stub: Callable[[Any], Any] = ServingAdminStub
        self._stub = create_stub(self._channel)
        self._looking: Any = None
        self._look_at = 0.0
        self._status: ServingStatus | None = None
        self._status_at = 0.0
        self._activating: Any = None
        self._wanted = ""

    @property
    def status(self) -> ServingStatus | None:
        """What serving said of itself lately; None if it does not answer."""
        if self._status is not None and self._monotonic() - self._status_at > STALE_S:
            self._status = None
        return self._status

    def step(self) -> None:
        """Look at running calls and start the next."""
        now = self._monotonic()
        if self._looking is not None and self._looking.done():
            call, self._looking = self._looking, None
            if call.code() is grpc.StatusCode.OK:
                self._status, self._status_at = call.result(), now
            else:
                self._status = None
        if self._looking is None and now >= self._look_at:
            self._look_at = now + LOOK_S
            self._looking = self._stub.Status.future(ServingStatusRequest(), timeout=STATUS_S)

    def sight(self) -> Sight | None:
        """See :class:`Serving`."""
        self.step()
        status = self.status
        if status is None:
            return None
        return Sight(status.release_id, self._pid(), status.release_requests, status.release_errors)

    def activate(self, slot: SlotName, release_id: str) -> None:
        """See :class:`Serving`."""
        if self._activating is not None:
            self._activating.cancel()
        self._wanted = release_id
        self._activating = self._stub.Activate.future(
            ActivateRequest(slot=slot, release_id=release_id), timeout=ACTIVATE_S
        )

    def activation(self) -> ActivationResult | None:
        """See :class:`Serving`."""
        call = self._activating
        if call is None or not call.done():
            return None
        self._activating = None
        if self._looking is not None:
            # It may have been answered before the switch.
            self._looking.cancel()
            self._looking = None
        self._status = None
        if call.code() is not grpc.StatusCode.OK:
            code = call.code().name
            return ActivationResult(False, code in _REFUSALS, f"{code}: {call.details()}"[:300])
        status: ServingStatus = call.result()
        if status.release_id != self._wanted:
            return ActivationResult(False, True, f"it answers with {status.release_id or 'no release'}")
        self._status, self._status_at = status, self._monotonic()
        return ActivationResult(True, False)

    def close(self) -> None:
        """Cancel what is running and close the channel."""
        self._channel.close()
        self._address.close()

    def _pid(self) -> int:
        try:
            return int(json.loads(self._layout.serving_file.read_bytes())["pid"])
        except (OSError, ValueError, TypeError, KeyError):
            return 0
