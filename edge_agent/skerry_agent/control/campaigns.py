"""Answers invitations to campaigns, once each, through the outbox. Pure but for the callable that sends."""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from skerry_agent.policy.eligibility import Conditions, Limits, invitation_obstacle
from skerry_contract.errors import WireError
from skerry_contract.identifiers import check_name
from skerry_contract.v1.telemetry_pb2 import CampaignInvitation, CampaignResponse, Command
from skerry_contract.wire import parse_message

log = logging.getLogger(__name__)
#: How long an obstacle that may pass is waited out before the device declines (seconds).
PATIENCE_S = 15.0
#: Invitations that wait, and answered ones that are remembered so that a repeated command is not answered twice.
WAITING = 16
REMEMBERED = 256


@dataclass(frozen=True)
class _Waiting:
    invitation: CampaignInvitation
    decline_at: float


class Invitations:
    """Owned by the control loop; times are monotonic seconds unless they end in ``_ms``."""

    def __init__(
        self,
        limits: Limits,
        *,
        respond: Callable[[CampaignResponse], bool],
        on_accepted: Callable[[CampaignInvitation], None] = lambda invitation: None,
    ) -> None:
        """Prepare.

        Args:
            limits: Of this device.
            respond: Puts an answer into the outbox; if it says False, the invitation is answered in a later step.
            on_accepted: Hears of an invitation before it is accepted; an OSError has it answered in a later step.
        """
        self._on_accepted = on_accepted
        self._limits = limits
        self._respond = respond
        self._waiting: OrderedDict[str, _Waiting] = OrderedDict()
        self._answered: OrderedDict[str, None] = OrderedDict()

    def command(self, payload: bytes, *, now_s: float, now_ms: int) -> None:
        """Take in a Command from the wire.

        Raises:
            WireError: Malformed, or more invitations wait than a device keeps.
        """
        command = parse_message(Command, payload)
        if command.expires_unix_ms and now_ms > command.expires_unix_ms:
            log.info("command %s has expired", command.command_id[:64])
            return
        if command.WhichOneof("body") != "invitation":
            raise WireError("command.body", expected="invitation", got=command.WhichOneof("body"))
        invitation = command.invitation
        campaign_id = check_name(invitation.campaign_id, field="invitation.campaign_id")
        if campaign_id in self._answered or campaign_id in self._waiting:
            return
        if len(self._waiting) >= WAITING:
            raise WireError("command", expected=f"at most {WAITING} invitations that wait", got=campaign_id)
        self._waiting[campaign_id] = _Waiting(invitation, now_s + PATIENCE_S)

    @property
    def waiting(self) -> bool:
        """Whether an invitation wants an answer."""
        return bool(self._waiting)

    def step(self, conditions: Conditions, *, now_s: float, now_ms: int) -> None:
        """Answer what can be answered."""
        for campaign_id, waiting in list(self._waiting.items()):
            obstacle = invitation_obstacle(waiting.invitation, conditions, self._limits, now_ms=now_ms)
            if obstacle is not None and obstacle.passes and now_s < waiting.decline_at:
                continue
            response = CampaignResponse(
                campaign_id=campaign_id,
                accepted=obstacle is None,
                reason="" if obstacle is None else obstacle.reason,
                flower_node_id=conditions.flower_node_id,
                labelled_samples=conditions.labelled_samples,
                reason_code="" if obstacle is None else obstacle.code,
                conditions=conditions.message(),
            )
            if obstacle is None:
                try:
                    self._on_accepted(waiting.invitation)
                except OSError as error:
                    log.warning("campaign %s waits: %s", campaign_id, error)
                    continue
            if not self._respond(response):
                continue
            log.info("campaign %s: %s", campaign_id, response.reason or "accepted")
            del self._waiting[campaign_id]
            self._answered[campaign_id] = None
            if len(self._answered) > REMEMBERED:
                self._answered.popitem(last=False)
