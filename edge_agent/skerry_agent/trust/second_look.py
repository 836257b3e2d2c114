"""A desired state signed by a key that this device does not know yet is looked at again when it knows more keys."""

from __future__ import annotations

import logging
from collections.abc import Callable

from skerry_agent.trust.keyring import Keyring
from skerry_contract.errors import ContractError
from skerry_contract.v1.common_pb2 import SignedEnvelope
from skerry_contract.v1.device_pb2 import DesiredState
from skerry_contract.wire import parse_message

log = logging.getLogger(__name__)


class SecondLook:
    """Stands before the update machine; used by the control loop. Keeps at most one desired state, the newest."""

    def __init__(self, keyring: Keyring, *, offer: Callable[[bytes], None], refresh: Callable[[], None]) -> None:
        """Nothing is kept yet.

        Args:
            keyring: Keys that may sign instructions.
            offer: The update machine; verifies for itself.
            refresh: Has the signed metadata looked at.
        """
        self._keyring = keyring
        self._offer = offer
        self._refresh = refresh
        self._kept: bytes | None = None
        self._state = keyring.state

    def desired(self, payload: bytes) -> None:
        """Pass on a desired state from the wire; keep it too if its signer is not known."""
        self._kept = None
        self._state = self._keyring.state
        if self._unknown(payload):
            log.info("a desired state is signed by a key that is not known: the signed metadata are asked")
            self._kept = payload
            self._refresh()
        self._offer(payload)

    def step(self) -> None:
        """Offer the kept one again if the keys have changed since."""
        if self._kept is not None and self._keyring.state != self._state:
            self.desired(self._kept)

    def _unknown(self, payload: bytes) -> bool:
        try:
            envelope = parse_message(SignedEnvelope, payload)
            release = parse_message(DesiredState, envelope.payload).release
        except ContractError:
            return False
        known = self._keyring.knows_signer
        return not known(envelope) or (bool(release.signatures) and not known(release))
