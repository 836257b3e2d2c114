"""Parsers of the control plane: what devices send."""

from __future__ import annotations

import json
import threading
from concurrent.futures import Future
from datetime import UTC, datetime
from functools import cache

import numpy as np
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import CertificateSigningRequestBuilder, Name
from pydantic import ValidationError

from fuzz.target import Target
from skerry_contract.errors import ContractError
from skerry_contract.histogram import build_edges, encode_counts
from skerry_contract.topics import DeviceTopic, device_topic
from skerry_contract.v1.delivery_pb2 import ChunkRequest
from skerry_contract.v1.device_pb2 import Presence, ReportedState
from skerry_contract.v1.telemetry_pb2 import DriftReport, HealthReport, LabelReport, UplinkMessage
from skerry_contract.wire import parse_message
from skerry_server.delivery.chunk_server import ChunkServer
from skerry_server.device_api.byte_range import UnsatisfiableError, parse_range
from skerry_server.device_api.requests import EnrollRequest, RenewRequest
from skerry_server.errors import InvalidRequestError
from skerry_server.fleet.authority import CertificateAuthority
from skerry_server.fleet.reported import apply_presence, apply_reported
from skerry_server.monitoring.uplink_checks import check_body, check_key
from skerry_server.monitoring.windows import read_window
from skerry_server.store.database import Database
from skerry_server.store.tables import Base, Device

DEVICE = "press-07"
NOW = datetime(2030, 1, 1, tzinfo=UTC)


@cache
def _database() -> Database:
    database = Database("sqlite://")
    Base.metadata.create_all(database.engine)
    with database.transaction() as session:
        session.add(Device(id=DEVICE, enrolled_ms=1, labels={}))
    return database


def _reported(data: bytes) -> None:
    with _database().transaction() as session:
        apply_reported(session, DEVICE, data)


def _presence(data: bytes) -> None:
    with _database().transaction() as session:
        apply_presence(session, DEVICE, data)


def _uplink(data: bytes) -> None:
    message = parse_message(UplinkMessage, data)
    check_key(message, DEVICE)
    check_body(message)


_EDGES = build_edges(
    {"mean": np.arange(50.0)},
    cells=4,
    classes=("a", "b"),
    confidence_edges=(0.5,),
    latency_edges=(10.0,),
    predictions=np.array([1, 2]),
)
_CELLS = len(_EDGES.features[0].edges) + 1


def _window(data: bytes) -> None:
    read_window(data, _EDGES)


class _Deaf:
    """A link without a broker, and a store without files."""

    connected = False

    def subscribe(self, filter: str, handler: object) -> None:
        """Nothing comes."""

    def publish(self, topic: str, payload: bytes, *, retain: bool = False, expiry_s: int | None = None) -> Future[None]:
        return Future()

    def size(self, sha256: str) -> int:
        raise KeyError(sha256)

    def open_chunk(self, sha256: str, index: int, chunk_bytes: int) -> bytes:
        raise KeyError(sha256)


def _need(data: bytes) -> None:
    server = ChunkServer(_Deaf(), _Deaf(), listen=lambda event, seconds: event.is_set())
    server.handle(device_topic(DEVICE, DeviceTopic.NEED), data)
    assert threading.active_count() < 50


@cache
def _authority() -> CertificateAuthority:
    return CertificateAuthority.create(now=NOW)


def _csr(data: bytes) -> None:
    _authority().issue_device(data, device_id=DEVICE, now=NOW)


def _enroll(data: bytes) -> None:
    EnrollRequest.model_validate_json(data)


def _renew(data: bytes) -> None:
    RenewRequest.model_validate_json(data)


def _range(data: bytes) -> None:
    found = parse_range(data.decode("latin-1"), 1000)
    if not 0 <= found.first <= found.first + found.length <= 1000:
        raise RuntimeError(f"{found}")


def _csr_seed() -> bytes:
    key = ec.generate_private_key(ec.SECP256R1())
    request = CertificateSigningRequestBuilder().subject_name(Name([])).sign(key, hashes.SHA256())
    return request.public_bytes(Encoding.PEM)


def _message(**body: object) -> bytes:
    return UplinkMessage(
        device_id=DEVICE,
        outbox_id="outbox-1",
        sequence=1,
        **body,  # type: ignore[arg-type]
    ).SerializeToString()


_DRIFT = DriftReport(
    rows=3,
    features=[encode_counts([1, *[0] * (_CELLS - 1)])],
    predictions=encode_counts([1, 2]),
)
_BODIES: list[dict[str, object]] = [{"drift": _DRIFT}, {"health": HealthReport()}, {"label": LabelReport()}]
_WRONG = (ContractError,)
_REPORTED = ReportedState(device_id=DEVICE, boot_id="b", revision=5)
_PRESENCE = Presence(device_id=DEVICE, online=True, boot_id="b")
_NEED = ChunkRequest(device_id=DEVICE, file_sha256=b"x" * 32, chunk_count=9, missing_bitmap=b"\xff\x01")
_ENROLL = json.dumps({"token": "t", "device_id": DEVICE, "csr": "c"}).encode()
_RENEW = json.dumps({"certificate": "c", "csr": "c", "signature": "s"}).encode()
TARGETS = (
    Target("uplink", _uplink, tuple(_message(**body) for body in _BODIES), _WRONG),
    Target("window", _window, (_DRIFT.SerializeToString(),), _WRONG),
    Target("reported", _reported, (_REPORTED.SerializeToString(),), _WRONG),
    Target("presence", _presence, (_PRESENCE.SerializeToString(),), _WRONG),
    Target("need", _need, (_NEED.SerializeToString(),), ()),
    Target("csr", _csr, (_csr_seed(),), (InvalidRequestError,)),
    Target("enroll", _enroll, (_ENROLL,), (ValidationError,)),
    Target("renew", _renew, (_RENEW,), (ValidationError,)),
    Target("range", _range, (b"bytes=0-99", b"bytes=-5", b"bytes=7-"), (UnsatisfiableError,), longest=200),
)
