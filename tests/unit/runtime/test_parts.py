"""Back-off, ports, passwords, state file, SuperLink command line: the parts of ``skerry up`` without its processes."""

from __future__ import annotations

import json
import os
import socket
from dataclasses import replace
from pathlib import Path

import pytest

from skerry_server import broker_passwords, ports, superlink
from skerry_server.clock import now_ms
from skerry_server.config import ServerConfig, ServerLayout, load_config
from skerry_server.controllers import ControllerStatus
from skerry_server.errors import InvalidRequestError, PlatformError
from skerry_server.first_start import make_folders, prepare
from skerry_server.runtime.status_file import STALE_AFTER_MS, read_runtime_status, runtime_ready, write_runtime_status
from skerry_server.supervision import child
from skerry_server.supervision.backoff import HEALTHY_AFTER_S, Backoff
from skerry_server.supervision.state_file import (
    ProcessState,
    TreeState,
    process_created_s,
    read_state,
    state_path,
    write_state,
)
from skerry_server.tally import Tally


def test_backoff_doubles_and_starts_over_after_a_healthy_life() -> None:
    waits = Backoff()
    assert [waits.after_exit(lived_s=0.0) for _ in range(9)] == [0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 12.8, 25.6, 30.0]
    assert waits.after_exit(lived_s=HEALTHY_AFTER_S) == 0.2
    assert waits.after_exit(lived_s=HEALTHY_AFTER_S - 0.1) == 0.4


def test_free_ports_are_distinct_and_can_be_listened_on() -> None:
    chosen = ports.free_ports("127.0.0.1", 6)
    assert len(set(chosen)) == 6
    for port in chosen:
        ports.check_free("127.0.0.1", port, part="a test", option="--port")


def test_a_busy_port_is_an_error_that_says_what_to_do() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(PlatformError) as caught:
            ports.check_free("127.0.0.1", taken.getsockname()[1], part="the gRPC API", option="--grpc-port")
    assert "for the gRPC API, is in use" in caught.value.what
    assert "--grpc-port" in caught.value.remedy


def test_an_address_of_another_machine_is_refused() -> None:
    with pytest.raises(PlatformError, match="--host"):
        ports.free_ports("203.0.113.7", 1)


@pytest.mark.parametrize(
    ("host", "local"), [("127.0.0.1", "127.0.0.1"), ("0.0.0.0", "127.0.0.1"), ("::", "::1"), ("10.1.2.3", "10.1.2.3")]
)
def test_wildcards_are_reached_by_loopback_from_here_and_never_from_elsewhere(host: str, local: str) -> None:
    assert ports.connect_address(host) == local
    assert ports.reachable_address(host) not in ("0.0.0.0", "::", "")


def test_a_hash_matches_its_password_only() -> None:
    hashed = broker_passwords.hash_password("geheim")
    assert hashed.startswith("$7$101$")
    assert broker_passwords.matches("geheim", hashed)
    assert broker_passwords.hash_password("geheim") != hashed  # another salt
    for wrong in ("Geheim", "", "geheim "):
        assert not broker_passwords.matches(wrong, hashed)
    for broken in ("", "geheim", "$6$101$AAAA$BBBB", "$7$x$AAAA$BBBB", "$7$101$?$BBBB", hashed[:-1]):
        assert not broker_passwords.matches("geheim", broken)


def test_the_password_file_is_sorted_and_read_back() -> None:
    users = {"b": "$7$1$c2FsdA==$aGFzaA==", "a": "x"}
    data = broker_passwords.render(users)
    assert data == b"a:x\nb:$7$1$c2FsdA==$aGFzaA==\n"
    assert broker_passwords.parse(data) == users
    assert broker_passwords.parse(b"no colon\n:x\nc:\n\xff:y\n" + data) == users | {"�": "y"}


@pytest.fixture
def layout(tmp_path: Path) -> ServerLayout:
    made = ServerLayout(tmp_path / "data")
    make_folders(made)
    return made


def test_the_first_start_can_be_repeated_and_changes_nothing_that_exists(layout: ServerLayout) -> None:
    first = prepare(layout, {})
    kept = {path: path.read_bytes() for path in (layout.config, layout.admin_token, layout.server_password)}
    again = prepare(layout, {})
    assert first.new_admin_token
    assert again == replace(first, new_admin_token="")
    assert kept == {path: path.read_bytes() for path in kept}
    assert {path.stat().st_mode & 0o777 for path in kept} == {0o600}


def test_a_first_start_that_was_killed_is_finished_by_the_next(layout: ServerLayout) -> None:
    layout.admin_token.write_text("skerry-made-but-not-stored\n")
    assert prepare(layout, {}).new_admin_token == "skerry-made-but-not-stored"
    assert prepare(layout, {}).new_admin_token == ""


def test_settings_given_later_are_written_down_and_kept(layout: ServerLayout) -> None:
    first = prepare(layout, {}).config
    port = ports.free_ports("127.0.0.1", 1)[0]
    changed = prepare(layout, {"broker_port": port}).config
    assert changed == first.model_copy(update={"broker_port": port})
    assert prepare(layout, {}).config == changed == load_config(layout)


def test_a_configuration_of_an_earlier_version_gets_the_ports_that_came_later(layout: ServerLayout) -> None:
    first = prepare(layout, {}).config
    document = first.model_dump(exclude={"broker_tls_port", "broker_data_port", "device_port"})
    layout.config.write_text(json.dumps(document))
    upgraded = prepare(layout, {}).config
    assert upgraded.model_dump(exclude={"broker_tls_port", "broker_data_port", "device_port"}) == document
    assert len({upgraded.broker_port, upgraded.broker_tls_port, upgraded.broker_data_port, upgraded.device_port}) == 4
    assert load_config(layout) == upgraded


