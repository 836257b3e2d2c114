"""The device API on a real TLS port: who is let in, how refusals are told, and what bounds a caller."""

from __future__ import annotations

import asyncio
import http.client
import json
import shutil
import socket
import ssl
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.hashes import SHA256
from starlette.types import Message, Receive, Scope, Send

from integration.runtime.identities import client_tls, make_identity, new_request, write_identity
from skerry_server.config import ServerLayout
from skerry_server.context import ServerContext, open_context
from skerry_server.device_api.limits import BODY_BYTES, BodyBounds
from skerry_server.device_api.server import DeviceServer
from skerry_server.device_api.tls import TlsProtocol
from skerry_server.errors import PlatformError
from skerry_server.first_start import make_folders, prepare
from skerry_server.fleet import enrollment
from skerry_server.fleet.authority import CertificateAuthority, utc_now

ABSENT = "/device/v1/files/" + "ab" * 32


class _Impatient(TlsProtocol):
    silence_s = 0.1


@dataclass
class Plane:
    """A control plane whose device API runs."""

    context: ServerContext

    @property
    def port(self) -> int:
        return self.context.config.device_port

    def ask(self, method: str, path: str, *, tls: ssl.SSLContext, body: bytes | None = None) -> tuple[int, str, bytes]:
        connection = http.client.HTTPSConnection("127.0.0.1", self.port, timeout=20, context=tls)
        try:
            connection.request(method, path, body=body, headers={"content-type": "application/json"} if body else {})
            answer = connection.getresponse()
            return answer.status, answer.headers["content-type"], answer.read()
        finally:
            connection.close()

    def token(self) -> str:
        with self.context.database.transaction() as session:
            return enrollment.create_token(session, self.context, actor="test")

    @property
    def trusting(self) -> ssl.SSLContext:
        """A client that knows the authority and presents nothing."""
        return ssl.create_default_context(cafile=str(self.context.layout.authority_certificate))

    def enroll(self, device_id: str, folder: Path) -> Path:
        request = new_request()
        body = {"token": self.token(), "device_id": device_id, "csr": request.csr}
        status, _, data = self.ask("POST", "/device/v1/enroll", tls=self.trusting, body=json.dumps(body).encode())
        assert status == 201, data
        document = json.loads(data)
        return write_identity(
            folder,
            key_pem=request.key_pem,
            certificate_pem=document["certificate"].encode(),
            authority_pem=document["authority"].encode(),
        )


@pytest.fixture(scope="module")
def plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Plane]:
    layout = ServerLayout(tmp_path_factory.mktemp("plane"))
    make_folders(layout)
    prepare(layout, {})
    context = open_context(layout.root)
    server = DeviceServer(context, protocol=_Impatient)
    server.start()
    yield Plane(context)
    server.stop(grace_s=1)
    context.close()


def test_the_authority_is_given_to_whoever_knows_its_fingerprint(plane: Plane) -> None:
    blind = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    blind.check_hostname, blind.verify_mode = False, ssl.CERT_NONE
    status, kind, pem = plane.ask("GET", "/device/v1/authority", tls=blind)
    assert (status, kind.split(";")[0]) == (200, "application/x-pem-file")
    fingerprint = x509.load_pem_x509_certificate(pem).fingerprint(SHA256()).hex()
    assert plane.token().endswith("." + fingerprint[:32])


def test_an_enrolment_answers_what_the_agent_reads(plane: Plane) -> None:
    body = {
        "token": plane.token(),
        "device_id": "answers",
        "device_class": "x86_64",
        "labels": {"line": "3"},
        "csr": new_request().csr,
        "node_public_key": "",
    }
    encoded = json.dumps(body).encode()
    status, _, data = plane.ask("POST", "/device/v1/enroll", tls=plane.trusting, body=encoded)
    assert status == 201
    assert set(json.loads(data)) == {
        *("device_id", "certificate", "authority", "broker_host", "broker_port", "broker_data_port", "device_api"),
        *("superlink_address", "release_keys", "trust_root", "reconnect_spread_ms"),
    }


