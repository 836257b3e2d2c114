"""The real process: both doors, the event stream, signals, busy ports."""

from __future__ import annotations

import json
import signal
import socket
import threading
from collections.abc import Iterator
from typing import Any

import grpc
import httpx
import pytest

from integration.api.processes import running_api, spawn
from integration.api.seeding import TOKENS, Seeded, add_device
from skerry_contract.v1 import fleet_api_pb2 as pb
from skerry_contract.v1 import fleet_api_pb2_grpc as api
from skerry_server.store.tables import Device

HEADERS = {"authorization": f"Bearer {TOKENS['viewer']}"}


@pytest.fixture
def url(seeded: Seeded) -> str:
    return seeded.url


def _events(lines: Iterator[str]) -> Iterator[tuple[str, dict[str, list[str]]]]:
    kind = ""
    for line in lines:
        if line.startswith("event: "):
            kind = line.removeprefix("event: ")
        elif line.startswith("data: "):
            yield kind, json.loads(line.removeprefix("data: "))


def test_one_process_serves_both_doors_streams_changes_and_ends_on_sigterm_with_streams_open(
    seeded: Seeded, url: str
) -> None:
    with running_api(seeded.folder, url) as process:
        with grpc.insecure_channel(f"127.0.0.1:{seeded.context.config.grpc_port}") as channel:
            metadata = [("authorization", HEADERS["authorization"])]
            stub: Any = api
            devices = (
                stub.FleetServiceStub(channel).ListDevices(pb.ListRequest(), metadata=metadata, timeout=20).devices
            )
            assert len(devices) == 8
        with httpx.stream("GET", f"{url}/v1/events", headers=HEADERS, timeout=30, trust_env=False) as stream:
            assert stream.headers["content-type"].startswith("text/event-stream")
            events = _events(stream.iter_lines())
            assert next(events)[0] == "hello"
            changed = threading.Event()

            def change_until_seen() -> None:
                # The feed compares with its first look, which may come after our first change.
                sequence = 0
                while not changed.wait(0.2):
                    sequence += 1
                    with seeded.context.database.transaction() as session:
                        device = session.get(Device, "press-03")
                        assert device is not None
                        device.chunks_done = 60 + sequence

            thread = threading.Thread(target=change_until_seen)
            thread.start()
            try:
                kind, data = next(events)
            finally:
                changed.set()
                thread.join()
            assert (kind, data) == ("change", {"topics": ["devices"]})
            process.send_signal(signal.SIGTERM)
            assert all(kind == "change" for kind, _ in events)  # until the stream ends
            assert process.wait(20) == 0


def test_the_event_stream_needs_a_token(seeded: Seeded, url: str) -> None:
    with running_api(seeded.folder, url):
        answer = httpx.get(f"{url}/v1/events", timeout=20, trust_env=False)
        assert (answer.status_code, answer.json()["error"]["kind"]) == (401, "unauthenticated")


@pytest.mark.parametrize("door", ["api_port", "grpc_port", "device_port"])
def test_a_busy_port_is_told_and_no_door_opens(seeded: Seeded, door: str) -> None:
    busy = getattr(seeded.context.config, door)
    other = seeded.context.config.grpc_port if door == "api_port" else seeded.context.config.api_port
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", busy))
        holder.listen()
        process = spawn(seeded.folder)
        output, _ = process.communicate(timeout=60)
    assert process.returncode == 3
    last = output.strip().splitlines()[-1]
    assert last.startswith("skerry api: ")
    assert str(busy) in last
    assert "server.json" in last
    assert "Traceback" not in output
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", other)) != 0


def test_a_missing_data_directory_is_told(seeded: Seeded) -> None:
    process = spawn(seeded.folder / "nowhere")
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 3
    assert "skerry up" in output
    assert "Traceback" not in output


def test_a_writer_does_not_stop_readers(seeded: Seeded, url: str) -> None:
    """A transaction that is held open for writing must not make a read wait for it."""
    with running_api(seeded.folder, url), seeded.context.database.transaction() as session:
        add_device(session, "unborn")
        session.flush()
        answer = httpx.get(f"{url}/v1/devices", headers=HEADERS, timeout=10, trust_env=False)
        assert len(answer.json()["items"]) == 8
