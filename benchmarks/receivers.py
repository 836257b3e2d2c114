"""Many light subscribers in one process, for benchmarks: raw sockets that speak MQTT 5. Not a benchmark itself.

``python benchmarks/receivers.py OPTIONS`` with a JSON object. Each subscriber behaves as a device does: it subscribes,
asks with a real ChunkRequest when told to (a line on stdin), acknowledges every message at once with a receive maximum
of 8, paces its requests with the agent's own pacer, and compares every chunk byte for byte with the file. It prints
"ready", and at the end a JSON line. With ``"raw": true`` it only reads the file from a plain connection and compares.
"""

from __future__ import annotations

import hashlib
import json
import random
import resource
import select
import socket
import ssl
import struct
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from skerry_agent.update.pacing import RequestPacer
from skerry_contract.sampling import EVERY_RANK, rank
from skerry_contract.topics import DeviceTopic, bulk_topic, device_bulk_topic, device_topic
from skerry_contract.v1.delivery_pb2 import ChunkRequest

RECEIVE_MAXIMUM = 8
#: Two chunks and what surrounds them: as much as the broker has in flight for one client.
BUFFER_BYTES = 1 << 18
#: What of a serialized Chunk surrounds its data, at least, on either side.
AROUND_BYTES = 64
#: What the kernel buffers for a connection (bytes; Linux doubles it).
SOCKET_BYTES = 512 << 10
#: How often every pacer is looked at (seconds).
TICK_S = 0.02


def open_socket(port: int) -> socket.socket:
    """A connection that buffers little: else what is on its way to hundreds of devices fills the kernel's memory."""
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SOCKET_BYTES)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.settimeout(60)
    connection.connect(("127.0.0.1", port))
    return connection


def packet(kind: int, body: bytes) -> bytes:
    """An MQTT control packet."""
    size, length = bytearray(), len(body)
    while True:
        length, digit = divmod(length, 128)
        size.append(digit | (128 if length else 0))
        if not length:
            return bytes([kind]) + bytes(size) + body


def text(value: str) -> bytes:
    """A UTF-8 string of MQTT."""
    return struct.pack(">H", len(value.encode())) + value.encode()


def connect_packet(client_id: str, password: str, receive_maximum: int) -> bytes:
    """CONNECT of MQTT 5, clean start, no keep alive; with a password the user is "server"."""
    flags = 0xC2 if password else 0x02
    body = text("MQTT") + bytes([5, flags]) + b"\0\0" + b"\x03\x21" + struct.pack(">H", receive_maximum)
    return packet(0x10, body + text(client_id) + (text("server") + text(password) if password else b""))


def read_packet(connection: socket.socket) -> tuple[int, bytes]:
    """One whole packet from a blocking socket."""
    kind, length, shift = _exactly(connection, 1)[0], 0, 0
    while True:
        digit = _exactly(connection, 1)[0]
        length |= (digit & 127) << shift
        shift += 7
        if not digit & 128:
            return kind, _exactly(connection, length)


