"""Renews this device's certificate: one thread, owned by the control process.

The decisions are :mod:`skerry_agent.identity.renewal_machine`'s, the files those of
:mod:`skerry_agent.identity.identity_files`. Whatever fails, the old pair stays and another attempt is made, after full
jitter; that goes on for ever, because a device in a field has nobody to start it again.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from skerry_agent.config import AgentConfig, AgentLayout
from skerry_agent.errors import AgentError
from skerry_agent.files import DISK, Disk
from skerry_agent.identity.certificate import (
    CertificateFacts,
    check_certificate,
    make_request,
    prove_possession,
    public_half,
    request_to_pem,
)
from skerry_agent.identity.device_api import DeviceApi, RefusedError
from skerry_agent.identity.identity_files import Identity, IdentityFiles
from skerry_agent.identity.renewal_machine import Event, State, advance, look, pause_s
from skerry_agent.identity.tls import server_context
from skerry_agent.link.backoff import Backoff
from skerry_agent.trusted_clock import TrustedClock

log = logging.getLogger(__name__)
#: Longest time between two looks at a clock that may jump (seconds).
LOOK_S = 60.0
#: A refusal is a decision of people: the waits after it are so much longer.
REFUSED_TIMES = 12.0
Ask = Callable[[Mapping[str, Any], bytes], Mapping[str, Any]]


class Renewer:
    """Keeps the certificate of one device alive."""

    def __init__(
        self,
        layout: AgentLayout,
        config: AgentConfig,
        clock: TrustedClock,
        *,
        on_renewed: Callable[[], None],
        ask: Ask | None = None,
        disk: Disk = DISK,
        backoff: Backoff | None = None,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """Read the identity and finish a renewal that was interrupted.

        Args:
            layout: Data directory; this is the only writer of certificate and key.
            config: Of the device.
            clock: What time it is; learns when certificates were issued.
            on_renewed: Called after a renewal, on the thread that calls :meth:`step`.
            ask: Sends a renewal (document, authority PEM) and returns the answer; by default to the device API.
            disk: File system.
            backoff: Waits between attempts.
            monotonic: Seconds, for waits.

        Raises:
            DeviceError: The device has no whole identity.
        """
        self._files = IdentityFiles(layout, disk=disk)
        self._config = config
        self._clock = clock
        self._on_renewed = on_renewed
        self._ask = ask or self._ask_device_api
        self._backoff = backoff or Backoff(
            layout.root / "link" / "renewal.json", ceiling_s=config.reconnect_seconds, disk=disk
        )
        self._monotonic = monotonic
        self._identity = self._files.recover()
        self._state = State.VALID
        self._ask_at = monotonic() + self._backoff.delay()
        self._doubted = False
        self._wake = threading.Event()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="renewal", daemon=True)
        self._learn()

    @property
    def state(self) -> State:
        """Where the certificate is."""
        return self._state

    @property
    def facts(self) -> CertificateFacts:
        """What it says."""
        return self._identity.facts

    def start(self) -> None:
        """Begin to watch over the certificate."""
        self._thread.start()

    def stop(self, *, deadline_s: float = 5.0) -> None:
        """End the thread; one that waits for the control plane's answer is not waited for longer than the deadline."""
        self._stopping.set()
        self._wake.set()
        if self._thread.ident is not None:
            self._thread.join(timeout=deadline_s)

    def doubt(self) -> None:
        """The broker refused the certificate again and again: it may have ended without this clock knowing."""
        self._doubted = True
        self._wake.set()

    def step(self) -> float:
        """Do what is due.

        Returns:
            Seconds after which to call again.
        """
        self._look()
        if self._state is State.VALID:
            return LOOK_S
        wait_s = self._ask_at - self._monotonic()
        if wait_s > 0:
            return min(LOOK_S, wait_s)
        self._advance(Event.ASKED)
        try:
            self._renew()
        except Exception as error:
            # Whatever it is, a thread that dies of it would let the certificate end for good.
            self._backoff.failed()
            wait_s = self._backoff.delay() * (REFUSED_TIMES if isinstance(error, RefusedError) else 1.0)
            self._ask_at = self._monotonic() + wait_s
            self._advance(Event.FAILED)
            self._look()
            unexpected = not isinstance(error, AgentError | OSError | ValueError)
            log.warning(
                "the certificate was not renewed, next attempt in %.0f s: %s", wait_s, error, exc_info=unexpected
            )
            return min(LOOK_S, wait_s)
        self._backoff.succeeded()
        self._doubted = False
        self._ask_at = self._monotonic() + pause_s(self._identity.facts)
        self._advance(Event.RENEWED)
        log.info("certificate %s until %s", self._identity.facts.serial, self._identity.facts.not_after)
        self._on_renewed()
        return LOOK_S

    def _look(self) -> None:
        event = look(self._state, self._identity.facts, self._clock.now(), doubted=self._doubted)
        if event is not None:
            self._advance(event)

    def _renew(self) -> None:
        identity = self._identity
        key = self._files.next_key()
        request = make_request(key, self._config.device_id)
        document = {
            "certificate": identity.certificate_pem.decode("ascii"),
            "csr": request_to_pem(request),
            "signature": prove_possession(identity.key, request),
        }
        answer = self._ask(document, identity.authority_pem)
        text = answer.get("certificate")
        if not isinstance(text, str):
            raise ValueError("the control plane answered without a certificate")
        certificate_pem = text.encode()
        check_certificate(
            certificate_pem,
            identity.authority_pem,
            device_id=self._config.device_id,
            public_key=public_half(key),
        )
        self._identity = self._files.replace(certificate_pem)
        self._learn()

    def _ask_device_api(self, document: Mapping[str, Any], authority_pem: bytes) -> Mapping[str, Any]:
        context = server_context(authority_pem, lambda: self._clock.floor_ms)
        return DeviceApi(self._config.device_api, context).renew(document)

    def _learn(self) -> None:
        # The authority signed that this moment had come.
        self._clock.learn(issued_ms(self._identity))

    def _advance(self, event: Event) -> None:
        before, self._state = self._state, advance(self._state, event)
        log.info("certificate %s: %s -> %s", event.value, before.value, self._state.value)

    def _run(self) -> None:
        while not self._stopping.is_set():
            wait_s = self.step()
            self._wake.wait(wait_s)
            self._wake.clear()


def issued_ms(identity: Identity) -> int:
    """When the certificate began (Unix ms): a moment that the authority's signature vouches for."""
    return round(identity.facts.not_before.timestamp() * 1000)
