"""What is signed is what is run: envelopes, manifests and the digests in them."""

from __future__ import annotations

from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from skerry_contract.errors import SignatureError, WireError
from skerry_contract.limits import CHUNK_BYTES
from skerry_contract.manifest import (
    bundle_digest,
    check_file_entry,
    check_manifest,
    describe_file,
    describe_folder,
    parse_manifest,
)
from skerry_contract.signing import DESIRED, RELEASE, Ed25519Signer, Ed25519Verifier
from skerry_contract.v1.common_pb2 import SignedEnvelope
from skerry_contract.v1.release_pb2 import FileEntry, ReleaseManifest, Variant

SIGNER = Ed25519Signer(Ed25519PrivateKey.from_private_bytes(bytes(range(32))))
VERIFIER = Ed25519Verifier([SIGNER.public_key])


@given(st.binary(max_size=200))
def test_a_signed_payload_verifies_after_the_wire(payload: bytes) -> None:
    envelope = SignedEnvelope.FromString(SIGNER.sign(RELEASE, payload).SerializeToString())
    assert VERIFIER.verify(RELEASE, envelope) == payload


@given(st.binary(min_size=1, max_size=64), st.data())
def test_one_flipped_bit_is_noticed(payload: bytes, data: st.DataObject) -> None:
    envelope = SIGNER.sign(RELEASE, payload)
    bit = data.draw(st.integers(0, len(payload) * 8 - 1))
    changed = bytearray(payload)
    changed[bit // 8] ^= 1 << bit % 8
    envelope.payload = bytes(changed)
    with pytest.raises(SignatureError, match="does not hold"):
        VERIFIER.verify(RELEASE, envelope)


def test_a_release_is_never_taken_for_a_desired_state() -> None:
    envelope = SIGNER.sign(RELEASE, b"payload")
    with pytest.raises(SignatureError, match="kind"):
        VERIFIER.verify(DESIRED, envelope)
    envelope.kind = DESIRED
    with pytest.raises(SignatureError, match="does not hold"):
        VERIFIER.verify(DESIRED, envelope)


def test_a_stranger_s_signature_and_none_at_all_are_refused() -> None:
    stranger = Ed25519Signer(Ed25519PrivateKey.from_private_bytes(bytes(32)))
    with pytest.raises(SignatureError, match="no signature of a trusted key"):
        VERIFIER.verify(RELEASE, stranger.sign(RELEASE, b"x"))
    with pytest.raises(SignatureError, match="no signature of a trusted key"):
        VERIFIER.verify(RELEASE, SignedEnvelope(kind=RELEASE, payload=b"x"))


def test_a_stranger_beside_a_trusted_key_does_no_harm() -> None:
    stranger = Ed25519Signer(Ed25519PrivateKey.from_private_bytes(bytes(32)))
    envelope = stranger.sign(RELEASE, b"x")
    envelope.signatures.extend(SIGNER.sign(RELEASE, b"x").signatures)
    assert VERIFIER.verify(RELEASE, envelope) == b"x"


def make_manifest(folder: Path) -> ReleaseManifest:
    (folder / "infer.onnx").write_bytes(b"m" * (CHUNK_BYTES + 1))
    (folder / "sub").mkdir()
    (folder / "sub" / "card.md").write_bytes(b"")
    files = list(describe_folder(folder))
    return ReleaseManifest(
        release_id="digits-1",
        sequence=1,
        task="digits",
        files=files,
        bundle_sha256=bundle_digest(files),
        variants=[Variant(name="fp32", path="infer.onnx", golden_tolerance=1e-4)],
    )


def test_a_manifest_describes_its_folder(tmp_path: Path) -> None:
    manifest = parse_manifest(make_manifest(tmp_path).SerializeToString())
    assert [(entry.path, entry.size, len(entry.chunk_sha256)) for entry in manifest.files] == [
        ("infer.onnx", CHUNK_BYTES + 1, 2),
        ("sub/card.md", 0, 0),
    ]


@pytest.mark.parametrize("path", ["/etc/passwd", "../x", "a/../b", "./a", "", "a//b", "a\\b", "a\x00b", "x" * 200])
def test_a_file_cannot_leave_its_folder(path: str) -> None:
    with pytest.raises(WireError) as caught:
        check_file_entry(FileEntry(path=path, sha256=bytes(32), chunk_bytes=1), field="files[0]")
    assert caught.value.field == "files[0].path"


@pytest.mark.parametrize(
    ("change", "field"),
    [
        (lambda m: m.files[0].chunk_sha256.pop(), "chunk_sha256"),
        (lambda m: setattr(m.files[0], "sha256", b"short"), "sha256"),
        (lambda m: setattr(m.files[0], "chunk_bytes", 0), "chunk_bytes"),
        (lambda m: setattr(m.files[0], "size", 1 << 40), "size"),
        (lambda m: setattr(m.variants[0], "path", "nowhere.onnx"), "variants[fp32].path"),
        (lambda m: m.ClearField("variants"), "variants"),
        (lambda m: m.files.append(m.files[0]), "files"),
        (lambda m: setattr(m, "bundle_sha256", bytes(32)), "bundle_sha256"),
        (lambda m: setattr(m, "release_id", "No Good"), "release_id"),
    ],
)
def test_an_inconsistent_manifest_is_refused_by_field(tmp_path: Path, change: object, field: str) -> None:
    manifest = make_manifest(tmp_path)
    assert callable(change)
    change(manifest)
    with pytest.raises(WireError) as caught:
        check_manifest(manifest)
    assert caught.value.field.endswith(field)


def test_the_same_files_have_the_same_digest_in_any_order(tmp_path: Path) -> None:
    files = list(make_manifest(tmp_path).files)
    assert bundle_digest(files) == bundle_digest(reversed(files))
    (tmp_path / "infer.onnx").write_bytes(b"other")
    assert bundle_digest([describe_file(tmp_path / "infer.onnx", "infer.onnx"), files[1]]) != bundle_digest(files)