GOOD: dict[str, Any] = {"token": "t", "device_id": "a", "csr": new_request().csr}


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "field"),
    [
        ("POST", "/device/v1/enroll", GOOD, 422, "token"),
        ("POST", "/device/v1/enroll", GOOD | {"device_id": "A B"}, 422, "device_id"),
        ("POST", "/device/v1/enroll", GOOD | {"device_id": "\ud800"}, 422, None),
        ("POST", "/device/v1/enroll", GOOD | {"colour": "red"}, 422, "colour"),
        ("POST", "/device/v1/enroll", GOOD | {"csr": "x" * 20_000}, 422, "csr"),
        ("POST", "/device/v1/enroll", GOOD | {"labels": {"a": 1}}, 422, "labels.a"),
        ("POST", "/device/v1/enroll", {"token": "t"}, 422, "device_id"),
        ("POST", "/device/v1/enroll", [], 422, "body"),
        ("POST", "/device/v1/enroll", b"{nope", 422, None),
        ("POST", "/device/v1/enroll", b"[" * 50_000, 400, None),
        ("POST", "/device/v1/enroll", b"x" * (BODY_BYTES + 1), 413, None),
        ("POST", "/device/v1/renew", {"certificate": "x", "csr": "y", "signature": "z"}, 422, "certificate"),
        ("GET", "/device/v1/enroll", None, 405, None),
        ("GET", "/v1/devices", None, 404, None),
        ("GET", ABSENT, None, 403, None),
    ],
)
def test_refusals_are_problem_details_that_name_the_field_and_repeat_no_secret(
    plane: Plane, method: str, path: str, body: Any, status: int, field: str | None
) -> None:
    encoded = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
    got, kind, data = plane.ask(method, path, tls=plane.trusting, body=encoded)
    problem = json.loads(data)
    assert (got, kind) == (status, "application/problem+json")
    assert (problem["type"], problem["status"]) == ("about:blank", status)
    assert problem["detail"]
    if field is not None:
        assert problem["field"] == field
    assert b"Traceback" not in data
    assert GOOD["csr"].encode()[:80] not in data


def test_a_device_is_let_in_until_it_is_revoked(plane: Plane, tmp_path: Path) -> None:
    identity = plane.enroll("d1", tmp_path / "d1")
    assert plane.ask("GET", ABSENT, tls=client_tls(identity))[0] == 404  # let in, and there is no such file
    with plane.context.database.transaction() as session:
        enrollment.revoke(session, plane.context, "d1", actor="test", reason="")
    status, _, data = plane.ask("GET", ABSENT, tls=client_tls(identity))
    assert (status, "d1 is revoked" in json.loads(data)["detail"]) == (403, True)


def test_other_certificates_are_not_a_device(plane: Plane, tmp_path: Path) -> None:
    ours = CertificateAuthority.load(plane.context.layout.pki)
    plane.enroll("d2", tmp_path / "d2")
    operator = ours.issue_client("d2", now=utc_now(), days=1)
    stranger = write_identity(
        tmp_path / "operator",
        key_pem=operator.key_pem,
        certificate_pem=operator.certificate_pem,
        authority_pem=ours.certificate_pem,
    )
    forged = make_identity(ours, "d2", tmp_path / "forged")  # ours, but not one that the store knows
    for identity in (stranger, forged):
        assert plane.ask("GET", ABSENT, tls=client_tls(identity))[0] == 403
    foreign = CertificateAuthority.create(now=utc_now())
    for identity in (
        make_identity(foreign, "d2", tmp_path / "foreign", trusted=ours.certificate_pem),
        make_identity(ours, "d2", tmp_path / "ended", now=utc_now() - timedelta(days=100)),
    ):
        with pytest.raises(OSError, match=r"alert|reset|EOF|closed"):
            plane.ask("GET", ABSENT, tls=client_tls(identity))


def test_whoever_connects_and_says_nothing_is_hung_up_on(plane: Plane) -> None:
    with (
        socket.create_connection(("127.0.0.1", plane.port), timeout=10) as plain,
        plane.trusting.wrap_socket(plain, server_hostname="127.0.0.1") as stream,
    ):
        assert stream.recv(1) == b""


def test_a_body_that_does_not_come_is_answered_in_time() -> None:
    async def application(_scope: Scope, receive: Receive, _send: Send) -> None:
        while (await receive()).get("more_body"):
            pass

    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    first = iter([{"type": "http.request", "body": b"{", "more_body": True}])

    async def receive() -> Message:
        for message in first:
            return message
        await asyncio.Event().wait()
        raise AssertionError

    scope = {"type": "http", "method": "POST", "path": "/", "headers": []}
    asyncio.run(BodyBounds(application, seconds=0.05)(scope, receive, send))
    assert sent[0]["status"] == 408


def test_a_busy_port_and_a_broken_certificate_are_told(plane: Plane, tmp_path: Path) -> None:
    with pytest.raises(PlatformError, match="cannot be opened"):
        DeviceServer(plane.context)
    folder = tmp_path / "copy"
    shutil.copytree(plane.context.layout.root, folder)
    layout = ServerLayout(folder)
    layout.config.write_text(layout.config.read_text().replace(str(plane.port), "1" + str(plane.port)[1:]))
    layout.server_certificate.write_text("nonsense")
    context = open_context(folder)
    with pytest.raises(PlatformError, match="cannot use the certificate"):
        DeviceServer(context)
    context.close()
    assert prepare(layout, {})  # the next start makes a new one
    assert "BEGIN CERTIFICATE" in layout.server_certificate.read_text()
