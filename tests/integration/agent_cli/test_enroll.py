"""`skerry-agent enroll` against a TLS server that can misbehave; and the command line as a user meets it."""

from __future__ import annotations

import json
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
from cryptography.hazmat.primitives.serialization import load_pem_public_key

from integration.link.broker import free_port
from integration.link.device_server import GIVEN, DeviceServer
from integration.link.identity import now
from skerry_agent import cli
from skerry_agent.config import AgentLayout, load_config
from skerry_agent.enroll import enroll as enroll_device
from skerry_agent.errors import DeviceError
from skerry_agent.files import Disk
from skerry_agent.identity.identity_files import IdentityFiles
from skerry_agent.link.backoff import ReconnectSpread
from skerry_agent.trusted_clock import TrustedClock
from skerry_server.fleet.authority import CertificateAuthority
from unit.identity.power_disk import PowerCut, PowerDisk
from unit.update.disks import TestDisk

DEVICE = "press-07"
ENROLL = "/device/v1/enroll"
Change = Callable[[dict[str, Any]], Any]


def snapshot(root: Path) -> dict[str, bytes]:
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}


@pytest.fixture
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DeviceServer]:
    running = DeviceServer(tmp_path_factory.mktemp("server"))
    yield running
    running.stop()


def enroll(
    server: DeviceServer, root: Path, *more: str, device_id: str = DEVICE, token: str = "", url: str = ""
) -> int:
    arguments = ["--server", url or server.url, "--token", token or server.token, "--device-id", device_id]
    return cli.run(["enroll", *arguments, "--data-dir", str(root), *more])


