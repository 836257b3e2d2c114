"""Enrolment: trades a single-use token for an identity and writes it down, once.

The token names whom to trust: behind its dot stand the first 128 bits of the fingerprint of the control plane's
authority. The authority's certificate is fetched from a server that nobody knows yet, compared with them, and from then
on every byte comes over verified TLS. The local clock is not asked: a device may be enrolled in 1970.

The private key is made here and never sent; what is sent is a request for a certificate. The answer is checked like
anything from a network before a file is written, and ``agent.json`` is written last: half an enrolment is none.
"""

from __future__ import annotations

import contextlib
import json
import re
import ssl
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey

from skerry_agent.config import AgentConfig, AgentLayout, parse_settings
from skerry_agent.errors import DeviceError, InputError
from skerry_agent.files import DISK, Disk
from skerry_agent.identity.certificate import (
    FINGERPRINT_DIGITS,
    CertificateFacts,
    check_certificate,
    fingerprint,
    make_request,
    new_key,
    public_half,
    request_to_pem,
)
from skerry_agent.identity.device_api import DeviceApi
from skerry_agent.identity.identity_files import IdentityFiles
from skerry_agent.identity.node_key import new_node_key, public_pem, write_node_key
from skerry_agent.identity.tls import server_context
from skerry_agent.link.backoff import ReconnectSpread
from skerry_agent.trust.anchor import keep_root
from skerry_agent.trust.places import TrustPlaces
from skerry_agent.trusted_clock import TrustedClock
from skerry_contract.errors import WireError
from skerry_contract.identifiers import check_name
from skerry_contract.limits import TRUST_FILE_BYTES

#: The signed time, below :attr:`AgentLayout.trust`.
CLOCK = "clock.json"
#: Fields of ``agent.json`` that the server gives; a setting on the command line cannot replace them.
FROM_SERVER = (
    "device_id",
    "broker_host",
    "broker_port",
    "broker_data_port",
    "device_api",
    "superlink_address",
    "release_keys",
)
_TOKEN = re.compile(rf"(?P<secret>[A-Za-z0-9_-]{{8,200}})\.(?P<fingerprint>[0-9a-f]{{{FINGERPRINT_DIGITS}}})\Z")


def parse_pairs(pairs: list[str], *, field: str) -> dict[str, str]:
    """``["k=v", ...]`` as a dict.

    Raises:
        InputError: One of them is not ``key=value``, or a key comes twice.
    """
    parsed: dict[str, str] = {}
    for pair in pairs:
        key, separator, value = pair.partition("=")
        if not separator or not key or key in parsed:
            raise InputError(field, expected="distinct key=value pairs", got=pair)
        parsed[key] = value
    return parsed


def enroll(
    layout: AgentLayout,
    *,
    server: str,
    token: str,
    device_id: str,
    device_class: str,
    labels: dict[str, str],
    settings: dict[str, str],
    force: bool,
    disk: Disk = DISK,
) -> AgentConfig:
    """Enrol this device: keys, certificate, root of trust, and ``agent.json``.

    Args:
        layout: Data directory; made if it is not there.
        server: URL of the control plane's device API.
        token: Single-use enrolment token, with the fingerprint of the authority.
        device_id: Name that the device will have.
        device_class: Class of the device.
        labels: For cohorts.
        settings: Fields of :class:`AgentConfig` as text, for example ``{"health_seconds": "5"}``.
        force: Replace an enrolment that is there.
        disk: File system.

    Returns:
        What was written.

    Raises:
        InputError: A name, setting or token that is not right; nothing is written.
        DeviceError: Already enrolled, server away or another one, or the folder cannot be written.
    """
    own_settings = _check_arguments(device_id, labels, settings)
    match = _TOKEN.match(token)
    if match is None:
        raise InputError("--token", expected="the whole token that `skerry device token` printed", got=token[:12] + "…")
    if layout.config.exists() and not force:
        raise DeviceError(f"{layout.config} exists: the device is enrolled", remedy="use --force to enrol it anew")
    _check_folder(layout)
    had_identity = layout.identity.exists()
    try:
        authority_pem = _find_authority(server, match["fingerprint"])
        key, node_key = new_key(), new_node_key()
        body = {
            "token": token,
            "device_id": device_id,
            "device_class": device_class,
            "labels": labels,
            "csr": request_to_pem(make_request(key, device_id)),
            "node_public_key": public_pem(node_key).decode(),
        }
        answer = DeviceApi(server, server_context(authority_pem, lambda: 0)).enroll(body)
        config, facts = _check_answer(
            answer, server, authority_pem, key, device_id=device_id, own={"labels": labels, **own_settings}
        )
    except BaseException:
        if not had_identity:
            with contextlib.suppress(OSError):
                disk.remove_tree(layout.identity)
        raise
    try:
        _write(layout, config, key, node_key, answer, authority_pem, facts, disk)
    except OSError as error:
        raise DeviceError(
            f"{error.filename or layout.root}: {error.strerror}", remedy="free space and enrol with a new token"
        ) from error
    return config


