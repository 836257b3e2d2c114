"""The serving process, seen from control: its status over the unix socket, and the request to answer with a slot.

No call waits: a question is sent in one turn of the loop and its answer looked for in a later one.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable

from skerry_agent.config import AgentLayout
from skerry_agent.local_call import LocalCall, LocalCallError
from skerry_agent.socket_address import SocketAddress
from skerry_agent.update.decisions import Sight
from skerry_agent.update.ports import ActivationResult
from skerry_agent.update.slots import SlotName
from skerry_contract.errors import WireError
from skerry_contract.v1.agent_local_pb2 import ActivateRequest, ServingStatus, ServingStatusRequest
from skerry_contract.v1.serving_admin_pb2 import AdminReply, AdminRequest
from skerry_contract.wire import parse_message

log = logging.getLogger(__name__)
#: Time between two looks, longest wait for one, and age at which one is not believed any more (seconds).
LOOK_S = 1.0
STATUS_S = 5.0
STALE_S = 15.0
#: Longest wait for serving to load, check and warm up a release (seconds).
ACTIVATE_S = 120.0
#: Answers that blame the release or the request; after any other one serving is asked again.
_REFUSALS = frozenset({AdminReply.CODE_FAILED_PRECONDITION, AdminReply.CODE_INVALID_ARGUMENT})


class _Question:
    """A question to serving, and its answer once it is there."""

    def __init__(self, address: SocketAddress, request: AdminRequest, timeout_s: float) -> None:
        self._call = LocalCall(address.path, request.SerializeToString(), timeout_s=timeout_s)

    def poll(self) -> AdminReply | None:
        """The answer, once it is there or there will be none."""
        try:
            data = self._call.poll()
            if data is None:
                return None
            reply = parse_message(AdminReply, data)
        except (LocalCallError, WireError) as error:
            reply = AdminReply(code=AdminReply.CODE_UNAVAILABLE, detail=str(error))
        self._call.close()
        return reply

    def close(self) -> None:
        """Give it up."""
        self._call.close()


class ServingClient:
    """See :class:`skerry_agent.update.ports.Serving`; owned by the control loop."""

    def __init__(self, layout: AgentLayout, *, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._layout = layout
        self._monotonic = monotonic
        layout.run.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._address = SocketAddress(layout.serving_socket)
        self._looking: _Question | None = None
        self._look_at = 0.0
        self._status: ServingStatus | None = None
        self._status_at = 0.0
        self._activating: _Question | None = None
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
        reply = None if self._looking is None else self._looking.poll()
        if reply is not None:
            self._looking = None
            if reply.code == AdminReply.CODE_OK:
                self._status, self._status_at = reply.status, now
            else:
                self._status = None
        if self._looking is None and now >= self._look_at:
            self._look_at = now + LOOK_S
            self._looking = _Question(self._address, AdminRequest(status=ServingStatusRequest()), STATUS_S)

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
            self._activating.close()
        self._wanted = release_id
        request = AdminRequest(activate=ActivateRequest(slot=slot, release_id=release_id))
        self._activating = _Question(self._address, request, ACTIVATE_S)

    def activation(self) -> ActivationResult | None:
        """See :class:`Serving`."""
        reply = None if self._activating is None else self._activating.poll()
        if reply is None:
            return None
        self._activating = None
        if self._looking is not None:
            # It may have been answered before the switch.
            self._looking.close()
            self._looking = None
        self._status = None
        if reply.code != AdminReply.CODE_OK:
            return ActivationResult(False, reply.code in _REFUSALS, reply.detail[:300])
        status = reply.status
        if status.release_id != self._wanted:
            return ActivationResult(False, True, f"it answers with {status.release_id or 'no release'}")
        self._status, self._status_at = status, self._monotonic()
        return ActivationResult(True, False)

    def close(self) -> None:
        """Give up what is running."""
        for question in (self._looking, self._activating):
            if question is not None:
                question.close()
        self._address.close()

    def _pid(self) -> int:
        try:
            return int(json.loads(self._layout.serving_file.read_bytes())["pid"])
        except (OSError, ValueError, TypeError, KeyError):
            return 0
