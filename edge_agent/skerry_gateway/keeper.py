"""What a gateway does beside its rounds, on one thread: certificate, report, roster, node keys.

Each step does what it can: while the control plane is away the newest roster holds and keys are still kept; while the
site's SuperLink is away the report goes out all the same. It names the gateway's node only while that SuperLink
answers: the control plane sends no device to a gateway that could not take it in.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any, Protocol

from skerry_agent.errors import AgentError
from skerry_contract.errors import WireError
from skerry_gateway import server_certificate
from skerry_gateway.config import GatewayLayout
from skerry_gateway.roster import Roster, RosterFile
from skerry_gateway.server_certificate import CertificateError
from skerry_gateway.site_keys import SiteKeys
from skerry_gateway.status import GatewayStatus
from skerry_server.federation.flower.node_registry import RegistryError

logger = logging.getLogger(__name__)

#: How often a gateway reports, and how often the keys are looked at (seconds).
REPORT_S = 10.0
#: The same while the site's SuperLink does not answer (seconds): it starts, or starts again.
STARTING_S = 2.0
#: How long the thread is waited for when the gateway stops (seconds).
JOIN_S = 5.0


class ControlPlane(Protocol):
    """The control plane's device API: :class:`skerry_agent.identity.device_api.DeviceApi`."""

    def site(self, action: str, document: Mapping[str, Any]) -> dict[str, Any]:
        """Ask; raises AgentError."""
        ...


class Keeper:
    """Owns its thread."""

    def __init__(
        self,
        layout: GatewayLayout,
        gateway_id: str,
        open_api: Callable[[], ControlPlane],
        roster: RosterFile,
        keys: SiteKeys,
        status: GatewayStatus,
        *,
        now: Callable[[], datetime],
        restart_superlink: Callable[[], None],
        report_s: float = REPORT_S,
    ) -> None:
        """Prepare.

        Args:
            layout: Of the gateway.
            gateway_id: Who this is.
            open_api: The device API with the identity of this moment; raises AgentError.
            roster: Takes what comes.
            keys: Of the site's SuperLink.
            status: What is reported.
            now: The time that this gateway believes.
            restart_superlink: Called after a new certificate.
            report_s: See :data:`REPORT_S`.
        """
        self._layout = layout
        self._gateway_id = gateway_id
        self._open_api = open_api
        self._roster = roster
        self._keys = keys
        self._status = status
        self._now = now
        self._restart_superlink = restart_superlink
        self._report_s = report_s
        self._trouble = ""
        #: Whether the site's SuperLink answered in the last step.
        self._serving = False
        self._wake = threading.Event()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="site-keeper", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def hurry(self) -> None:
        """Take a step now: the node is connected, or a round was answered."""
        self._wake.set()

    def stop(self) -> None:
        """End the thread."""
        self._stopping.set()
        self._wake.set()
        if self._thread.ident is not None:
            self._thread.join(JOIN_S)

    def step(self) -> None:
        """Do once what is to be done."""
        before, troubles = self._serving, []
        self._serving = False
        for part in (self._report, self._certificate, self._register):
            trouble = self._try(part, serving=before)
            troubles += [trouble] if trouble else []
        if self._serving != before and not troubles:
            self._try(self._report, serving=self._serving)
        trouble = "; ".join(troubles)
        if trouble != self._trouble:
            logger.warning("%s", trouble) if trouble else logger.info("everything is there again")
            self._trouble = trouble

    def _try(self, part: Callable[[bool], None], *, serving: bool) -> str:
        """What went wrong; empty for nothing."""
        try:
            part(serving)
        except (AgentError, WireError, CertificateError, RegistryError, OSError, ValueError) as error:
            return str(error) or type(error).__name__
        return ""

    def _report(self, serving: bool) -> None:
        state, kept = self._status.state, self._roster.roster
        newest = state.round
        answer = self._open_api().site(
            "report",
            {
                "node_id": state.node_id if serving else "0",
                "roster": kept.digest,
                "connected": state.connected,
                "campaign_id": newest.campaign_id,
                "round": newest.round,
                "asked": newest.asked,
                "counted": newest.counted,
            },
        )
        document, digest = answer.get("roster"), answer.get("digest")
        if document is None:
            return
        if not isinstance(digest, str):
            raise WireError("digest", expected="text", got=type(digest).__name__)
        roster = self._roster.replace(document, digest=digest)
        logger.info("site %s: %d devices, %d campaigns", roster.site, len(roster.keys), len(roster.campaigns))

    def _certificate(self, serving: bool) -> None:
        host = server_certificate.same_host(server_certificate.host_of(self._roster.roster.address))
        if server_certificate.fits(self._layout, host, self._now()):
            return
        if not host:
            raise WireError("gateway-address", expected="an address given by the operator", got="none")
        server_certificate.renew(self._layout, self._gateway_id, host, self._ask_certificate)
        self._restart_superlink()

    def _ask_certificate(self, csr: str) -> str:
        certificate = self._open_api().site("certificate", {"csr": csr}).get("certificate")
        if not isinstance(certificate, str):
            raise CertificateError("the control plane answered without a certificate")
        return certificate

    def _register(self, serving: bool) -> None:
        roster: Roster = self._roster.roster
        self._status.change(site=roster.site, address=roster.address, devices=len(roster.keys))
        self._status.change(connected=self._keys.step(roster.keys))
        self._serving = True

    def _run(self) -> None:
        while not self._stopping.is_set():
            self._wake.clear()
            try:
                self.step()
            except Exception:  # a thread that dies of a defect would leave the site with an old roster for good
                logger.exception("the keeper's step failed")
            self._wake.wait(self._report_s if self._serving else min(STARTING_S, self._report_s))
