"""Ten thousand mutated metadata files, envelopes, manifests, bundle files and chunks: none gets through, no byte on the
disk changes.

Mutations that say the same in other bytes (a space in JSON, an unknown field in protobuf) are not counted: what is
signed is then the same.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from google.protobuf.message import DecodeError
from tuf.api.exceptions import RepositoryError
from tuf.api.metadata import Metadata

from skerry_agent.config import AgentLayout
from skerry_agent.errors import ArtifactError
from skerry_agent.update.desired import RefusedError, accept
from skerry_agent.update.download import FileDownload
from skerry_agent.update.slots import MANIFEST, read_slot
from skerry_contract.errors import WireError
from skerry_contract.v1.common_pb2 import SignedEnvelope
from unit.agent_trust.repository import MODEL
from unit.agent_trust.trust_device import HastyDisk, experienced
from unit.update.releases import CHUNK, DEVICE, VERIFIER, describe, make_desired, make_release

METADATA, DESIRED, MANIFESTS, FILES, CHUNKS = 150, 3400, 1000, 1000, 4000
assert 4 * METADATA + DESIRED + MANIFESTS + FILES + CHUNKS == 10_000
PIECES = [
    b"\0",
    b"0",
    b"9",
    b'"',
    b"{",
    b"}",
    b"[",
    b",",
    b":",
    b"-1",
    b"1e9",
    b"null",
    b"true",
    b"\xff\xff\xff\xff\x0f",
]


def mutations(original: bytes, count: int, same: Callable[[bytes], bool] = lambda data: False) -> Iterator[bytes]:
    """So many changed copies; the same ones in every run."""
    rng = random.Random(original[:64])
    while count:
        data = bytearray(original)
        for _ in range(rng.choice((1, 1, 1, 2, 5))):
            start = rng.randrange(len(data) + 1)
            end = min(len(data), start + rng.choice((1, 2, 8, 64)))
            match rng.randrange(6):
                case 0 if start < len(data):
                    data[start] ^= 1 << rng.randrange(8)
                case 1:
                    del data[start:end]
                case 2:
                    data[start:start] = data[start:end]
                case 3:
                    data[start:end] = rng.choice(PIECES)
                case 4:
                    data[start:end] = rng.randbytes(end - start)
                case _:
                    del data[start:]
        mutated = bytes(data)
        if mutated != original and not same(mutated):
            count -= 1
            yield mutated


def same_metadata(original: bytes) -> Callable[[bytes], bool]:
    metadata = Metadata.from_bytes(original)

    def same(data: bytes) -> bool:
        try:
            return Metadata.from_bytes(data).signed_bytes == metadata.signed_bytes
        except RepositoryError:
            return False

    return same


def same_envelope(original: bytes) -> Callable[[bytes], bool]:
    payload = SignedEnvelope.FromString(original).payload

    def same(data: bytes) -> bool:
        try:
            return SignedEnvelope.FromString(data).payload == payload
        except DecodeError:
            return False

    return same


def below(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("role", ["timestamp", "snapshot", "targets", MODEL])
def test_metadata(tmp_path: Path, role: str) -> None:
    repository, device, _old = experienced(tmp_path)
    repository.approve("c", 3)
    files = repository.publish()
    name = repository.name_of(role)
    # What is above the role in the chain is good and may be remembered; from then on nothing changes.
    assert not device.judge(files, "c", withheld=(name,)).approved
    before = device.everything()
    for mutated in mutations(files[name], METADATA, same_metadata(files[name])):
        answer = device.judge({**files, name: mutated}, "c")
        assert (answer.approved, answer.final) == (False, False), mutated
        assert answer.detail
        assert "could not" not in answer.detail
        assert device.everything() == before, mutated
    assert device.judge(files, "c").approved


def test_desired_states() -> None:
    payload = make_desired(2, make_release("digits-2"))
    for mutated in mutations(payload, DESIRED, same_envelope(payload)):
        with pytest.raises(RefusedError):
            accept(mutated, VERIFIER, device_id=DEVICE, sequence=1, now_ms=0, signed_ms=0)
    assert accept(payload, VERIFIER, device_id=DEVICE, sequence=1, now_ms=0, signed_ms=0).release_id == "digits-2"


def test_manifests_of_a_slot(tmp_path: Path) -> None:
    layout = AgentLayout(tmp_path)
    envelope = make_release("digits-2").envelope.SerializeToString()
    folder = layout.slots / "a"
    folder.mkdir(parents=True)
    for mutated in mutations(envelope, MANIFESTS, same_envelope(envelope)):
        (folder / MANIFEST).write_bytes(mutated)
        with pytest.raises(ArtifactError):
            read_slot(layout, "a", VERIFIER)
    (folder / MANIFEST).write_bytes(envelope)
    assert read_slot(layout, "a", VERIFIER).manifest.release_id == "digits-2"


def test_files_of_a_bundle(tmp_path: Path) -> None:
    data = random.Random(1).randbytes(3 * CHUNK + 100)
    entry = describe("infer.onnx", data)
    for mutated in mutations(data, FILES):
        download = FileDownload(entry, tmp_path, HastyDisk())
        download.path.write_bytes(mutated)
        assert not download.verify()
        assert below(tmp_path) == {}


def test_chunks(tmp_path: Path) -> None:
    data = random.Random(2).randbytes(3 * CHUNK + 100)
    download = FileDownload(describe("infer.onnx", data), tmp_path, HastyDisk())
    download.open()
    download.accept(0, data[:CHUNK])
    before = below(tmp_path)
    pieces = [data[start : start + CHUNK] for start in range(0, len(data), CHUNK)]
    for index, piece in enumerate(pieces[1:], start=1):
        for number, mutated in enumerate(mutations(piece, CHUNKS // 3 + (index == 1))):
            with pytest.raises(WireError):
                download.accept(index, mutated)
            if number % 50 == 0:
                assert below(tmp_path) == before
    assert below(tmp_path) == before
    assert download.missing() == [1, 2, 3]
    for index, piece in enumerate(pieces):
        download.accept(index, piece)
    assert download.verify()
    assert download.path.read_bytes() == data