def _exactly(connection: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        more = connection.recv(count - len(data))
        if not more:
            raise ConnectionError("the broker closed the connection")
        data += more
    return data


def chunk_fields(buffer: bytearray, position: int, end: int) -> tuple[int, int, int, int]:
    """Of a serialized Chunk: index, where its data begin, report_below, report_every."""
    values = {2: 0, 5: 0, 6: 0}
    data = 0
    while position < end:
        tag = buffer[position]
        value, shift, position = 0, 0, position + 1
        while True:
            digit = buffer[position]
            position += 1
            value |= (digit & 127) << shift
            shift += 7
            if digit < 128:
                break
        if tag & 7 == 2:
            if tag >> 3 == 3:
                data = position
            position += value
        else:
            values[tag >> 3] = value
    return values[2], data, values[5], values[6]


@dataclass
class Subscriber:
    """One device."""

    name: str
    data: socket.socket
    control: socket.socket
    missing: int
    rank: int
    pacer: RequestPacer
    buffer: bytearray = field(default_factory=lambda: bytearray(BUFFER_BYTES))
    filled: int = 0
    done_at: float = 0.0
    duplicates: int = 0
    lost: int = 0
    requests: int = 0


class Receivers:
    """Every subscriber of this process."""

    def __init__(self, options: dict[str, Any]) -> None:
        self.options = options
        self.chunk_bytes: int = options["chunk_bytes"]
        data = Path(options["file"]).read_bytes()
        self.digest = hashlib.sha256(data).hexdigest()
        if self.digest != options["sha256"]:
            raise ValueError("the file is another one")
        self.chunks = [data[start : start + self.chunk_bytes] for start in range(0, len(data), self.chunk_bytes)]
        self.known: dict[bytes, tuple[int, int, int, int]] = {}
        self.random = random.Random(options["seed"])
        self.loss: float = options["loss"]
        self.subscribers = [self._subscriber(name) for name in options["names"]]

    def _subscriber(self, name: str) -> Subscriber:
        ports: list[int] = self.options["ports"]
        control = self._connect(ports[0], name)
        data = control if len(ports) == 1 else self._connect(ports[1], name)
        filters = (bulk_topic(self.digest), device_bulk_topic(name, self.digest))
        body = b"\0\1\0" + b"".join(text(topic) + b"\1" for topic in filters)
        data.sendall(packet(0x82, body))
        kind, answer = read_packet(data)
        if kind != 0x90 or any(code > 1 for code in answer[-2:]):
            raise ConnectionError(f"SUBACK {answer.hex()}")
        place = rank(name, bytes.fromhex(self.digest))
        missing = (1 << len(self.chunks)) - 1
        return Subscriber(name, data, control, missing, place, RequestPacer(spread=place / EVERY_RANK))

    def _connect(self, port: int, name: str) -> socket.socket:
        connection = open_socket(port)
        if self.options["identities"]:
            folder = Path(self.options["identities"]) / name
            context = ssl.create_default_context(cafile=str(folder / "authority.pem"))
            context.load_cert_chain(folder / "certificate.pem", folder / "key.pem")
            connection = context.wrap_socket(connection, server_hostname="127.0.0.1")
        connection.sendall(connect_packet(f"{name}-{port}", self.options["password"], RECEIVE_MAXIMUM))
        kind, answer = read_packet(connection)
        if kind != 0x20 or answer[1]:
            raise ConnectionError(f"CONNACK {answer.hex()}")
        return connection

    def run(self, deadline_s: float) -> dict[str, Any]:
        """Ask, receive, until everybody who reads is complete."""
        stalled = set(self.options["stalled"])
        until = time.monotonic() + deadline_s
        poll, cpu = select.epoll(), time.process_time()
        by_descriptor: dict[int, Subscriber] = {}
        self.left = 0
        for one in self.subscribers:
            one.data.setblocking(False)
            self._say(one)
            if one.name not in stalled:
                self.left += 1
                by_descriptor[one.data.fileno()] = one
                poll.register(one.data.fileno(), select.EPOLLIN)
        looked_at = 0.0
        while self.left and time.monotonic() < until:
            for descriptor, _ in poll.poll(TICK_S):
                self._read(by_descriptor[descriptor])
            now = time.monotonic()
            if now - looked_at >= TICK_S:
                looked_at = now
                for one in by_descriptor.values():
                    if one.missing and one.pacer.due <= now:
                        self._say(one)
        return {
            "complete": sum(not one.missing for one in self.subscribers),
            "done_at": max((one.done_at for one in self.subscribers), default=0.0),
            "duplicates": sum(one.duplicates for one in self.subscribers),
            "lost": sum(one.lost for one in self.subscribers),
            "requests": sum(one.requests for one in self.subscribers),
            "cpu_s": time.process_time() - cpu,
        }

    def _say(self, one: Subscriber) -> None:
        now = time.monotonic()
        count = len(self.chunks)
        request = ChunkRequest(
            device_id=one.name,
            file_sha256=bytes.fromhex(self.digest),
            missing_bitmap=one.missing.to_bytes(-(-count // 8), "little"),
            chunk_count=count,
            window=RECEIVE_MAXIMUM,
            chunk_bytes=self.chunk_bytes,
            quiet_ms=int(one.pacer.quiet_for(now) * 1000),
        )
        one.requests += 1
        body = text(device_topic(one.name, DeviceTopic.NEED)) + struct.pack(">H", 1 + one.requests % 60_000) + b"\0"
        self._send(one.control, packet(0x32, body + request.SerializeToString()))
        one.pacer.asked(now)

    @staticmethod
    def _send(connection: socket.socket, data: bytes) -> None:
        """Send a few bytes; the broker reads them even while it writes."""
        while data:
            try:
                data = data[connection.send(data) :]
            except (BlockingIOError, ssl.SSLWantWriteError):
                select.select([], [connection], [], 1.0)

    def _read(self, one: Subscriber) -> None:
        """Take in what has come."""
        while True:
            try:
                got = one.data.recv_into(memoryview(one.buffer)[one.filled :])
            except (BlockingIOError, ssl.SSLWantReadError):
                return
            if not got:
                raise ConnectionError(f"{one.name}: the broker closed the connection")
            one.filled += got
            self._packets(one)
            if not isinstance(one.data, ssl.SSLSocket):
                return

    def _packets(self, one: Subscriber) -> None:
        buffer, start, filled = one.buffer, 0, one.filled
        answers = b""
        while filled - start >= 2:
            position, length, shift = start + 1, 0, 0
            while position < filled:
                digit = buffer[position]
                position += 1
                length |= (digit & 127) << shift
                shift += 7
                if digit < 128:
                    break
            else:
                break
            if filled - position < length:
                break
            if buffer[start] >> 4 == 3:
                place = position + 2 + (buffer[position] << 8 | buffer[position + 1])
                answers += b"\x40\x02" + buffer[place : place + 2]
                self._chunk(one, place + 3 + buffer[place + 2], position + length)
            start = position + length
        if start:
            buffer[: filled - start] = buffer[start:filled]
            one.filled = filled - start
        if answers:
            self._send(one.data, answers)
        if not one.missing and not one.done_at:
            one.done_at = time.monotonic()
            self.left -= 1
            self._say(one)
            filters = (bulk_topic(self.digest), device_bulk_topic(one.name, self.digest))
            self._send(one.data, packet(0xA2, b"\0\2\0" + b"".join(text(topic) for topic in filters)))
        elif one.missing and one.pacer.due <= time.monotonic():
            self._say(one)

    def _chunk(self, one: Subscriber, position: int, end: int) -> None:
        # The same chunk comes to every subscriber: what surrounds its data is parsed once.
        around = bytes(one.buffer[position : position + AROUND_BYTES] + one.buffer[end - AROUND_BYTES : end])
        known = self.known.get(around)
        if known is None:
            index, data, report_below, report_every = chunk_fields(one.buffer, position, end)
            known = self.known[around] = index, data - position, report_below, report_every
        index, data, report_below, report_every = known
        if not one.buffer.startswith(self.chunks[index], position + data):
            raise ValueError(f"chunk {index} is not what the file has")
        if self.loss and self.random.random() < self.loss:
            one.lost += 1
        elif one.missing >> index & 1:
            one.missing &= ~(1 << index)
            one.pacer.heard(time.monotonic(), report_every=report_every if one.rank < report_below else 0)
        else:
            one.duplicates += 1


def run_raw(options: dict[str, Any]) -> dict[str, Any]:
    """Read the file from plain connections and compare it, chunk by chunk."""
    data = Path(options["file"]).read_bytes()
    size: int = options["chunk_bytes"]
    chunks = [data[start : start + size] for start in range(0, len(data), size)]
    poll = select.epoll()
    state: dict[int, list[Any]] = {}
    for _ in options["names"]:
        connection = open_socket(options["ports"][0])
        connection.setblocking(False)
        state[connection.fileno()] = [connection, bytearray(size), 0, 0]
        poll.register(connection.fileno(), select.EPOLLIN)
    print("ready", flush=True)
    done_at, cpu = 0.0, time.process_time()
    while state:
        for descriptor, _ in poll.poll(60):
            one = state[descriptor]
            connection, buffer, filled, index = one
            got = connection.recv_into(memoryview(buffer)[filled : len(chunks[index])])
            if not got:
                raise ConnectionError("the sender closed the connection")
            filled += got
            if filled == len(chunks[index]):
                if not buffer.startswith(chunks[index]):
                    raise ValueError(f"chunk {index} is not what the file has")
                filled, index = 0, index + 1
            one[2:] = filled, index
            if index == len(chunks):
                poll.unregister(descriptor)
                done_at = time.monotonic()
                del state[descriptor]
    return {"complete": len(options["names"]), "done_at": done_at, "cpu_s": time.process_time() - cpu}


def main() -> None:
    """Run what the JSON on the command line says."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    options = json.loads(sys.argv[1])
    if options["raw"]:
        print(json.dumps(run_raw(options)), flush=True)
        return
    receivers = Receivers(options)
    print("ready", flush=True)
    sys.stdin.readline()
    print(json.dumps(receivers.run(options["deadline_s"])), flush=True)


if __name__ == "__main__":
    main()
