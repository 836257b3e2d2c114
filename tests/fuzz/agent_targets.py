"""Parsers of the agent: what comes from the broker, from the control plane's bundles, and from applications.

Signatures are taken as good where they would hide the code behind them: a stolen key must not crash a device either.
"""

from __future__ import annotations

import atexit
import json
import socket
import tempfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import numpy as np
from securesystemslib.exceptions import FormatError
from securesystemslib.formats import encode_canonical

from fuzz.target import Target
from skerry_agent.control.campaigns import Invitations
from skerry_agent.engine.golden import parse_golden
from skerry_agent.errors import InputError
from skerry_agent.link.outbox import Outbox
from skerry_agent.link.uplink import Uplink
from skerry_agent.policy.eligibility import Limits
from skerry_agent.serving import http2, oip_json, oip_messages
from skerry_agent.trust.floors import Floors
from skerry_agent.trust.keyring import InstructionKeys, Keyring
from skerry_agent.trust.mailbox import TrustMailbox, parse_index
from skerry_agent.trust.second_look import SecondLook
from skerry_agent.update.desired import RefusedError, accept
from skerry_agent.update.download import FileDownload
from skerry_agent.update.ports import Approval
from skerry_contract.errors import ContractError
from skerry_contract.oip.open_inference_pb2 import ModelInferRequest
from skerry_contract.tensors import encode_tensor
from skerry_contract.v1.common_pb2 import SignedEnvelope
from skerry_contract.v1.delivery_pb2 import Chunk
from skerry_contract.v1.release_pb2 import GoldenOutputs, GoldenSet
from skerry_contract.v1.telemetry_pb2 import Command, UplinkAck
from skerry_contract.wire import parse_message
from unit.agent_trust.repository import MODEL, Repository, index_of
from unit.agent_trust.trust_device import TrustDevice, experienced
from unit.serving import http2_frames as h2
from unit.update.releases import CHUNK, DEVICE, describe, make_desired, make_release

_HTTP2_SEEDS = (
    h2.PREFACE + h2.settings() + h2.request(1),
    h2.PREFACE + h2.settings(INITIAL_WINDOW_SIZE=5) + h2.request(1, bytes(100)) + h2.window(1, 99) + h2.request(3),
    h2.PREFACE + h2.settings() + h2.headers(1) + h2.reset(1) + h2.PING + h2.SETTINGS_ACK,
)


class _Believing:
    """Takes every signature as good."""

    def verify(self, kind: str, envelope: SignedEnvelope) -> bytes:
        return envelope.payload


class _Silent:
    """A connection that is down."""

    ready = False

    def publish(self, topic: str, payload: bytes, *, retain: bool = False, expiry_s: int | None = None) -> bool:
        return False


@cache
def _folder(name: str) -> Path:
    folder = tempfile.TemporaryDirectory(prefix="skerry-fuzz-")
    atexit.register(folder.cleanup)
    path = Path(folder.name) / name
    path.mkdir()
    return path


def _desired(data: bytes) -> None:
    accept(data, _Believing(), device_id=DEVICE, sequence=1, now_ms=0, signed_ms=0)


def _http2(data: bytes) -> None:
    """Bytes of a client of the gRPC door; each request that they hold is answered."""
    if http2.new_connection is None:
        return
    connection = http2.new_connection(streams=4, message_limit=1 << 16, header_limit=4096)
    client, server = socket.socketpair()
    with client, server:
        client.setblocking(False)
        server.setblocking(False)
        client.sendall(data[: 64 << 10])
        client.shutdown(socket.SHUT_WR)
        while (requests := connection.receive(server.fileno())) is not None:
            for fields in requests:
                connection.answer(fields[0], fields[4])
            connection.flush(server.fileno())
        assert connection.held >= 0


def _second_look(data: bytes) -> None:
    keyring = Keyring(_folder("keys") / "keys.json", ["ab" * 32], past=False)
    SecondLook(keyring, offer=lambda payload: None, refresh=lambda: None).desired(data)