def test_enrolment_writes_an_identity_and_what_the_server_gave(
    server: DeviceServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = now()
    code = enroll(
        server, tmp_path / "d", "--label", "site=north", "--label", "line=2", "--set", "health_seconds=5",
        url=server.url + "/",
    )  # fmt: skip
    assert code == 0
    assert "enrolled as press-07" in capsys.readouterr().out
    layout = AgentLayout(tmp_path / "d")
    config = load_config(layout)
    assert (config.broker_port, config.broker_data_port, config.device_api) == (8883, 8884, GIVEN["device_api"])
    assert (config.health_seconds, config.labels) == (5.0, {"site": "north", "line": "2"})
    identity = IdentityFiles(layout).read()
    assert identity.facts.device_id == DEVICE
    assert identity.authority_pem == server.authority.certificate_pem
    server.authority.check_issued(identity.certificate_pem)
    for path in (layout.config, layout.identity / "key.pem", layout.identity / "node-key.pem"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert (layout.trust / "root.json").read_text() == GIVEN["trust_root"]
    assert ReconnectSpread(layout.root / "link" / "spread.json").seconds == 30.0
    floor_ms = TrustedClock(layout.trust / "clock.json").floor_ms
    assert abs(floor_ms / 1000 - (before - timedelta(hours=1)).timestamp()) < 60, "the authority vouched for that"
    [(asked, body)] = server.bodies
    assert asked == ENROLL
    assert body["token"] == server.token
    assert body["labels"] == {"site": "north", "line": "2"}
    assert body["device_class"] in ("x86_64", "aarch64", "jetson")
    node_key = load_pem_public_key(body["node_public_key"].encode())
    assert isinstance(node_key, EllipticCurvePublicKey)
    assert node_key.curve.name == "secp384r1"
    assert "PRIVATE" not in json.dumps(body), "no private key leaves the device"


def test_an_enrolled_device_is_not_enrolled_again_unless_forced(server: DeviceServer, tmp_path: Path) -> None:
    assert enroll(server, tmp_path) == 0
    before = snapshot(tmp_path)
    TrustedClock(tmp_path / "trust" / "clock.json").learn(4_000_000_000_000)
    with_poisoned_clock = snapshot(tmp_path)
    server.change = lambda answer: {**answer, "broker_port": 9999}
    assert enroll(server, tmp_path) == 3
    assert snapshot(tmp_path) == with_poisoned_clock
    assert len(server.bodies) == 1, "the token is not spent"
    assert enroll(server, tmp_path, "--force") == 0
    assert load_config(AgentLayout(tmp_path)).broker_port == 9999
    after = snapshot(tmp_path)
    assert after["identity/key.pem"] != before["identity/key.pem"]
    assert after["identity/node-key.pem"] != before["identity/node-key.pem"], "the SuperLink takes no key twice"
    assert TrustedClock(tmp_path / "trust" / "clock.json").floor_ms < 4_000_000_000_000


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--label", "site"], "--label: expected distinct key=value pairs, got site"),
        (["--label", "a=1", "--label", "a=2"], "--label: expected distinct key=value pairs"),
        (["--set", "colour=red"], "--set: expected one of"),
        (["--set", "broker_data_port=1"], "--set: expected one of"),
        (["--set", "http_port=70000"], "--set: http_port"),
        (["--set", "health_seconds=soon"], "--set: health_seconds"),
    ],
)
def test_wrong_arguments_spend_no_token(
    server: DeviceServer, tmp_path: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert enroll(server, tmp_path, *arguments) == 2
    assert message in capsys.readouterr().err
    assert snapshot(tmp_path) == {}
    assert server.bodies == []


@pytest.mark.parametrize("token", ["enroll-abcdefgh", "enroll-abcdefgh.12ab", "enroll-abcdefgh." + "g" * 32, "."])
def test_a_token_without_a_fingerprint_is_not_sent(
    server: DeviceServer, tmp_path: Path, token: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert enroll(server, tmp_path, token=token) == 2
    assert "--token: expected the whole token" in capsys.readouterr().err
    assert server.bodies == []


def test_a_bad_name_spends_no_token(server: DeviceServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert enroll(server, tmp_path, device_id="Press 7") == 2
    assert "--device-id: expected 1 to 63 characters" in capsys.readouterr().err
    assert server.bodies == []


def test_whoever_stands_between_gets_no_token(
    server: DeviceServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wanted = CertificateAuthority.create(now=now())
    token = f"enroll-c2VjcmV0c2VjcmV0.{wanted.fingerprint[:32]}"
    assert enroll(server, tmp_path, token=token) == 3
    assert "is not the control plane of this token" in capsys.readouterr().err
    # It passes the true authority on, but cannot speak for it.
    server.authority_pem = wanted.certificate_pem
    assert enroll(server, tmp_path, token=token) == 3
    assert "does not prove that it is your control plane" in capsys.readouterr().err
    server.authority_pem = b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"
    assert enroll(server, tmp_path, token=token) == 3
    assert "gave no certificate of an authority" in capsys.readouterr().err
    assert server.bodies == []
    assert snapshot(tmp_path) == {}


def test_a_server_under_another_name_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    server = DeviceServer(tmp_path / "server", names=("elsewhere.example",))
    try:
        assert enroll(server, tmp_path / "d") == 3
        assert "does not prove that it is your control plane" in capsys.readouterr().err
        assert server.bodies == []
    finally:
        server.stop()


def without(name: str) -> Change:
    return lambda answer: {key: value for key, value in answer.items() if key != name}


def instead(**values: Any) -> Change:
    return lambda answer: answer | values


def for_another_key(answer: dict[str, Any]) -> dict[str, Any]:
    from integration.link.identity import authority_of_tests
    from skerry_agent.identity.certificate import make_request, new_key, request_to_pem

    csr = request_to_pem(make_request(new_key(), DEVICE)).encode()
    return answer | {"certificate": authority_of_tests().issue_device(csr, device_id=DEVICE, now=now()).decode()}


@pytest.mark.parametrize(
    ("status", "change", "code", "message"),
    [
        (403, lambda _: {"detail": "the token was used by press-01"}, 2, "got 403 the token was used by press-01"),
        (403, lambda _: {"detail": "the token has expired"}, 2, "got 403 the token has expired"),
        (422, lambda _: b"<html>\nno</html>", 2, "got 422 <html> no</html>"),
        (429, lambda _: {"title": "later"}, 3, "answered 429 later"),
        (503, lambda _: {"title": "starting"}, 3, "answered 503 starting"),
        (302, lambda _: b"", 3, "answered 302"),
        (201, lambda _: b"hello", 3, "did not answer with a JSON object"),
        (201, lambda _: b"[" * 100_000, 3, "did not answer with a JSON object"),
        (201, lambda _: bytes(2 << 20), 3, "says too much"),
        (201, instead(device_id="press-08"), 3, "enrolled 'press-08' instead"),
        (201, instead(broker_port=0), 2, "broker_port"),
        (201, instead(device_api="http://10.0.0.2:1"), 2, "device_api"),
        (201, without("release_keys"), 2, "release_keys"),
        (201, instead(release_keys=["abcd"]), 2, "release_keys: expected 32 bytes in hexadecimal"),
        (201, without("certificate"), 2, "certificate: expected text"),
        (201, instead(certificate="hello"), 2, "no certificate in PEM"),
        (201, for_another_key, 2, "for another key"),
        (201, instead(trust_root=""), 2, "trust_root: expected text"),
        (201, instead(trust_root="{}"), 2, "trust_root: expected root metadata"),
        (201, instead(reconnect_spread_ms=-1), 2, "reconnect_spread_ms"),
    ],
)
def test_a_bad_answer_writes_nothing(
    server: DeviceServer,
    tmp_path: Path,
    status: int,
    change: Change,
    code: int,
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    server.status, server.change = status, change
    assert enroll(server, tmp_path) == code
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1, "one line, no traceback"
    assert snapshot(tmp_path) == {}


def test_a_server_that_is_away(server: DeviceServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert enroll(server, tmp_path, url=f"https://127.0.0.1:{free_port()}") == 3
    assert "cannot be reached" in capsys.readouterr().err
    for url in ("ftp://somewhere", "http://10.0.0.2:8080", "https://", "https://h:x", "https://h/api", "10.0.0.2:8443"):
        assert enroll(server, tmp_path, url=url) == 2
        assert "--server: expected a URL" in capsys.readouterr().err
    assert snapshot(tmp_path) == {}


def enroll_on(server: DeviceServer, root: Path, disk: Disk) -> None:
    enroll_device(
        AgentLayout(root), server=server.url, token=server.token, device_id=DEVICE, device_class="x86_64",
        labels={}, settings={}, force=True, disk=disk,
    )  # fmt: skip


@pytest.mark.parametrize("forgets", [False, True])
def test_half_an_enrolment_is_none(server: DeviceServer, tmp_path: Path, forgets: bool) -> None:
    """Every system call of a second enrolment is cut: it is the first, the second, or none, and never a mixture."""
    cuts, found = 0, set()
    enroll_on(server, tmp_path / "first", TestDisk())
    first = IdentityFiles(AgentLayout(tmp_path / "first")).read().facts
    server.change = instead(broker_port=9999)
    for cut_at in range(200):
        root = tmp_path / str(cut_at)
        shutil.copytree(tmp_path / "first", root)
        try:
            enroll_on(server, root, PowerDisk(cut_at=cut_at, forgets=forgets))
        except PowerCut:
            cuts += 1
        else:
            break
        if (root / "agent.json").exists():
            facts = IdentityFiles(AgentLayout(root)).read().facts
            assert (root / "trust" / "root.json").exists()
            found.add("first" if facts == first else "second")
            assert load_config(AgentLayout(root)).broker_port == (8883 if facts == first else 9999)
        else:
            found.add("none")
    assert cuts > 20, "every system call was cut"
    assert {"first", "none"} <= found


def test_a_full_disk_is_told_and_the_device_is_not_enrolled(server: DeviceServer, tmp_path: Path) -> None:
    disk = TestDisk()
    disk.fail = lambda call, path: (
        OSError(28, "No space left on device") if call == "create" and "certificate" in str(path) else None
    )
    with pytest.raises(DeviceError, match=r"No space left on device: free space and enrol with a new token"):
        enroll_on(server, tmp_path, disk)
    assert not (tmp_path / "agent.json").exists()


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["status"], 3, "enrol the device"),
        (["dance"], 2, "No such command 'dance'"),
        (["enroll"], 2, "Missing option"),
        (["run", "--colour"], 2, "No such option"),
    ],
)
def test_errors_are_one_line_and_have_a_status(
    tmp_path: Path, arguments: list[str], code: int, message: str, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setenv("SKERRY_AGENT_DIR", str(tmp_path))
    assert cli.run(arguments) == code
    assert message in capsys.readouterr().err
    assert snapshot(tmp_path) == {}


def test_a_process_ends_with_the_status_and_without_a_traceback(tmp_path: Path) -> None:
    environment = {"SKERRY_AGENT_DIR": str(tmp_path), "PATH": "/usr/bin:/bin"}
    result = subprocess.run(
        [sys.executable, "-m", "skerry_agent.cli", "run"],
        capture_output=True, text=True, timeout=60, env=environment, check=False,
    )  # fmt: skip
    assert result.returncode == 3
    assert "enrol the device" in result.stderr
    assert "Traceback" not in result.stderr
    assert snapshot(tmp_path) == {}


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["--help"]) == 0
    text = capsys.readouterr().out
    for command in ("enroll", "run", "status", "version"):
        assert command in text
    assert cli.run(["version"]) == 0
    assert capsys.readouterr().out.strip()


def test_a_broken_configuration_names_the_field(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "agent.json").write_text(json.dumps({"device_id": DEVICE, **GIVEN, "http_port": -1}))
    assert cli.run(["status", "--data-dir", str(tmp_path)]) == 3
    assert "trust_root" in capsys.readouterr().err
    known = {name: value for name, value in GIVEN.items() if name not in ("trust_root", "reconnect_spread_ms")}
    (tmp_path / "agent.json").write_text(json.dumps({"device_id": DEVICE, **known, "http_port": -1}))
    assert cli.run(["status", "--data-dir", str(tmp_path)]) == 3
    assert "http_port" in capsys.readouterr().err