def _check_arguments(device_id: str, labels: dict[str, str], settings: dict[str, str]) -> dict[str, object]:
    try:
        check_name(device_id, field="--device-id")
    except WireError as error:
        raise InputError("--device-id", expected=error.expected, got=device_id) from error
    for name in settings:
        if name not in AgentConfig.names() or name in (*FROM_SERVER, "labels"):
            own = sorted(set(AgentConfig.names()) - {*FROM_SERVER, "labels"})
            raise InputError("--set", expected=f"one of {', '.join(own)}", got=name)
    own_settings = parse_settings(settings, field="--set")
    _validate({**_PLACEHOLDER, "device_id": device_id, "labels": labels, **own_settings}, "--set")
    return own_settings


def _check_folder(layout: AgentLayout) -> None:
    try:
        layout.root.mkdir(parents=True, exist_ok=True)
        probe = layout.root / ".enroll"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise DeviceError(f"{layout.root}: {error.strerror}", remedy="use a folder that can be written") from error


def _find_authority(server: str, wanted: str) -> bytes:
    """The authority that the token names, from a server that is not trusted yet."""
    # Whoever answers can give nothing but the one certificate that has this fingerprint.
    stranger = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    stranger.check_hostname = False
    stranger.verify_mode = ssl.CERT_NONE
    authority_pem = DeviceApi(server, stranger).authority()
    try:
        found = fingerprint(authority_pem)
    except ValueError as error:
        raise DeviceError(
            f"{server} gave no certificate of an authority ({error})", remedy="check that it is a Skerry server"
        ) from error
    if not found.startswith(wanted):
        raise DeviceError(
            f"{server} is not the control plane of this token: its authority is {found[:FINGERPRINT_DIGITS]},"
            f" the token names {wanted}",
            remedy="check the URL, and whether somebody stands between",
        )
    return authority_pem


def _check_answer(
    answer: dict[str, Any],
    server: str,
    authority_pem: bytes,
    key: EllipticCurvePrivateKey,
    *,
    device_id: str,
    own: dict[str, Any],
) -> tuple[AgentConfig, CertificateFacts]:
    where = f"answer of {server}"
    if answer.get("device_id", device_id) != device_id:
        raise DeviceError(f"{server} enrolled {answer['device_id']!r:.80} instead", remedy="look at the server's log")
    given = {name: answer[name] for name in FROM_SERVER if name in answer}
    config = _validate({**given, **own}, where)
    for name in ("certificate", "trust_root"):
        if not isinstance(answer.get(name), str) or not answer[name]:
            raise InputError(f"{where}: {name}", expected="text", got=type(answer.get(name)).__name__)
    try:
        facts = check_certificate(
            answer["certificate"].encode(), authority_pem, device_id=device_id, public_key=public_half(key)
        )
    except ValueError as error:
        raise InputError(f"{where}: certificate", expected="this device's", got=error) from error
    if len(answer["trust_root"].encode()) > TRUST_FILE_BYTES or not _is_root(answer["trust_root"]):
        raise InputError(f"{where}: trust_root", expected="root metadata", got=answer["trust_root"][:60])
    spread_ms = answer.get("reconnect_spread_ms", 0)
    if type(spread_ms) is not int or spread_ms < 0:
        raise InputError(f"{where}: reconnect_spread_ms", expected="an integer, at least 0", got=spread_ms)
    return config, facts


def _write(
    layout: AgentLayout,
    config: AgentConfig,
    key: EllipticCurvePrivateKey,
    node_key: EllipticCurvePrivateKey,
    answer: dict[str, Any],
    authority_pem: bytes,
    facts: CertificateFacts,
    disk: Disk,
) -> None:
    """Take the old enrolment back, write the new identity and what it trusts, and at last that it is enrolled."""
    if layout.config.exists():
        disk.unlink(layout.config)
        disk.sync_folder(layout.root)
    IdentityFiles(layout, disk=disk).write_first(key, answer["certificate"].encode(), authority_pem)
    write_node_key(layout, node_key, disk=disk)
    keep_root(TrustPlaces(layout.trust), answer["trust_root"].encode(), disk)
    clock = layout.trust / CLOCK
    # A signed time that was wrong is forgotten here, and only here.
    disk.unlink(clock)
    TrustedClock(clock, disk=disk).learn(round(facts.not_before.timestamp() * 1000))
    ReconnectSpread(layout.root / "link" / "spread.json", disk=disk).learn(answer.get("reconnect_spread_ms", 0))
    disk.write_atomically(layout.config, config.to_json().encode(), mode=0o600)


_PLACEHOLDER: dict[str, Any] = {
    "device_id": "placeholder",
    "broker_host": "placeholder",
    "broker_port": 1,
    "broker_data_port": 1,
    "device_api": "https://placeholder",
    "superlink_address": "placeholder",
    "release_keys": ["placeholder"],
}


def _validate(document: dict[str, Any], where: str) -> AgentConfig:
    try:
        config = AgentConfig.from_document(document)
    except InputError as error:
        raise InputError(f"{where}: {error.field}", expected=error.expected, got=error.got) from error
    for key in config.release_keys:
        if key != "placeholder" and not _is_key(key):
            raise InputError(f"{where}: release_keys", expected="32 bytes in hexadecimal", got=key)
    return config


def _is_key(text: str) -> bool:
    try:
        return len(bytes.fromhex(text)) == 32
    except ValueError:
        return False


def _is_root(text: str) -> bool:
    """Whether it has the form of root metadata; who signed it is for whoever uses it."""
    try:
        return bool(json.loads(text)["signed"]["_type"] == "root")
    except (ValueError, TypeError, KeyError, RecursionError):
        return False
