"""Gateways of sites: who they are, which devices are theirs, what they tell, and the certificate they are known by.

A gateway is enrolled like a device, by a token that an operator made for one: its labels name the role, the site and
the address at which the site's devices reach it (:mod:`skerry_contract.site`). No device can give itself that role, and
the address, which its server certificate is made for, is the operator's word alone: whoever has a certificate for a
name can pass for it.

A gateway has no session at the broker. It reports over the device API every :data:`REPORT_S` and hears in the answer
which devices are its own; whether it is connected is how long ago that was.

Functions take an open transaction.
"""

from __future__ import annotations

import hashlib
import json
import re
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session

from skerry_contract.site import ADDRESS_LABEL, GATEWAY_ROLE, ROLE_LABEL, SITE_DEVICES, SITE_LABEL
from skerry_server import server_identity
from skerry_server.clock import now_ms
from skerry_server.context import ServerContext
from skerry_server.errors import ConflictError, InvalidRequestError, RefusedError
from skerry_server.federation import campaign_machine
from skerry_server.federation.settings import load_settings
from skerry_server.fleet.authority import CertificateAuthority, utc_now
from skerry_server.fleet.service import get_device
from skerry_server.store.tables import Campaign, CampaignParticipant, Device

#: How often a gateway reports (seconds), and after how long a silent one counts as away (milliseconds).
REPORT_S = 10.0
SILENT_MS = 45_000
#: Life of a gateway's server certificate (days). Devices do not look at revocation lists, so it is short.
CERTIFICATE_DAYS = 30
#: ``Device.kind`` of a gateway.
GATEWAY = GATEWAY_ROLE
#: ``CampaignParticipant.state`` of devices that a gateway sums for.
_ACCEPTED = "accepted"
#: A name or an IPv4 address, or an IPv6 address in brackets, and a port.
_ADDRESS = re.compile(r"(?P<host>[A-Za-z0-9][A-Za-z0-9.-]{0,99}|\[[0-9A-Fa-f:.]{2,45}\]):(?P<port>[0-9]{1,5})\Z")


@dataclass(frozen=True)
class SiteReport:
    """What a gateway tells.

    Attributes:
        connected: Devices of its site that are nodes of its SuperLink now.
        campaign_id: Of its newest round; empty before the first.
        round: Its number.
        asked: Devices that were asked in it.
        counted: Devices whose update is in its sum.
    """

    connected: int = 0
    campaign_id: str = ""
    round: int = 0
    asked: int = 0
    counted: int = 0


def split_address(address: str) -> tuple[str, int]:
    """Host and port of a gateway; raises InvalidRequestError."""
    found = _ADDRESS.match(address)
    if found is None or not 1 <= int(found["port"]) <= 65_535:
        raise InvalidRequestError(f"labels.{ADDRESS_LABEL}", expected="host:port", got=address)
    return found["host"].strip("[]"), int(found["port"])


def check_token_labels(labels: Mapping[str, str], reserved: Sequence[str]) -> None:
    """Pass if the labels of an enrolment token make no gateway, or a whole one.

    Args:
        labels: Of the token.
        reserved: Names of the control plane itself, which no gateway may have.

    Raises:
        InvalidRequestError: A gateway without site or address, or with an address of the control plane.
    """
    if labels.get(ROLE_LABEL) != GATEWAY_ROLE:
        return
    if not labels.get(SITE_LABEL):
        raise InvalidRequestError(f"labels.{SITE_LABEL}", expected="the site that the gateway sums for", got="nothing")
    _check_host(split_address(labels.get(ADDRESS_LABEL, ""))[0], reserved)


def check_own_labels(labels: Mapping[str, str]) -> None:
    """Raise InvalidRequestError if a device says that it is a gateway: its token says that, or nobody."""
    if labels.get(ROLE_LABEL) == GATEWAY_ROLE or ADDRESS_LABEL in labels:
        raise InvalidRequestError(
            f"labels.{ROLE_LABEL}", expected="a gateway's labels in its token", got="them from the device"
        )


def connected(gateway: Device, *, at_ms: int) -> bool:
    """Whether devices can be sent to a gateway at a moment."""
    heard = gateway.online and at_ms - gateway.last_seen_ms <= SILENT_MS
    return heard and not gateway.revoked and gateway.flower_node_id not in ("", "0") and bool(address_of(gateway))


def address_of(gateway: Device) -> str:
    """host:port at which its site reaches it; empty if it has none that can be used."""
    address = str(gateway.labels.get(ADDRESS_LABEL, ""))
    return address if _ADDRESS.match(address) else ""


def site_gateways(session: Session) -> dict[str, list[Device]]:
    """Site to its gateways that are not revoked, by name."""
    found: dict[str, list[Device]] = {}
    query = sa.select(Device).where(Device.kind == GATEWAY, Device.revoked.is_(False)).order_by(Device.id)
    for row in session.scalars(query):
        found.setdefault(str(row.labels.get(SITE_LABEL, "")), []).append(row)
    found.pop("", None)
    return found


def choose(device_id: str, gateways: Sequence[Device], *, at_ms: int) -> Device | None:
    """The gateway that a device of their site goes through: always the same one of those that are connected."""
    able = [row for row in gateways if connected(row, at_ms=at_ms)]
    return able[zlib.crc32(device_id.encode()) % len(able)] if able else None


