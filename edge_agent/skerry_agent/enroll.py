"""Enrolment: trades a single-use token for an identity and writes it down, once.

The answer of the server is checked like anything from a network before a file is written; the file can be read by its
owner only, for it holds the broker password.
"""

from __future__ import annotations

import contextlib
import json
import urllib.error
import urllib.request
from collections.abc import Mapping
from typing import Any

from skerry_agent.config import AgentConfig, AgentLayout, parse_settings
from skerry_agent.errors import DeviceError, InputError
from skerry_agent.files import write_atomically
from skerry_contract.errors import WireError
from skerry_contract.identifiers import check_name

#: How long the server may take to answer (seconds), and how much it may say (bytes).
TIMEOUT_S = 30.0
ANSWER_BYTES = 1 << 20
#: Fields that the server gives; a setting on the command line cannot replace them.
FROM_SERVER = ("device_id", "broker_host", "broker_port", "broker_password", "superlink_address", "release_keys")


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


def request_enrollment(server: str, document: Mapping[str, Any], *, timeout_s: float = TIMEOUT_S) -> dict[str, Any]:
    """Ask the control plane.

    Args:
        server: Its URL.
        document: Body of ``POST /v1/enroll``.
        timeout_s: Longest wait for the answer.

    Raises:
        InputError: The URL is not one, or the server refuses token or name.
        DeviceError: The server cannot be reached or does not answer as one.
    """
    if not server.startswith(("http://", "https://")):
        raise InputError("--server", expected="a URL such as http://host:8080", got=server)
    request = urllib.request.Request(  # noqa: S310 (the scheme was checked)
        server.rstrip("/") + "/v1/enroll",
        data=json.dumps(document).encode(),
        headers={"Content-Type": "application/json", "Accept": "application/json"},
        method="POST",
    )
    try:
        with urllib.request.urlopen(request, timeout=timeout_s) as answer:  # noqa: S310
            data = answer.read(ANSWER_BYTES + 1)
    except urllib.error.HTTPError as error:
        with error:
            reason = _reason(error.read(ANSWER_BYTES))
        if error.code < 500:
            raise InputError("enrolment", expected="to be accepted", got=f"{error.code} {reason}") from error
        raise DeviceError(f"{server} answered {error.code} {reason}", remedy="look at the server's log") from error
    except (OSError, ValueError) as error:
        reason = str(getattr(error, "reason", error))
        raise DeviceError(f"{server} cannot be reached ({reason})", remedy="check the URL and the network") from error
    with contextlib.suppress(ValueError):
        parsed = json.loads(data) if len(data) <= ANSWER_BYTES else None
        if isinstance(parsed, dict):
            return parsed
    raise DeviceError(f"{server} did not answer with a JSON object", remedy="check that it is a Skerry server")


def _reason(data: bytes) -> str:
    """What the body of an error says: ``detail`` or ``title`` (RFC 9457), or its first characters."""
    with contextlib.suppress(ValueError):
        document = json.loads(data)
        if isinstance(document, dict):
            detail = document.get("detail") or document.get("title") or document
            return str(detail)[:300]
    return data.decode(errors="replace")[:300]


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
) -> AgentConfig:
    """Enrol this device and write ``agent.json``.

    Args:
        layout: Data directory; made if it is not there.
        server: URL of the control plane.
        token: Single-use enrolment token.
        device_id: Name that the device will have.
        device_class: Class of the device.
        labels: For cohorts.
        settings: Fields of :class:`AgentConfig` as text, for example ``{"health_seconds": "5"}``.
        force: Replace an enrolment that is there.

    Returns:
        What was written.

    Raises:
        InputError: A name, setting or token that is not right; nothing is written.
        DeviceError: Already enrolled, server away, or the folder cannot be written.
    """
    try:
        check_name(device_id, field="--device-id")
    except WireError as error:
        raise InputError("--device-id", expected=error.expected, got=device_id) from error
    for name in settings:
        if name not in AgentConfig.names() or name in (*FROM_SERVER, "labels"):
            own = sorted(set(AgentConfig.names()) - {*FROM_SERVER, "labels"})
            raise InputError("--set", expected=f"one of {', '.join(own)}", got=name)
    own_settings = parse_settings(settings, field="--set")
    _validate({"device_id": device_id, **_PLACEHOLDER, "labels": labels, **own_settings}, "--set")
    if layout.config.exists() and not force:
        raise DeviceError(f"{layout.config} exists: the device is enrolled", remedy="use --force to enrol it anew")
    try:
        layout.root.mkdir(parents=True, exist_ok=True)
        probe = layout.root / ".enroll"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise DeviceError(f"{layout.root}: {error.strerror}", remedy="use a folder that can be written") from error
    body = {"token": token, "device_id": device_id, "device_class": device_class, "labels": labels}
    answer = request_enrollment(server, body)
    if answer.get("device_id", device_id) != device_id:
        raise DeviceError(f"{server} enrolled {answer['device_id']!r} instead", remedy="look at the server's log")
    given = {name: answer[name] for name in FROM_SERVER if name in answer}
    config = _validate({**given, "labels": labels, **own_settings}, f"answer of {server}")
    try:
        write_atomically(layout.config, config.to_json().encode(), mode=0o600)
    except OSError as error:
        raise DeviceError(
            f"{layout.config}: {error.strerror}", remedy="free space and enrol with a new token"
        ) from error
    return config


_PLACEHOLDER: dict[str, Any] = {
    "broker_host": "placeholder",
    "broker_port": 1,
    "broker_password": "placeholder",
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