def test_a_setting_out_of_range_is_refused_and_nothing_is_written(layout: ServerLayout) -> None:
    prepare(layout, {})
    before = layout.config.read_bytes()
    with pytest.raises(InvalidRequestError, match="broker_port"):
        prepare(layout, {"broker_port": 70_000})
    assert layout.config.read_bytes() == before


def test_a_broken_configuration_is_named_and_left_alone(layout: ServerLayout) -> None:
    layout.config.write_text('{"api_port": "x"}')
    with pytest.raises(PlatformError, match=r"server\.json: api_port"):
        prepare(layout, {})
    assert layout.config.read_text() == '{"api_port": "x"}'
    assert not layout.database.exists()


def _tree(processes: list[ProcessState]) -> TreeState:
    created = process_created_s(os.getpid()) or 0.0
    return TreeState(os.getpid(), created, "http://a", "b", "c", "d", True, processes)


def test_the_state_file_is_read_back_and_knows_recycled_identifiers(layout: ServerLayout) -> None:
    created = process_created_s(os.getpid())
    assert created is not None
    processes = [ProcessState("me", os.getpid(), created), ProcessState("recycled", os.getpid(), created - 100.0)]
    write_state(layout, _tree([*processes, ProcessState("waiting", 0)]))
    state = read_state(layout)
    assert state == _tree([*processes, ProcessState("waiting", 0)])
    assert state.alive()
    assert [process.alive() for process in state.processes] == [True, False, False]


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"processes": 3}', '{"processes": [{"name": 1}]}', "null"])
def test_a_broken_state_file_counts_as_none(layout: ServerLayout, content: str) -> None:
    state_path(layout).write_text(content)
    assert read_state(layout) is None


def test_the_runtime_is_ready_when_that_process_has_reached_the_broker(layout: ServerLayout) -> None:
    ready = runtime_ready(layout)
    assert not ready(os.getpid())
    status = [ControllerStatus("one", steps=3)]
    write_runtime_status(layout, broker_connected=False, broker_error="refused", controllers=status, counts={})
    assert not ready(os.getpid())
    write_runtime_status(layout, broker_connected=True, broker_error="", controllers=status, counts={"x": 1})
    assert ready(os.getpid())
    assert not ready(os.getpid() + 1)
    read = read_runtime_status(layout)
    assert read is not None
    assert (read.controllers, read.counts) == (status, {"x": 1})
    assert not read.stale(now_ms())
    assert read.stale(read.written_ms + STALE_AFTER_MS + 1)


def test_the_superlink_is_told_everything(layout: ServerLayout) -> None:
    config = ServerConfig(
        api_port=1,
        grpc_port=2,
        broker_port=3,
        broker_tls_port=5,
        broker_data_port=6,
        device_port=7,
        superlink_port=4,
    )
    command = superlink.command(config, layout)
    assert command[3:5] == [str(superlink.secret_file(layout)), str(superlink.lane_folder(layout))]
    assert "--enable-supernode-auth" in command
    assert "--insecure" not in command
    for option, path in (
        ("--ssl-ca-certfile", layout.authority_certificate),
        ("--ssl-certfile", layout.server_certificate),
        ("--ssl-keyfile", layout.server_key),
    ):
        assert command[command.index(option) + 1] == str(path)
    assert command[command.index("--port") + 1] == "4"
    assert command[command.index("--database") + 1] == str(layout.superlink / "state.db")
    assert command[command.index("--isolation") + 1 :] == ["process"]
    environment = superlink.environment(layout, {"PATH": "/bin", "HOME": "/home/x"})
    assert environment["FLWR_TELEMETRY_ENABLED"] == "0"
    assert environment["FLWR_HOME"] == str(layout.superlink)
    assert (environment["PATH"], environment["HOME"]) == ("/bin", "/home/x")


def test_the_operators_secret_is_made_once_for_its_owner_only(layout: ServerLayout) -> None:
    path = superlink.secret_file(layout)
    secret = superlink.ensure_secret(path)
    assert len(secret) >= 32
    assert superlink.ensure_secret(path) == secret
    assert path.stat().st_mode & 0o077 == 0
    path.write_text("")  # a disk that was full
    assert len(superlink.ensure_secret(path)) >= 32


def test_a_listener_with_tls_is_ready_only_for_its_own_authority(layout: ServerLayout) -> None:
    with pytest.raises(ValueError, match="authority"):
        child.http_ready("https://127.0.0.1:1/health")
    with pytest.raises(ValueError, match="https"):
        child.http_ready("http://127.0.0.1:1/health", authority=layout.authority_certificate)
    assert not child.http_ready("https://127.0.0.1:1/health", authority=layout.authority_certificate)(0)


def test_a_large_log_keeps_one_older_generation_under_an_open_descriptor(tmp_path: Path) -> None:
    path = tmp_path / "one.log"
    with path.open("ab", buffering=0) as writer:
        writer.write(b"a" * (child.LOG_BYTES + 1))
        child.rotate(path)
        writer.write(b"new\n")
    assert path.read_bytes() == b"new\n"
    assert (tmp_path / "one.log.1").stat().st_size == child.LOG_BYTES + 1
    child.rotate(path)
    assert path.read_bytes() == b"new\n"
    assert child.last_lines(path) == "new"
    assert child.last_lines(tmp_path / "none.log") == ""


def test_a_tally_counts_by_name() -> None:
    tally = Tally()
    tally.add("b", 2)
    tally.add("a")
    tally.add("b")
    assert tally.counts() == {"a": 1, "b": 3}
