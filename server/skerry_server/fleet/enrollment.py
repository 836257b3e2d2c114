"""How a device gets its identity, renews it and loses it.

*Enrolment.* An operator makes a token: single use, expiring, stored as a hash. Its text also carries the beginning of
the authority's fingerprint, so that a device knows whom to trust before it says anything. The device sends a request
(CSR) for a key that never leaves it and gets a certificate.

*Renewal.* Whoever proves to hold the key of the newest certificate, or of the one before it (an answer may get lost),
gets the next one; also after the certificate has ended, since a device may have been away for long. At most two
certificates of a device can do this at any time.

*Revocation.* The certificates are listed as revoked, the broker refuses them from then on, and live sessions end.

Functions take an open transaction. What the broker has to hear is said right after the commit.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ec import ECDSA, SECP384R1, EllipticCurvePublicKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_public_key
from sqlalchemy import event
from sqlalchemy.orm import Session

from skerry_contract.errors import WireError
from skerry_contract.identifiers import check_name
from skerry_contract.site import GATEWAY_ROLE, ROLE_LABEL
from skerry_server import broker, ports, server_identity
from skerry_server.audit import ledger
from skerry_server.clock import now_ms
from skerry_server.context import ServerContext
from skerry_server.delivery.reconnects import fleet_spread_ms
from skerry_server.errors import ConflictError, InvalidRequestError, RefusedError
from skerry_server.fleet import gateways, revocation
from skerry_server.fleet.authority import UNREADABLE, CertificateAuthority, DeviceCertificate, read_request, utc_now
from skerry_server.fleet.service import check_labels, get_device
from skerry_server.releases.signing import load_or_create_key
from skerry_server.store.tables import Device, EnrollmentToken
from skerry_server.trust.service import current_root

#: Users of the control plane; no device may have their names.
RESERVED_NAMES = frozenset({"server", "operator"})
#: Longest life of an enrolment token (seconds).
LONGEST_TOKEN_TTL_S = 30 * 24 * 3600
#: Digits of the authority's fingerprint in a token: 128 bits.
FINGERPRINT_DIGITS = 32
#: What the old key signs before the DER of the request.
RENEWAL_CONTEXT = b"skerry-renew-v1\0"
#: Largest PEM of a Flower node's key (characters).
NODE_KEY_BYTES = 1_024


@dataclass(frozen=True)
class Enrollment:
    """What a device needs to connect.

    Attributes:
        device_id: Its name.
        certificate: Its certificate, PEM.
        authority: Certificate of the authority that vouches for every server here, PEM.
        broker_host: Where the broker is.
        broker_port: Port of control connections.
        broker_data_port: Port of data connections.
        device_api: URL of the device API.
        superlink_address: host:port of the Flower SuperLink.
        release_keys: Raw Ed25519 public keys that sign releases and desired states, hexadecimal.
        trust_root: The root of the signed metadata (TUF), JSON text.
        reconnect_spread_ms: Over how long devices spread their reconnection.
    """

    device_id: str
    certificate: str
    authority: str = field(repr=False)
    broker_host: str
    broker_port: int
    broker_data_port: int
    device_api: str
    superlink_address: str
    release_keys: list[str]
    trust_root: str = field(repr=False)
    reconnect_spread_ms: int


@dataclass(frozen=True)
class Renewal:
    """A certificate for a device that had one.

    Attributes:
        certificate: PEM.
        authority: Certificate of the authority, PEM.
    """

    certificate: str
    authority: str = field(repr=False)


def create_token(
    session: Session,
    context: ServerContext,
    *,
    actor: str,
    ttl_s: int = 24 * 3600,
    labels: Mapping[str, str] | None = None,
) -> str:
    """Make a single-use token ``enroll-<secret>.<fingerprint>``; only its hash is stored.

    Args:
        session: An open transaction.
        context: Whose devices.
        actor: Who asks.
        ttl_s: How long it can be used, 1 s to 30 days.
        labels: Labels that the device gets, over those that it brings; those of :mod:`skerry_contract.site` make a
            gateway of it.
    """
    if not 1 <= ttl_s <= LONGEST_TOKEN_TTL_S:
        raise InvalidRequestError("ttl_s", expected=f"1 to {LONGEST_TOKEN_TTL_S}", got=ttl_s)
    fingerprint = CertificateAuthority.load(context.layout.pki).fingerprint[:FINGERPRINT_DIGITS]
    token = f"enroll-{secrets.token_urlsafe(32)}.{fingerprint}"
    given = check_labels(labels or {})
    gateways.check_token_labels(given, gateways.own_names(context))
    row = EnrollmentToken(
        token_sha256=_digest(token),
        created_ms=now_ms(),
        expires_ms=now_ms() + ttl_s * 1000,
        created_by=actor,
        labels=given,
    )
    session.add(row)
    ledger.append(
        session,
        actor=actor,
        action="enrollment-token.create",
        subject=row.token_sha256[:16],
        detail={"ttl_s": ttl_s, "labels": row.labels},
    )
    return token


def enroll(
    session: Session,
    context: ServerContext,
    *,
    token: str,
    device_id: str,
    csr: str,
    device_class: str = "",
    labels: Mapping[str, str] | None = None,
    node_public_key: str = "",
) -> Enrollment:
    """Make a device of whoever holds the token.

    A device whose answer got lost asks again with the same token and name and gets another certificate, which replaces
    the lost one, until it has been seen at the broker; after that the token is spent. A revoked device can be enrolled
    again with a fresh token.

    Args:
        session: An open transaction.
        context: Whose devices.
        token: From :func:`create_token`.
        device_id: The name that it wants.
        csr: Request for its key on P-256, PEM.
        device_class: x86_64, aarch64, jetson, ...
        labels: What it says about itself.
        node_public_key: Key of its Flower node on P-384, PEM; empty if it takes no part in campaigns.

    Raises:
        InvalidRequestError: A bad name, class, label, request or key; an unknown, expired or spent token.
        ConflictError: The device exists and is not revoked.
    """
    brought = _check_identity(device_id, device_class, labels or {})
    node_key = _check_node_key(node_public_key)
    row = _open_token(session, token)
    device = session.get(Device, device_id, with_for_update=True)
    repeated = device is not None and row.used_by == device_id and device.last_seen_ms == 0 and not device.revoked
    if row.used_by and not repeated:
        raise InvalidRequestError("token", expected="a token that is not spent", got=f"one used by {row.used_by}")
    if device is not None and not device.revoked and not repeated:
        raise ConflictError(f"device {device_id} is enrolled already; revoke it to enrol it again")
    certificate, issued = _issue(context, _bytes(csr), device_id)
    moment = now_ms()
    if device is None:
        device = Device(id=device_id, enrolled_ms=moment)
        session.add(device)
    elif repeated:
        _refuse_certificates(session, device)
        _enforce_after_commit(session, context, [])
    device.enrolled_ms = moment
    device.revoked = False
    device.last_seen_ms = 0
    device.device_class = device_class
    device.labels = brought | row.labels
    device.kind = gateways.GATEWAY if row.labels.get(ROLE_LABEL) == GATEWAY_ROLE else "device"
    device.node_public_key = node_key
    device.certificate_serial, device.certificate_previous_serial = issued.serial, ""
    device.certificate_not_after_ms = _milliseconds(issued)
    row.used_by, row.used_ms = device_id, moment
    ledger.append(
        session,
        actor=f"device:{device_id}",
        action="device.enroll",
        subject=device_id,
        detail={
            "token": row.token_sha256[:16],
            "device_class": device_class,
            "labels": device.labels,
            "certificate": issued.serial,
        },
    )
    return _enrollment(session, context, device_id, certificate)


def renew(session: Session, context: ServerContext, *, certificate: str, csr: str, signature: str) -> Renewal:
    """The next certificate of a device that proves to hold the key of the one that it has.

    Args:
        session: An open transaction.
        context: Whose devices.
        certificate: The certificate that it has, PEM; it may have ended.
        csr: Request for the next key, PEM.
        signature: Base64 of the old key's ECDSA-SHA-256 signature (DER) over :data:`RENEWAL_CONTEXT` and the DER of
            the request.

    Raises:
        InvalidRequestError: A certificate that is not ours, a bad request, or something unreadable.
        RefusedError: A wrong signature, a revoked device or certificate, or one that has been replaced.
    """
    old = CertificateAuthority.load(context.layout.pki).check_issued(_bytes(certificate))
    _check_possession(old, csr, signature)
    device = current_device(session, old, lock=True)
    renewed, issued = _issue(context, _bytes(csr), device.id)
    if old.serial == device.certificate_serial:
        device.certificate_previous_serial = old.serial
    else:  # the answer with the newest one was lost: it is replaced, never used beside this one
        revocation.revoke_certificate(
            session,
            serial=device.certificate_serial,
            device_id=device.id,
            not_after_ms=device.certificate_not_after_ms,
        )
        _enforce_after_commit(session, context, [])
    device.certificate_serial, device.certificate_not_after_ms = issued.serial, _milliseconds(issued)
    ledger.append(
        session,
        actor=f"device:{device.id}",
        action="device.renew",
        subject=device.id,
        detail={"certificate": issued.serial, "before": old.serial},
    )
    return Renewal(renewed, server_identity.read_authority(context.layout.authority_certificate))


def revoke(session: Session, context: ServerContext, device_id: str, *, actor: str, reason: str) -> Device:
    """Take a device's access away; right after the commit the broker refuses it and ends its sessions.

    Raises:
        NotFoundError: There is no such device.
    """
    device = get_device(session, device_id)
    if not device.revoked:
        device.revoked, device.online = True, False
        _refuse_certificates(session, device)
        ledger.append(session, actor=actor, action="device.revoke", subject=device_id, detail={"reason": reason})
        _enforce_after_commit(session, context, [device_id])
    return device


def current_device(session: Session, certificate: DeviceCertificate, *, lock: bool = False) -> Device:
    """The device whose newest certificate, or the one before it, this is.

    Raises:
        RefusedError: There is none, it is revoked, or the certificate is.
    """
    device = session.get(Device, certificate.device_id, with_for_update=lock)
    if device is None or device.revoked:
        raise RefusedError(f"device {certificate.device_id} is revoked; enrol it again with a fresh token")
    known = (device.certificate_serial, device.certificate_previous_serial)
    if certificate.serial not in known or revocation.is_revoked(session, certificate.serial):
        raise RefusedError(f"this certificate of device {certificate.device_id} was replaced; use the newest one")
    return device


def _check_identity(device_id: str, device_class: str, labels: Mapping[str, str]) -> dict[str, str]:
    try:
        check_name(device_id, field="device_id")
        if device_class:
            check_name(device_class.replace("_", "-"), field="device_class")
    except WireError as error:
        raise InvalidRequestError(error.field, expected=error.expected, got=error.got) from error
    if device_id in RESERVED_NAMES:
        raise InvalidRequestError("device_id", expected="a name other than those of the control plane", got=device_id)
    gateways.check_own_labels(labels)
    return check_labels(labels)


def _check_node_key(pem: str) -> str:
    if not pem:
        return ""
    try:
        if len(pem) > NODE_KEY_BYTES:
            raise ValueError("it is too long")
        key = load_pem_public_key(_bytes(pem))
        if not isinstance(key, EllipticCurvePublicKey) or not isinstance(key.curve, SECP384R1):
            raise ValueError("another kind of key")
    except UNREADABLE as error:
        raise InvalidRequestError(
            "node_public_key", expected="a public key on the curve P-384, PEM", got=str(error)
        ) from error
    return key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()


def _open_token(session: Session, token: str) -> EnrollmentToken:
    row = session.get(EnrollmentToken, _digest(token), with_for_update=True)
    if row is None:
        raise InvalidRequestError("token", expected="a token made by `skerry device token`", got="an unknown one")
    if row.expires_ms <= now_ms():
        raise InvalidRequestError("token", expected="a token that has not expired", got="an expired one")
    return row


def _check_possession(old: DeviceCertificate, csr: str, signature: str) -> None:
    try:
        signed = base64.b64decode(signature, validate=True)
    except (binascii.Error, ValueError) as error:
        raise InvalidRequestError("signature", expected="base64", got=signature[:40]) from error
    request = read_request(_bytes(csr)).public_bytes(Encoding.DER)
    try:
        old.public_key.verify(signed, RENEWAL_CONTEXT + request, ECDSA(SHA256()))
    except InvalidSignature as error:
        raise RefusedError("the signature was not made with the key of the certificate") from error


def _issue(context: ServerContext, csr: bytes, device_id: str) -> tuple[str, DeviceCertificate]:
    authority = CertificateAuthority.load(context.layout.pki)
    pem = authority.issue_device(csr, device_id=device_id, now=utc_now(), days=context.config.certificate_days)
    return pem.decode(), authority.check_issued(pem)


def _refuse_certificates(session: Session, device: Device) -> None:
    for serial in (device.certificate_serial, device.certificate_previous_serial):
        revocation.revoke_certificate(
            session, serial=serial, device_id=device.id, not_after_ms=device.certificate_not_after_ms
        )


def _enrollment(session: Session, context: ServerContext, device_id: str, certificate: str) -> Enrollment:
    config = context.config
    host = server_identity.public_host(config)
    return Enrollment(
        device_id=device_id,
        certificate=certificate,
        authority=server_identity.read_authority(context.layout.authority_certificate),
        broker_host=host,
        broker_port=config.broker_tls_port,
        broker_data_port=config.broker_data_port,
        device_api=server_identity.device_api_url(config),
        superlink_address=ports.join(host, config.superlink_port),
        release_keys=[load_or_create_key(context.layout).public_key.hex()],
        trust_root=current_root(context.layout).decode(),
        reconnect_spread_ms=fleet_spread_ms(session, config),
    )


def _enforce_after_commit(session: Session, context: ServerContext, device_ids: list[str]) -> None:
    def enforce(_session: Session) -> None:
        broker.enforce(context.database, context.config, context.layout, device_ids)

    event.listen(session, "after_commit", enforce, once=True)


def _bytes(text: str) -> bytes:
    return text.encode(errors="replace")


def _milliseconds(certificate: DeviceCertificate) -> int:
    return int(certificate.not_after.timestamp()) * 1000


def _digest(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()
