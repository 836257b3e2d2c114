"""Bad requests of every kind through every door, from a seed; each says whether it was answered after all.

An attack fails the run only by what the door does: no answer, an answer that is not the protocol's, or an error that
blames the server. What a mutation leaves valid may be answered.
"""

from __future__ import annotations

import contextlib
import gzip
import json
import os
import socket
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import numpy as np

from integration.engine.tiny_bundle import some_input
from skerry_agent.serving import shared_memory_layout as layout
from skerry_contract.oip import open_inference_pb2 as oip

TIMEOUT = 30.0
PATH = "/v2/models/tiny/infer"
#: Statuses that say that the request is at fault, or that the door is busy.
HTTP_STATUSES = {200, 400, 404, 405, 408, 413, 415, 431, 501, 503}
GRPC_CODES = {
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.UNIMPLEMENTED,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.DEADLINE_EXCEEDED,
}


@dataclass(frozen=True)
class Target:
    """Where the doors are."""

    http_port: int
    grpc_port: int
    socket: Path


class Fuzzer:
    """Makes and sends bad requests; owns its connections.

    Args:
        target: The doors.
        seed: Of everything that is random.
    """

    def __init__(self, target: Target, seed: int) -> None:
        self.target = target
        self.rng = np.random.default_rng(seed)
        options = [("grpc.max_send_message_length", -1)]
        self._channel = grpc.insecure_channel(f"127.0.0.1:{target.grpc_port}", options)
        self.attacks: tuple[Callable[[], bool], ...] = (
            self.http_noise,
            self.http_json,
            self.http_json_mutated,
            self.http_bomb,
            self.http_binary,
            self.http_hang_up,
            self.grpc_mutated,
            self.grpc_tensor,
            self.grpc_noise,
            self.memory_message,
            self.memory_header,
            self.memory_scribble,
        )

    def close(self) -> None:
        self._channel.close()

    def attack(self) -> bool:
        """One bad request; returns whether it was answered with a prediction."""
        return self.attacks[self.rng.integers(len(self.attacks))]()

    def _mutate(self, data: bytes) -> bytes:
        """Flip, cut, repeat or insert bytes."""
        kind = self.rng.integers(4)
        changed = bytearray(data)
        at = int(self.rng.integers(len(data) or 1))
        if kind == 0:
            for index in self.rng.integers(len(data), size=self.rng.integers(1, 5)):
                changed[index] = self.rng.integers(256)
        elif kind == 1:
            del changed[at:]
        elif kind == 2:
            changed[at:at] = changed[at : at + 20]
        else:
            changed[at:at] = self.rng.bytes(int(self.rng.integers(1, 30)))
        return bytes(changed)

    def _exchange(self, data: bytes) -> bytes:
        """Send raw bytes, end the sending side, and read until the door hangs up."""
        with socket.create_connection(("127.0.0.1", self.target.http_port), timeout=TIMEOUT) as connection:
            with contextlib.suppress(OSError):  # the door may hang up early
                connection.sendall(data)
                connection.shutdown(socket.SHUT_WR)
            reply = b""
            with contextlib.suppress(ConnectionResetError):
                while part := connection.recv(65536):
                    reply += part
        return reply

    def _post(self, body: bytes, headers: dict[str, str]) -> bool:
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        head = f"POST {PATH} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {len(body)}\r\n{lines}\r\n"
        reply = self._exchange(head.encode() + body)
        return self._check(reply)

    def _check(self, reply: bytes) -> bool:
        if not reply:
            return False
        version, status, *_ = reply.split(b" ", 2)
        assert version == b"HTTP/1.1", reply[:200]
        assert int(status) in HTTP_STATUSES, reply[:500]
        return int(status) == 200 and b"model_version" in reply

    def http_noise(self) -> bool:
        return self._check(self._exchange(self.rng.bytes(int(self.rng.integers(1, 400)))))

    def _entry(self) -> dict[str, Any]:
        values = some_input(1, seed=int(self.rng.integers(100))).ravel().tolist()
        return {"name": "input", "datatype": "FP32", "shape": [1, 2, 3], "data": values}

    def http_json(self) -> bool:
        entry, document = self._entry(), {}
        bad: list[Any] = [None, -1, 1 << 70, "x", [], {}, [[]], float("nan"), float("inf"), True, [1] * 9, "INT8"]
        key = ("name", "datatype", "shape", "data")[self.rng.integers(4)]
        entry[key] = bad[self.rng.integers(len(bad))]
        if self.rng.integers(2):
            document["parameters"] = {"deadline_us": bad[self.rng.integers(len(bad))]}
        return self._post(json.dumps({**document, "inputs": [entry]}).encode(), {})

    def http_json_mutated(self) -> bool:
        return self._post(self._mutate(json.dumps({"inputs": [self._entry()]}).encode()), {})

    def http_bomb(self) -> bool:
        bombs = (
            b"[" * 50_000,
            b'{"inputs":' * 5_000,
            b'{"inputs":[{"name":"input","datatype":"FP32","shape":[1,2,3],"data":[' + b"1," * 100_000 + b"1]}]}",
            b'{"inputs":[{"name":"input","datatype":"FP32","shape":[2147483648,2147483648],"data":[1]}]}',
            b"9" * 5_000,
            b" " * 400_000,
        )
        bomb = bombs[self.rng.integers(len(bombs))]
        if self.rng.integers(2):
            return self._post(gzip.compress(bomb, 1), {"Content-Encoding": "gzip"})
        return self._post(bomb, {})

    def http_binary(self) -> bool:
        x = some_input()
        entry: dict[str, Any] = {"name": "input", "datatype": "FP32", "shape": [1, 2, 3]}
        entry["parameters"] = {"binary_data_size": int(self.rng.choice([24, 0, 23, 25, -1, 1 << 40]))}
        header = json.dumps({"inputs": [entry]}).encode()
        length = int(self.rng.choice([len(header), 0, len(header) - 1, len(header) + 24, 1 << 30]))
        body = header + (x.tobytes() if self.rng.integers(2) else self.rng.bytes(24))
        if self.rng.integers(2):
            body = self._mutate(body)
        return self._post(body, {"Inference-Header-Content-Length": str(length)})

    def http_hang_up(self) -> bool:
        data = f"POST {PATH} HTTP/1.1\r\nHost: x\r\nContent-Length: 500\r\n\r\n".encode() + b'{"inputs": ['
        with socket.create_connection(("127.0.0.1", self.target.http_port), timeout=TIMEOUT) as connection:
            connection.sendall(data[: self.rng.integers(1, len(data))])
        return False

    def _call(self, data: bytes, method: str = "ModelInfer") -> bool:
        stub = self._channel.unary_unary(f"/inference.GRPCInferenceService/{method}")
        refusal: Any = None
        reply = b""
        try:
            reply = stub(data, timeout=TIMEOUT)
        except grpc.RpcError as error:
            refusal = error
        if refusal is not None:
            assert refusal.code() in GRPC_CODES, refusal
            assert refusal.details()
            return False
        return method == "ModelInfer" and bool(oip.ModelInferResponse.FromString(reply).outputs)

    def _message(self) -> oip.ModelInferRequest:
        message = oip.ModelInferRequest(model_name="tiny", raw_input_contents=[some_input().tobytes()])
        message.inputs.add(name="input", datatype="FP32", shape=[1, 2, 3])
        return message

    def grpc_mutated(self) -> bool:
        return self._call(self._mutate(self._message().SerializeToString()))

    def grpc_tensor(self) -> bool:
        message = self._message()
        kind = self.rng.integers(6)
        if kind == 0:
            message.inputs[0].shape[:] = self.rng.integers(-(1 << 62), 1 << 62, size=self.rng.integers(1, 12)).tolist()
        elif kind == 1:
            message.inputs[0].datatype = str(self.rng.choice(["FP64", "BYTES", "", "FP16", "INT32"]))
        elif kind == 2:
            message.raw_input_contents[0] = self.rng.bytes(24)
        elif kind == 3:
            message.raw_input_contents[0] = np.full(6, np.nan, dtype=np.float32).tobytes()
        elif kind == 4:
            message.raw_input_contents[0] = bytes(int(self.rng.integers(1 << 20)))
        else:
            message.parameters["deadline_us"].double_param = float(self.rng.choice([-1.0, np.nan, np.inf, 1e-6]))
        return self._call(message.SerializeToString())

    def grpc_noise(self) -> bool:
        methods = (
            "ModelInfer",
            "ModelMetadata",
            "ModelReady",
            "ModelStatistics",
            "ModelConfig",
            "ServerLive",
            "Nothing",
        )
        return self._call(self.rng.bytes(int(self.rng.integers(200))), methods[self.rng.integers(len(methods))])

    def _connect(self) -> socket.socket:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        connection.settimeout(TIMEOUT)
        connection.connect(str(self.target.socket))
        return connection

    def _agree(self, connection: socket.socket) -> tuple[layout.Geometry, int]:
        connection.send(layout.encode_hello(layout.Hello(2, 2)))
        data, descriptors, _, _ = socket.recv_fds(connection, 1024, 1)
        return layout.decode_welcome(data).geometry, descriptors[0]

    def memory_message(self) -> bool:
        with self._connect() as connection:
            hello = layout.encode_hello(layout.Hello(1, 1))
            good = (hello, layout.HEAD.pack(layout.Kind.RING, 0, 1))[self.rng.integers(2)]
            connection.send(self._mutate(good) or b"x")
            reply = connection.recv(1024)
            # A hello that a mutation has left whole is welcome.
            assert layout.HEAD.unpack_from(reply)[0] in (layout.Kind.REFUSED, layout.Kind.WELCOME)
        return False

    def memory_header(self) -> bool:
        numbers = [0, 1, 2, 3, 24, 48, 128, 129, 0xFFFFFFFF]
        rows, id_bytes = (int(value) for value in self.rng.choice(numbers, size=2))
        size, deadline = (int(value) for value in self.rng.choice([*numbers, 1 << 40, 1 << 62], size=2))
        header = struct.pack("<IIQQQ128s", rows, id_bytes, size, deadline, 0, self.rng.bytes(128))
        return self._ring(header, b"")

    def memory_scribble(self) -> bool:
        return self._ring(b"", self.rng.bytes(8192))

    def _ring(self, header: bytes, noise: bytes) -> bool:
        """Write into slot 1, ring, and go on scribbling while the door answers."""
        with self._connect() as connection:
            geometry, descriptor = self._agree(connection)
            try:
                start = geometry.slot_offset(1)
                os.pwrite(descriptor, noise or header, start)
                connection.send(layout.HEAD.pack(layout.Kind.RING, 1, 9))
                if noise:
                    os.pwrite(descriptor, noise[::-1], start + 200)
                assert layout.HEAD.unpack(connection.recv(1024)) == (layout.Kind.DONE, 1, 9)
                status = struct.unpack("<I", os.pread(descriptor, 4, start + layout.REQUEST_BYTES))[0]
            finally:
                os.close(descriptor)
        if not noise:  # what a client has scribbled over is its own business
            assert status in (layout.Status.OK, layout.Status.INVALID, layout.Status.DEADLINE), status
        return not noise and status == layout.Status.OK