_ENTRY = describe("infer.onnx", bytes(range(256)) * 8)


def _chunk(data: bytes) -> None:
    chunk = parse_message(Chunk, data)
    FileDownload(_ENTRY, _folder("download")).accept(chunk.index, chunk.data)


@cache
def _uplink() -> Uplink:
    outbox = Outbox(_folder("outbox") / "outbox.sqlite", device_id=DEVICE, message_limit=10, byte_limit=1 << 16)
    atexit.register(outbox.close)
    return Uplink(outbox, _Silent(), device_id=DEVICE)


def _command(data: bytes) -> None:
    invitations = Invitations(Limits(85.0, 30.0, 200.0), respond=lambda response: True)
    invitations.command(data, now_s=0.0, now_ms=0)


def _oip_json(data: bytes) -> None:
    for length in (None, int.from_bytes(data[:2], "little")):
        try:
            oip_json.decode_request(data[2:], header_length=length, model="digits", version="")
        except InputError:
            continue


def _oip_message(data: bytes) -> None:
    oip_messages.decode_request(parse_message(ModelInferRequest, data, limit=1 << 20))


def _mailbox(data: bytes) -> None:
    mailbox = TrustMailbox(byte_limit=1 << 14)
    name, _, payload = data.partition(b"\0")
    mailbox.put(name.decode("utf-8", "replace"), payload)


@cache
def _trust() -> tuple[Repository, TrustDevice]:
    repository, device, _old = experienced(_folder("device"))
    repository.approve("c", 3)
    repository.publish_root()
    repository.publish()
    return repository, device


#: By the first byte of the input: whose file has the rest of it as its content.
ROLES = ("timestamp", "snapshot", "targets", MODEL, "root")


def _metadata(data: bytes) -> None:
    """Any bytes as a file of metadata; only the honest content of it may lead to an approval."""
    repository, device = _trust()
    role, content = ROLES[data[0] % len(ROLES)] if data else "root", data[1:]
    device.lose_cache() if device.places.metadata.exists() else None
    answer = device.judge({**repository.files, repository.name_of(role): content}, "c")
    _check(answer)


#: Whose files refer to that of a role, lowest first.
ABOVE = {MODEL: ("snapshot", "timestamp"), "targets": ("snapshot", "timestamp"), "snapshot": ("timestamp",)}


def _check(answer: Approval) -> None:
    """Either the honest release, or nothing yet; and never a bug of ours or of python-tuf."""
    honest = Approval(True, True, "", 3)
    if answer != honest and (answer.approved or answer.final or not answer.detail):
        raise RuntimeError(f"{answer}")