def mark_silent(session: Session, *, at_ms: int) -> None:
    """Show gateways as offline that have not reported for :data:`SILENT_MS`."""
    session.execute(
        sa.update(Device)
        .where(Device.kind == GATEWAY, Device.online.is_(True), Device.last_seen_ms < at_ms - SILENT_MS)
        .values(online=False)
    )


def take_report(session: Session, gateway_id: str, report: SiteReport, *, node_id: str) -> tuple[dict[str, Any], str]:
    """Write down what a gateway tells; returns its roster with the roster's digest.

    Raises:
        RefusedError: The caller is no gateway.
        ConflictError: Its site has too many devices.
    """
    gateway = _gateway(session, gateway_id)
    roster = roster_of(session, gateway)
    gateway.online, gateway.last_seen_ms, gateway.flower_node_id = True, now_ms(), node_id
    gateway.site_report = {"devices": len(roster["devices"]), **asdict(report)}
    return roster, digest_of(roster)


def digest_of(roster: Mapping[str, Any]) -> str:
    """SHA-256 (hexadecimal) of a roster's canonical JSON."""
    return hashlib.sha256(json.dumps(roster, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def roster_of(session: Session, gateway: Device) -> dict[str, Any]:
    """What a gateway has to know: the node keys of its site, and who takes part in which campaign through it.

    Raises:
        ConflictError: Its site has more than :data:`~skerry_contract.site.SITE_DEVICES` devices.
    """
    site = str(gateway.labels.get(SITE_LABEL, ""))
    query = (
        sa.select(Device.id, Device.node_public_key)
        .where(
            Device.labels[SITE_LABEL].as_string() == site,
            Device.kind != GATEWAY,
            Device.revoked.is_(False),
            Device.node_public_key != "",
        )
        .order_by(Device.id)
        .limit(SITE_DEVICES + 1)
    )
    devices = [{"device_id": name, "node_key": key} for name, key in session.execute(query)] if site else []
    if len(devices) > SITE_DEVICES:
        raise ConflictError(f"site {site} has more than {SITE_DEVICES} devices: give some of them another site label")
    members: dict[str, list[str]] = {}
    taking_part = (
        sa.select(CampaignParticipant.campaign_id, CampaignParticipant.device_id, Campaign.settings)
        .join(Campaign, Campaign.id == CampaignParticipant.campaign_id)
        .join(Device, Device.id == CampaignParticipant.device_id)
        .where(
            Device.revoked.is_(False),
            CampaignParticipant.gateway_id == gateway.id,
            CampaignParticipant.state == _ACCEPTED,
            Campaign.state.in_(campaign_machine.ACTIVE),
        )
        .order_by(CampaignParticipant.campaign_id, CampaignParticipant.device_id)
    )
    rules: dict[str, dict[str, Any]] = {}
    for campaign_id, device_id, document in session.execute(taking_part):
        members.setdefault(campaign_id, []).append(device_id)
        settings = load_settings(document)
        rules[campaign_id] = {"quorum": settings.quorum, "grace_factor": settings.grace_factor}
    campaigns = [{"campaign_id": name, **rules[name], "members": each} for name, each in members.items()]
    return {
        "gateway_id": gateway.id,
        "site": site,
        "address": address_of(gateway),
        "devices": devices,
        "campaigns": campaigns,
    }


def certify(session: Session, context: ServerContext, gateway_id: str, *, csr: str) -> str:
    """A server certificate (PEM) for the address that the operator gave a gateway, for a key that it keeps.

    It holds for loopback as well, by which the gateway's own processes meet.

    Raises:
        RefusedError: The caller is no gateway.
        InvalidRequestError: It has no usable address, or the request is broken.
    """
    gateway = _gateway(session, gateway_id)
    host, _ = split_address(str(gateway.labels.get(ADDRESS_LABEL, "")))
    _check_host(host, own_names(context))
    authority = CertificateAuthority.load(context.layout.pki)
    try:
        pem = authority.issue_gateway(
            csr.encode("ascii", "replace"),
            gateway_id=gateway_id,
            names=[host, *server_identity.LOOPBACK],
            now=utc_now(),
            days=CERTIFICATE_DAYS,
        )
    except ValueError as error:
        raise InvalidRequestError(f"labels.{ADDRESS_LABEL}", expected="a DNS name or an address", got=host) from error
    return pem.decode()


def own_names(context: ServerContext) -> list[str]:
    """Names that devices know the control plane by; loopback, by which no other machine is known, is not among them."""
    return [name for name in server_identity.names(context.config) if name not in server_identity.LOOPBACK]


def _check_host(host: str, reserved: Sequence[str]) -> None:
    if host in reserved:
        raise InvalidRequestError(
            f"labels.{ADDRESS_LABEL}", expected="a name that is not the control plane's own", got=host
        )


def _gateway(session: Session, gateway_id: str) -> Device:
    row = get_device(session, gateway_id)
    if row.kind != GATEWAY:
        raise RefusedError(f"device {gateway_id} is no gateway; enrol it with a token that makes it one")
    return row
