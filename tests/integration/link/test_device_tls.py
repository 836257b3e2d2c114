"""Whom a device believes over TLS, at a real listener: one authority, the right name, and no local clock."""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from integration.link.broker import free_port
from integration.link.device_server import DeviceServer
from integration.link.identity import authority_of_tests, give_identity, now
from skerry_agent.config import AgentLayout
from skerry_agent.errors import DeviceError
from skerry_agent.identity.device_api import DeviceApi, RefusedError
from skerry_agent.identity.tls import client_context, server_context
from skerry_agent.trusted_clock import TrustedClock
from skerry_server.fleet.authority import CertificateAuthority


def api(
    server: DeviceServer, *, floor: datetime | None = None, authority: CertificateAuthority | None = None
) -> DeviceApi:
    floor_ms = 0 if floor is None else round(floor.timestamp() * 1000)
    pem = (authority or authority_of_tests()).certificate_pem
    return DeviceApi(server.url, server_context(pem, lambda: floor_ms), timeout_s=5.0)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[DeviceServer]:
    running = DeviceServer(tmp_path / "server")
    yield running
    running.stop()


@pytest.fixture
def old_server(tmp_path: Path) -> Iterator[DeviceServer]:
    """Its certificate ended ten days ago."""
    running = DeviceServer(tmp_path / "server", issued=now() - timedelta(days=40), days=30)
    yield running
    running.stop()


def test_the_right_server_is_believed(server: DeviceServer) -> None:
    assert api(server).authority() == authority_of_tests().certificate_pem
    assert api(server, floor=now() + timedelta(days=800)).authority()


def test_a_certificate_that_ended_for_certain_is_refused_and_otherwise_nobody_looks_at_a_clock(
    old_server: DeviceServer,
) -> None:
    assert api(old_server).authority(), "by what this device knows for certain, it may still hold"
    assert api(old_server, floor=now() - timedelta(days=11)).authority()
    with pytest.raises(DeviceError, match=r"the server's certificate ended on .* or later"):
        api(old_server, floor=now() - timedelta(days=9)).authority()


def test_another_authority_or_another_name_is_refused(server: DeviceServer, tmp_path: Path) -> None:
    with pytest.raises(DeviceError, match="does not prove that it is your control plane"):
        api(server, authority=CertificateAuthority.create(now=now())).authority()
    elsewhere = DeviceServer(tmp_path / "elsewhere", names=("elsewhere.example",))
    try:
        with pytest.raises(DeviceError, match="does not prove that it is your control plane"):
            api(elsewhere).authority()
    finally:
        elsewhere.stop()


def test_an_authority_that_is_none_is_an_error_of_the_device() -> None:
    for pem in (b"", b"x", b"\xff"):
        with pytest.raises(DeviceError, match="authority's certificate cannot be read"):
            server_context(pem, lambda: 0)


def test_a_server_that_says_nothing_has_a_deadline(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        context = server_context(authority_of_tests().certificate_pem, lambda: 0)
        url = f"https://127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(DeviceError, match="cannot be reached"):
            DeviceApi(url, context, timeout_s=0.2).authority()
    with pytest.raises(DeviceError, match="cannot be reached"):
        DeviceApi(f"https://127.0.0.1:{free_port()}", context).authority()


def test_a_refusal_carries_its_status(server: DeviceServer) -> None:
    server.status, server.change = 403, lambda answer: {"detail": "the device is revoked"}
    csr = {"csr": "", "device_id": "x"}
    server.answer = lambda path, body: {}  # type: ignore[method-assign]
    with pytest.raises(RefusedError, match="renewal: expected to be accepted, got 403 the device is revoked") as raised:
        api(server).renew(csr)
    assert raised.value.status == 403


def test_the_certificate_of_this_moment_is_shown(tmp_path: Path) -> None:
    layout = AgentLayout(tmp_path / "d")
    give_identity(layout, "press-07")
    clock = TrustedClock(layout.trust / "clock.json")
    issued = authority_of_tests().issue_server(("127.0.0.1",), now=now())
    (tmp_path / "server.pem").write_bytes(issued.certificate_pem + issued.key_pem)
    (tmp_path / "ca.pem").write_bytes(authority_of_tests().certificate_pem)
    listening = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    listening.load_cert_chain(tmp_path / "server.pem")
    listening.load_verify_locations(tmp_path / "ca.pem")
    listening.verify_mode = ssl.CERT_REQUIRED
    serials: list[str] = []

    def accept(door: socket.socket) -> None:
        with listening.wrap_socket(door.accept()[0], server_side=True) as connection:
            certificate = connection.getpeercert()
            assert certificate is not None
            serials.append(str(certificate["serialNumber"]))

    with socket.create_server(("127.0.0.1", 0)) as door:
        for _ in range(2):
            server = threading.Thread(target=accept, args=(door,))
            server.start()
            with (
                socket.create_connection(door.getsockname(), timeout=10) as plain,
                client_context(layout, clock).wrap_socket(plain, server_hostname="127.0.0.1") as client,
            ):
                client.recv(1)
            server.join(timeout=10)
            give_identity(layout, "press-07")
    assert len(set(serials)) == 2