def _paths(value: object, at: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    if at:
        yield at
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield from _paths(inner, (*at, key))


def _signed(data: bytes) -> None:
    """Metadata that the right keys signed and that are nonsense in one place: role, place, JSON."""
    if len(data) < 3:
        return
    honest, device = _trust()
    repository, role = honest.fork(), ROLES[data[0] % len(ROLES)]
    name = repository.name_of(role)
    document = json.loads(repository.files[name])
    places = list(_paths(document["signed"]))
    *way, last = places[data[1] % len(places)]
    try:
        holder = document["signed"]
        for step in way:
            holder = holder[step]
        holder[last] = json.loads(data[2:])
        payload = str(encode_canonical(document["signed"])).encode()
    except (ValueError, RecursionError, FormatError):
        return
    document["signatures"] = [
        {"keyid": signature.keyid, "sig": signature.signature}
        for signature in (holder.sign(payload) for holder in repository.signers[role])
    ]
    repository.files[name] = json.dumps(document).encode()
    for above in ABOVE.get(role, ()):
        repository.issue(above, bump=False)
    device.lose_cache() if device.places.metadata.exists() else None
    device.places.floors.unlink(missing_ok=True)
    device.restart()
    answer = device.judge(repository.files, "c")
    # A key that signs nonsense may also sign another version, or another content.
    if not answer.detail and not answer.approved:
        raise RuntimeError(f"{answer}")


def _metadata_seeds() -> tuple[bytes, ...]:
    repository, _device = _trust()
    return tuple(bytes([index]) + repository.files[repository.name_of(role)] for index, role in enumerate(ROLES))


def _signed_seeds() -> tuple[bytes, ...]:
    values = (b"0", b"-1", b"null", b'"x"', b"[]", b"{}", b"[[1]]", b'{"a": 1}', b"true", b"9" * 40)
    return tuple(
        bytes([role, place]) + values[(role * 7 + place) % len(values)]
        for role in range(len(ROLES))
        for place in range(0, 40, 3)
    )


def _golden() -> bytes:
    x = encode_tensor("input", np.ones((2, 4), dtype=np.float32))
    scores = encode_tensor("scores", np.ones((2, 3), dtype=np.float32))
    return GoldenSet(inputs=[x], outputs=[GoldenOutputs(variant="fp32", tensors=[scores])]).SerializeToString()


_INFER = {
    "id": "1",
    "inputs": [{"name": "input", "datatype": "FP32", "shape": [1, 2], "data": [[0.5, 2]]}],
    "outputs": [{"name": "scores", "parameters": {"binary_data": True}}],
}
_BINARY = {"inputs": [{"name": "i", "datatype": "INT8", "shape": [2], "parameters": {"binary_data_size": 2}}]}
_LABELS = {"labels": [{"id": "r", "row": 0, "label": "walking"}, {"id": "r", "row": 1, "label": 3}]}


def _oip_seed(shape: list[int], values: list[float]) -> bytes:
    request = ModelInferRequest(model_name="digits")
    tensor = request.inputs.add(name="input", datatype="FP32", shape=shape)
    tensor.contents.fp32_contents.extend(values)
    return request.SerializeToString()


def _binary_seed() -> bytes:
    header = json.dumps(_BINARY).encode()
    return len(header).to_bytes(2, "little") + header + b"\1\2"


_OIP_SEEDS = (_oip_seed([1, 2], [0.5, 2.0]), _oip_seed([0, 1 << 31, 1 << 31, 1 << 31], []))
CONTRACT = (ContractError,)
TARGETS = (
    Target(
        "desired",
        _desired,
        (make_desired(2, make_release("digits-1")), make_desired(3, None)),
        (RefusedError,),
    ),
    Target("second-look", _second_look, (make_desired(2, make_release("digits-1")),), ()),
    Target("chunk", _chunk, (Chunk(index=1, data=b"x" * CHUNK).SerializeToString(),), CONTRACT),
    Target(
        "ack",
        lambda data: _uplink().acknowledged(data),
        (UplinkAck(outbox_id="outbox-1", sequences=[1, 2, (1 << 64) - 1]).SerializeToString(),),
        CONTRACT,
    ),
    Target("command", _command, (Command(invitation={"campaign_id": "campaign-1"}).SerializeToString(),), CONTRACT),
    Target("golden", lambda data: parse_golden(data, input_name="input"), (_golden(),), CONTRACT),
    Target("oip-json", _oip_json, (b"\0\0" + json.dumps(_INFER).encode(), _binary_seed()), ()),
    Target("http2", _http2, _HTTP2_SEEDS, (ValueError,)),
    Target("oip-labels", oip_json.decode_labels, (json.dumps(_LABELS).encode(),), (InputError,)),
    Target("oip-grpc", _oip_message, _OIP_SEEDS, (InputError, ContractError)),
    Target("trust-index", parse_index, (index_of({"timestamp.json": 700, "3.root.json": 900}),), CONTRACT),
    Target("mailbox", _mailbox, (b"index\0" + index_of({"timestamp.json": 700}), b"3.root.json\0{}"), CONTRACT),
    Target("floors", Floors.from_json, (Floors().to_json(),), (ValueError,)),
    Target("keys", InstructionKeys.from_json, (InstructionKeys(("ab" * 32,)).to_json(),), (ValueError,)),
    Target("metadata", _metadata, _metadata_seeds(), ()),
    Target("signed-metadata", _signed, _signed_seeds(), (), longest=300),
)
