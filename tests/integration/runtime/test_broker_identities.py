"""Which certificates the broker accepts, and what revoking one does: real mosquitto, both TLS listeners."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import ssl
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from integration.runtime.broker_process import ControlPlane, DeviceClient, Wait
from integration.runtime.identities import client_tls, make_identity
from skerry_server import broker
from skerry_server.broker_sessions import SessionCutError, connect_packet, end_sessions
from skerry_server.clock import now_ms
from skerry_server.fleet import enrollment, service
from skerry_server.fleet.authority import CertificateAuthority, utc_now
from skerry_server.store.tables import RevokedCertificate


def _connack(
    port: int, context: ssl.SSLContext, *, user: str = "", password: str = "", session: ssl.SSLSession | None = None
) -> tuple[int, ssl.SSLSession | None]:
    """The reason code with which the broker answers a CONNECT; -1 if it ends the connection instead."""
    with contextlib.suppress(OSError), _tls(port, context, session) as stream:
        stream.sendall(connect_packet("any", username=user, password=password))
        answer = stream.recv(64)
        if len(answer) >= 4:
            return answer[3], stream.session
    return -1, None


@contextlib.contextmanager
def _tls(port: int, context: ssl.SSLContext, session: ssl.SSLSession | None = None) -> Iterator[ssl.SSLSocket]:
    with (
        socket.create_connection(("127.0.0.1", port), timeout=10) as plain,
        context.wrap_socket(plain, server_hostname="127.0.0.1", session=session) as stream,
    ):
        yield stream


def _revoke(control_plane: ControlPlane, device_id: str) -> None:
    with control_plane.context.database.transaction() as session:
        enrollment.revoke(session, control_plane.context, device_id, actor="test", reason="stolen")


def test_only_a_certificate_of_ours_in_its_time_is_accepted(control_plane: ControlPlane, tmp_path: Path) -> None:
    ours = CertificateAuthority.load(control_plane.context.layout.pki)
    foreign = CertificateAuthority.create(now=utc_now())
    trusted, long_ago = ours.certificate_pem, utc_now() - timedelta(days=100)
    good = client_tls(make_identity(ours, "a", tmp_path / "good"))
    refused = {
        "foreign": client_tls(make_identity(foreign, "a", tmp_path / "foreign", trusted=trusted)),
        "ended": client_tls(make_identity(ours, "a", tmp_path / "ended", now=long_ago)),
        "not yet": client_tls(make_identity(ours, "a", tmp_path / "early", now=utc_now() + timedelta(days=2))),
        "none": ssl.create_default_context(cafile=str(tmp_path / "good" / "authority.pem")),
    }
    for port in (control_plane.control_port, control_plane.data_port):
        assert _connack(port, good)[0] == 0
        for name, context in refused.items():
            assert _connack(port, context)[0] == -1, name
            secret = broker.read_password(control_plane.context.layout.server_password)
            assert _connack(port, context, user="server", password=secret)[0] == -1, name


def test_a_password_counts_for_nothing_on_the_listeners_of_devices(control_plane: ControlPlane, tmp_path: Path) -> None:
    ours = CertificateAuthority.load(control_plane.context.layout.pki)
    identity = make_identity(ours, "device-a", tmp_path / "a")
    layout = control_plane.context.layout
    watcher = control_plane.user("operator")
    watcher.subscribe("skerry/v1/#")
    for port in (control_plane.control_port, control_plane.data_port):
        for user, file in (("server", layout.server_password), ("operator", layout.operator_password)):
            client = DeviceClient.of(port, identity, username=user, password=broker.read_password(file))
            control_plane.wait_until(client.try_connected, what="it is connected, as the device")
            mid = client.publish("skerry/v1/d/device-b/cmd", b"forged")
            control_plane.wait_until(lambda c=client, m=mid: m in c.acknowledged, what="the answer")
            assert client.acknowledged[mid] == "Not authorized"
            client.close()
    assert watcher.received.empty()
    watcher.close()


def test_revoking_cuts_both_live_sessions_and_refuses_the_next_ones(control_plane: ControlPlane) -> None:
    device = control_plane.device("device-a")
    identity = control_plane.identity_of("device-a")
    data = DeviceClient.of(control_plane.data_port, identity)
    other = control_plane.device("device-b")
    control_plane.wait_until(data.try_connected, what="the data connection stands")
    code, ticket = _connack(control_plane.data_port, client_tls(identity))  # takes the data session over
    assert code == 0
    _revoke(control_plane, "device-a")
    assert device.disconnects.get(timeout=10)
    assert data.disconnects.get(timeout=10)
    for port in (control_plane.control_port, control_plane.data_port):
        assert _connack(port, client_tls(identity))[0] == -1
        context = client_tls(identity)
        with contextlib.suppress(ValueError):  # a ticket of another context cannot be used at all
            assert _connack(port, context, session=ticket)[0] == -1
    assert not device.try_connected()
    assert not data.try_connected()
    assert other.try_connected()
    assert other.disconnects.empty()
    # Enrolled again it is let in; the certificate before stays refused, also one that is revoked in the same second.
    old = client_tls(identity)
    assert _connack(control_plane.control_port, client_tls(control_plane.enroll("device-a")))[0] == 0
    _revoke(control_plane, "device-b")
    assert other.disconnects.get(timeout=10)
    assert _connack(control_plane.control_port, old)[0] == -1
    assert _connack(control_plane.control_port, client_tls(control_plane.identity_of("device-b")))[0] == -1
    for client in (device, data, other):
        client.close()


def test_a_resumed_tls_session_is_no_way_around_a_revocation(control_plane: ControlPlane) -> None:
    identity = control_plane.enroll("device-a")
    context = client_tls(identity)
    code, ticket = _connack(control_plane.control_port, context)
    assert code == 0
    _revoke(control_plane, "device-a")
    assert _connack(control_plane.control_port, context, session=ticket)[0] == -1


def test_the_controller_finishes_what_a_killed_process_left_undone(control_plane: ControlPlane) -> None:
    context = control_plane.context
    device = control_plane.device("device-a")
    with context.database.transaction() as session:  # the rows of a revocation, without what follows the commit
        row = service.get_device(session, "device-a")
        row.revoked = True
        session.add(
            RevokedCertificate(
                serial=row.certificate_serial,
                device_id="device-a",
                revoked_ms=now_ms(),
                not_after_ms=row.certificate_not_after_ms,
            )
        )
    (context.layout.broker / "passwords").write_bytes(b"x:$7$101$AAAA$AAAA\n")
    assert device.try_connected()
    controller = broker.BrokerAccessController(context.database, context.config, context.layout)
    controller.step()
    assert device.disconnects.get(timeout=10)
    assert _connack(control_plane.control_port, client_tls(control_plane.identity_of("device-a")))[0] == -1
    control_plane.link()  # the password of the server is known again
    before = context.layout.revocation_list.read_bytes()
    controller.step()
    assert context.layout.revocation_list.read_bytes() == before
    device.close()


def test_a_connection_that_was_waiting_when_its_certificate_was_revoked_does_not_stay(
    control_plane: ControlPlane,
) -> None:
    identity = control_plane.enroll("device-a")
    context = control_plane.context
    with _tls(control_plane.control_port, client_tls(identity)) as stream:
        _revoke(control_plane, "device-a")  # the handshake is done, there is no session to end yet
        stream.sendall(connect_packet("any", username="", password=""))
        assert stream.recv(64)[3] == 0  # mosquitto looks at the list at the handshake only
        broker.BrokerAccessController(context.database, context.config, context.layout).step()
        while stream.recv(64):  # ends within the socket's timeout
            pass


def test_after_a_restart_of_the_broker_the_revoked_stay_out(control_plane: ControlPlane) -> None:
    good, bad = control_plane.enroll("device-a"), control_plane.enroll("device-b")
    _revoke(control_plane, "device-b")
    control_plane.kill_broker()
    control_plane.start_broker()
    assert _connack(control_plane.control_port, client_tls(good))[0] == 0
    assert _connack(control_plane.control_port, client_tls(bad))[0] == -1


def test_ending_a_session_says_why_it_cannot(control_plane: ControlPlane, wait_until: Wait) -> None:
    address = ("127.0.0.1", control_plane.port)
    with pytest.raises(SessionCutError, match="refused with reason 0x87"):
        end_sessions(address, ["device-a"], username="server", password="wrong")
    password = broker.read_password(control_plane.context.layout.server_password)
    end_sessions(address, ["device-a", "CN=device-a"], username="server", password=password)  # it has none
    child = control_plane.child
    assert child is not None
    os.kill(child.pid, signal.SIGSTOP)
    with pytest.raises(SessionCutError, match="timed out"):
        end_sessions(address, ["device-a"], username="server", password=password, deadline_s=0.2)
    os.kill(child.pid, signal.SIGCONT)
    control_plane.kill_broker()
    wait_until(lambda: child.exit_status() is not None, what="the broker is gone")
    with pytest.raises(SessionCutError, match="refused"):
        end_sessions(address, ["device-a"], username="server", password=password)
    broker.cut_off(control_plane.context.config, control_plane.context.layout, ["device-a"])  # nothing to end
