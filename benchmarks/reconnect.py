"""Devices that come back at once after the broker was killed, with mutual TLS: with and without the server's spread.

``python benchmarks/reconnect.py [--json FILE] [--devices N]``

A real mosquitto with the configuration that the control plane generates; every device has a certificate of its own and
connects to the listener for control. When all of them are connected the broker is killed and started again. They wait
as agents do (skerry_agent.link.backoff), with the spread that the control plane chooses for their number, and then
again without one. A second's rate is the number of connections that devices begin in it, failed ones included.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import math
import os
import platform
import random
import resource
import ssl
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from broker_rig import Broker, running_broker
from receivers import connect_packet
from skerry_agent.link.backoff import reconnect_delay
from skerry_server.delivery.reconnects import PEAK_PER_S, spread_ms

#: Processes that the devices are divided over, and handshakes at once while they connect for the first time.
PROCESSES = 2
AT_ONCE = 16
#: The agent's own setting, and how long a broken connection may take to stand again.
CEILING_S = 300.0
DEADLINE_S = 180.0


class Devices:
    """The devices of one process."""

    def __init__(self, folder: Path, port: int, names: Sequence[str]) -> None:
        self.port = port
        self.contexts = {name: _context(folder / name) for name in names}
        self.first = asyncio.Semaphore(AT_ONCE)
        self.spread_s = 0.0
        self.attempts: list[float] = []
        self.connected: list[float] = []
        self.changed = asyncio.Event()

    async def live(self, name: str) -> None:
        """Be connected for ever."""
        async with self.first:
            connection = await self._connect(name)
        while True:
            reader, writer = connection
            with contextlib.suppress(OSError):
                while await reader.read(1024):
                    pass
            writer.transport.abort()
            failures = 1
            while True:
                await asyncio.sleep(
                    reconnect_delay(failures, ceiling_s=CEILING_S, uniform=random.uniform, spread_s=self.spread_s)
                )
                try:
                    connection = await self._connect(name)
                    break
                except OSError:
                    failures += 1

    async def _connect(self, name: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        self.attempts.append(time.monotonic())
        async with asyncio.timeout(30):
            reader, writer = await asyncio.open_connection("127.0.0.1", self.port, ssl=self.contexts[name])
            writer.write(connect_packet(name, "", 32))
            answer = await reader.readexactly(4)
        if answer[0] != 0x20 or answer[3]:
            raise ConnectionError(f"CONNACK {answer.hex()}")
        self.connected.append(time.monotonic())
        self.changed.set()
        return reader, writer

    async def all_connected(self) -> None:
        """Wait until as many connections were made as there are devices."""
        while len(self.connected) < len(self.contexts):
            await self.changed.wait()
            self.changed.clear()


def _context(folder: Path) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=str(folder / "authority.pem"))
    context.load_cert_chain(folder / "certificate.pem", folder / "key.pem")
    return context


async def run_devices(options: dict[str, Any]) -> None:
    """Connect everybody; then, for every line of stdin with a spread, say when they were back."""
    devices = Devices(Path(options["folder"]), options["port"], options["names"])
    tasks = [asyncio.create_task(devices.live(name), name=name) for name in devices.contexts]
    await devices.all_connected()
    print("ready", flush=True)
    while text := await asyncio.to_thread(sys.stdin.readline):
        devices.spread_s = float(text)
        devices.attempts.clear()
        devices.connected.clear()
        print("armed", flush=True)
        left_out = 0
        try:
            async with asyncio.timeout(DEADLINE_S):
                await devices.all_connected()
        except TimeoutError:
            left_out = len(devices.contexts) - len(devices.connected)
        print(json.dumps({"attempts": devices.attempts, "connected": devices.connected, "out": left_out}), flush=True)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


@contextlib.contextmanager
def device_processes(folder: str, port: int, names: Sequence[str]) -> Iterator[list[subprocess.Popen[str]]]:
    """Start the processes of the devices; they are connected when this is entered."""
    started = [
        subprocess.Popen(
            [
                sys.executable,
                __file__,
                "--clients",
                json.dumps({"folder": folder, "port": port, "names": names[part::PROCESSES]}),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for part in range(PROCESSES)
    ]
    try:
        for process in started:
            if line(process) != "ready":
                raise RuntimeError("the devices are not ready")
        yield started
    finally:
        for process in started:
            process.kill()
            process.communicate()


def line(process: subprocess.Popen[str]) -> str:
    """The next line that a process prints."""
    assert process.stdout is not None
    text = process.stdout.readline()
    if not text:
        raise RuntimeError("the devices ended early")
    return text.strip()


def come_back(broker: Broker, processes: Sequence[subprocess.Popen[str]], spread_s: float) -> dict[str, float]:
    """Kill the broker, start it again, and see how the devices come back."""
    for process in processes:
        assert process.stdin is not None
        process.stdin.write(f"{spread_s}\n")
        process.stdin.flush()
        line(process)
    broker.kill()
    killed = time.monotonic()
    broker.start()
    results = [json.loads(line(process)) for process in processes]
    attempts = [moment - killed for result in results for moment in result["attempts"]]
    connected = [moment - killed for result in results for moment in result["connected"]]
    return {
        "peak": max(Counter(math.floor(moment) for moment in attempts).values()),
        "peak_connected": max(Counter(math.floor(moment) for moment in connected).values()),
        "attempts": len(attempts),
        "seconds": max(connected),
        "left_out": sum(result["out"] for result in results),
        "broker_cpu_s": broker.cpu_s(),
    }


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--devices", type=int, default=2_000)
    parser.add_argument("--clients", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    if arguments.clients:
        asyncio.run(run_devices(json.loads(arguments.clients)))
        return
    count = arguments.devices
    names = [f"device-{number:05}" for number in range(count)]
    with running_broker() as broker, tempfile.TemporaryDirectory() as folder:
        for name in names:
            broker.identity(name, Path(folder) / name)
        with device_processes(folder, broker.config.broker_tls_port, names) as processes:
            spread = come_back(broker, processes, spread_ms(count) / 1000)
            without = come_back(broker, processes, 0.0)
    back = count - spread["left_out"]
    rows: list[dict[str, Any]] = [
        {
            "what": f"{count} devices: most connections in a second, spread {spread_ms(count) / 1000:.1f} s",
            "unit": "1/s",
            "ours": spread["peak"],
            "beside": {"without spread": without["peak"]},
            "ratio": spread["peak"] / without["peak"],
            "goal": f"<= {PEAK_PER_S}/s",
            "holds": spread["peak"] <= PEAK_PER_S,
            "details": {"spread": spread, "without": without},
        },
        {
            "what": f"{count} devices: back after the broker was killed",
            "unit": "devices",
            "ours": back,
            "beside": {"devices": count},
            "ratio": back / count,
            "goal": "all",
            "holds": back == count,
        },
        {
            "what": f"{count} devices: until the last is back",
            "unit": "s",
            "ours": spread["seconds"],
            "beside": {"without spread": without["seconds"]},
            "ratio": spread["seconds"] / without["seconds"],
            "goal": "",
            "holds": None,
        },
    ]
    for one in rows:
        beside = ", ".join(f"{name} {value:.1f}" for name, value in one["beside"].items())
        verdict = {True: "holds", False: "MISSED", None: ""}[one["holds"]]
        print(f"{one['what']:<72} {one['ours']:8.1f} {one['unit']:<8} ({beside}) {one['goal']} {verdict}")
    print(f"    {rows[0]['details']}")
    report = {
        "name": "reconnect",
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {platform.platform()}",
        "versions": {"python": platform.python_version(), "openssl": ssl.OPENSSL_VERSION},
        "load": os.getloadavg()[0],
        "rows": rows,
        "skipped": [],
    }
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
