"""A file to many devices: the real chunk server over a real mosquitto, beside a raw TCP fan-out of the same bytes.

``python benchmarks/delivery.py [--json FILE] [--pairs N] [--devices N ...] [--megabytes N]``

The broker has the configuration that the control plane generates; the file lies in the artifact store on disk; the
subscribers (receivers.py) are light and speak the real protocol. Ours counts from the first request to the last device
that holds the whole file, every chunk of which was compared byte for byte; the fan-out counts from its first byte to
the last byte compared. Runs of both take turns. Bytes are those of every message that the chunk server publishes,
framing included. The main rows use the plain listener, since the fan-out has no TLS; rows of mutual TLS stand beside
them. The last part injects loss at every receiver and lets some stall: they ask, and never read.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import platform
import selectors
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from broker_rig import PASSWORD, Broker, running_broker
from skerry_contract.limits import CHUNK_BYTES
from skerry_server.controllers import ControllerRunner
from skerry_server.delivery.chunk_server import ChunkServer
from skerry_server.link import ServerLink
from skerry_server.releases.artifacts import ArtifactStore

RECEIVERS = Path(__file__).with_name("receivers.py")
#: Processes that the subscribers are divided over.
PROCESSES = 2
DEADLINE_S = 300.0
LOSS, STALLED = 0.2, 0.1
BYTES_GOAL, TIME_GOAL, MEMORY_GOAL_MB = 1.05, 1.5, 64.0
SENDING_BYTES = 128 << 10


@dataclass
class CountingLink:
    """The server's link, and what goes through it."""

    link: ServerLink
    sent_bytes: int = 0

    @property
    def connected(self) -> bool:
        """See :class:`ServerLink`."""
        return self.link.connected

    def publish(self, topic: str, payload: bytes, *, retain: bool = False, expiry_s: int | None = None) -> Future[None]:
        """Count the whole packet: 5 bytes of fixed header, topic, packet identifier, expiry, payload."""
        self.sent_bytes += 5 + 2 + len(topic) + 2 + 6 + len(payload)
        return self.link.publish(topic, payload, retain=retain, expiry_s=expiry_s)

    def subscribe(self, topic_filter: str, handler: Callable[[str, bytes], None], /) -> None:
        """See :class:`ServerLink`."""
        self.link.subscribe(topic_filter, handler)


@dataclass(frozen=True)
class Delivered:
    """One run of ours."""

    seconds: float
    sent_bytes: int
    unicasts: int
    requests: int
    lost: int
    broker_cpu_s: float
    server_cpu_s: float
    receivers_cpu_s: float


@contextlib.contextmanager
def receivers(options: dict[str, Any], names: Sequence[str]) -> Iterator[list[subprocess.Popen[str]]]:
    """Start the processes of some subscribers; they are connected when this is entered."""
    count = min(PROCESSES, len(names))
    started = [
        subprocess.Popen(
            [sys.executable, RECEIVERS, json.dumps({**options, "names": names[part::count], "seed": part})],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for part in range(count)
    ]
    try:
        yield started
    finally:
        for process in started:
            process.kill()
            process.wait()
            for stream in (process.stdin, process.stdout):
                if stream is not None:
                    stream.close()


def line(process: subprocess.Popen[str]) -> str:
    """The next line that a process of receivers prints."""
    assert process.stdout is not None
    text = process.stdout.readline()
    if not text:
        raise RuntimeError("the receivers ended early")
    return text.strip()


@dataclass(frozen=True)
class Artifact:
    """What is delivered."""

    path: Path
    data: bytes
    sha256: str

    def options(self, **more: Any) -> dict[str, Any]:
        """Options of receivers."""
        return {
            "file": str(self.path),
            "sha256": self.sha256,
            "chunk_bytes": CHUNK_BYTES,
            "loss": 0.0,
            "stalled": [],
            "identities": "",
            "password": "",
            "raw": False,
            "deadline_s": DEADLINE_S,
            **more,
        }


def deliver(
    broker: Broker, artifact: Artifact, names: Sequence[str], *, loss: float = 0.0, stalled: int = 0, tls: str = ""
) -> Delivered:
    """Deliver to everybody and check that everybody who reads has everything."""
    config = broker.config
    store = ArtifactStore(f"file://{broker.layout.artifacts}", local=broker.layout.artifacts)
    if store.put_bytes(artifact.data) != artifact.sha256:
        raise AssertionError("the store has another file")
    link = CountingLink(
        ServerLink(
            host="127.0.0.1", port=config.broker_port, username="server", password=PASSWORD, client_id="bench-server"
        )
    )
    server = ChunkServer(link, store)
    server.start()
    runner = ControllerRunner([server])
    link.link.start()
    runner.start()
    try:
        while not link.connected:
            time.sleep(0.01)
        still = list(names)[:stalled]
        options = artifact.options(
            loss=loss,
            stalled=still,
            ports=[config.broker_tls_port, config.broker_data_port] if tls else [config.broker_port],
            password="" if tls else PASSWORD,
            identities=tls,
        )
        with receivers(options, names) as processes:
            for process in processes:
                if line(process) != "ready":
                    raise AssertionError("the receivers are not ready")
            cpu, broker_cpu, started = time.process_time(), broker.cpu_s(), time.monotonic()
            for process in processes:
                assert process.stdin is not None
                process.stdin.write("go\n")
                process.stdin.flush()
            results = [json.loads(line(process)) for process in processes]
            spent = time.process_time() - cpu, broker.cpu_s() - broker_cpu
    finally:
        runner.stop(deadline_s=10)
        link.link.stop()
    complete = sum(result["complete"] for result in results)
    if complete != len(names) - stalled:
        raise AssertionError(f"{complete} of {len(names) - stalled} devices hold the file after {DEADLINE_S:.0f} s")
    return Delivered(
        seconds=max(result["done_at"] for result in results) - started,
        sent_bytes=link.sent_bytes,
        unicasts=server.counters.unicasts,
        requests=sum(result["requests"] for result in results),
        lost=sum(result["lost"] for result in results),
        broker_cpu_s=spent[1],
        server_cpu_s=spent[0],
        receivers_cpu_s=sum(result["cpu_s"] for result in results),
    )


def fan_out(artifact: Artifact, names: Sequence[str]) -> tuple[float, float]:
    """A plain loop writes the file to as many connections: seconds, and CPU seconds of sender and receivers."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=2048)
    data = memoryview(artifact.data)
    options = artifact.options(ports=[listener.getsockname()[1]], raw=True)
    with listener, receivers(options, names) as processes, selectors.DefaultSelector() as selector:
        left: dict[Any, int] = {}
        for _ in names:
            connection, _address = listener.accept()
            connection.setblocking(False)
            selector.register(connection, selectors.EVENT_WRITE)
            left[connection] = 0
        for process in processes:
            line(process)
        cpu, started = time.process_time(), time.monotonic()
        while left:
            for key, _ in selector.select():
                receiver: Any = key.fileobj
                offset = left[receiver]
                with contextlib.suppress(BlockingIOError):
                    offset += receiver.send(data[offset : offset + SENDING_BYTES])
                left[receiver] = offset
                if offset == len(data):
                    selector.unregister(receiver)
                    del left[receiver]
        results = [json.loads(line(process)) for process in processes]
        cpu = time.process_time() - cpu + sum(result["cpu_s"] for result in results)
        return max(result["done_at"] for result in results) - started, cpu


def row(what: str, unit: str, ours: float, beside: dict[str, float], ratio: float, **more: Any) -> dict[str, Any]:
    """A row of the result."""
    row = {"what": what, "unit": unit, "ours": ours, "beside": beside, "ratio": ratio, "goal": "", "holds": None}
    return row | more


def measure(artifact: Artifact, count: int, pairs: int) -> list[dict[str, Any]]:
    """Rows for one number of devices, over the plain listener."""
    names = [f"device-{number:04}" for number in range(count)]
    ours: list[Delivered] = []
    raw: list[tuple[float, float]] = []
    with running_broker() as broker:
        for _ in range(pairs):
            ours.append(deliver(broker, artifact, names))
            raw.append(fan_out(artifact, names))
        memory = broker.memory_mb()
    seconds = statistics.median(one.seconds for one in ours)
    ratio = statistics.median(one.seconds / other for one, (other, _) in zip(ours, raw, strict=True))
    sent = max(one.sent_bytes for one in ours) / len(artifact.data)
    judged = {"goal": f"<= {TIME_GOAL} x raw", "holds": ratio <= TIME_GOAL} if count == 500 else {}
    middle = sorted(ours, key=lambda one: one.seconds)[len(ours) // 2]
    details = {
        "broker_cpu_s": middle.broker_cpu_s,
        "server_cpu_s": middle.server_cpu_s,
        "receivers_cpu_s": middle.receivers_cpu_s,
        "requests": middle.requests,
        "broker_mb": memory,
        "raw_cpu_s": statistics.median(cpu for _, cpu in raw),
        "seconds": [one.seconds for one in ours],
        "raw_seconds": [other for other, _ in raw],
    }
    beside = {"raw TCP fan-out": statistics.median(other for other, _ in raw)}
    return [
        row(
            f"{count} devices: time", "s", seconds, beside, ratio, **judged, details=details,
        ),
        row(
            f"{count} devices: bytes out of the server", "x artifact", sent, {"one copy": 1.0}, sent,
            goal=f"<= {BYTES_GOAL}", holds=sent <= BYTES_GOAL,
        ),
    ]  # fmt: skip


def measure_tls(artifact: Artifact, count: int) -> dict[str, Any]:
    """A row for two mutual-TLS connections per device, as agents make them."""
    names = [f"device-{number:04}" for number in range(count)]
    with running_broker() as broker, tempfile.TemporaryDirectory() as folder:
        for name in names:
            broker.identity(name, Path(folder) / name)
        tls = deliver(broker, artifact, names, tls=folder)
        plain = deliver(broker, artifact, names)
    ratio = tls.seconds / plain.seconds
    return row(f"{count} devices over mutual TLS: time", "s", tls.seconds, {"plain": plain.seconds}, ratio)


def measure_trouble(artifact: Artifact, count: int) -> list[dict[str, Any]]:
    """Rows for loss at every receiver and stalled ones among them."""
    names = [f"device-{number:04}" for number in range(count)]
    stalled = int(count * STALLED)
    with running_broker() as broker:
        done = deliver(broker, artifact, names, loss=LOSS, stalled=stalled)
        memory = broker.memory_mb()
    what = f"{count} devices, {LOSS:.0%} of chunks lost, {STALLED:.0%} stalled"
    copies = done.sent_bytes / len(artifact.data)
    healthy = count - stalled
    return [
        row(
            f"{what}: healthy ones complete", "devices", healthy, {"healthy": healthy}, 1.0,
            goal="all", holds=True,
            details={"seconds": done.seconds, "lost": done.lost, "requests": done.requests, "unicasts": done.unicasts},
        ),
        row(
            f"{what}: memory of the broker", "MB", memory, {"limit": MEMORY_GOAL_MB}, memory / MEMORY_GOAL_MB,
            goal=f"< {MEMORY_GOAL_MB:.0f} MB", holds=memory < MEMORY_GOAL_MB,
        ),
        row(f"{what}: bytes out of the server", "x artifact", copies, {"one copy each": healthy}, copies / healthy),
    ]  # fmt: skip


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--devices", type=int, nargs="*", default=[1, 10, 100, 500])
    parser.add_argument("--tls", type=int, nargs="*", default=[10, 100])
    parser.add_argument("--trouble", type=int, nargs="*", default=[500])
    parser.add_argument("--megabytes", type=int, default=20)
    arguments = parser.parse_args()
    data = os.urandom(arguments.megabytes << 20)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        artifact = Artifact(Path(folder) / "artifact", data, hashlib.sha256(data).hexdigest())
        artifact.path.write_bytes(data)
        for count in arguments.devices:
            rows += show(measure(artifact, count, arguments.pairs))
        for count in arguments.tls:
            rows += show([measure_tls(artifact, count)])
        for count in arguments.trouble:
            rows += show(measure_trouble(artifact, count))
    report = {
        "name": "delivery",
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {platform.platform()}",
        "versions": {"python": platform.python_version(), "paho-mqtt": version("paho-mqtt")},
        "load": os.getloadavg()[0],
        "rows": rows,
        "skipped": [],
    }
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=2) + "\n")


def show(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Print rows; returns them."""
    for one in rows:
        beside = ", ".join(f"{name} {value:.2f}" for name, value in one["beside"].items())
        ratio = f"{one['ratio']:.2f}x"
        verdict = {True: "holds", False: "MISSED", None: ""}[one["holds"]]
        print(f"{one['what']:<72} {one['ours']:8.2f} {one['unit']:<10} ({beside}) {ratio} {one['goal']} {verdict}")
        if "details" in one:
            print(f"{'':4}{one['details']}")
        sys.stdout.flush()
    return rows


if __name__ == "__main__":
    main()
