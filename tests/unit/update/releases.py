"""Makes signed releases and desired states for tests, with a key of its own."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from skerry_contract.manifest import bundle_digest, check_manifest, describe_delta
from skerry_contract.signing import DESIRED, RELEASE, Ed25519Signer, Ed25519Verifier
from skerry_contract.v1.common_pb2 import SignedEnvelope
from skerry_contract.v1.device_pb2 import DesiredState, ReportingPolicy
from skerry_contract.v1.release_pb2 import FileEntry, ReleaseManifest, Variant

DEVICE = "press-07"
CHUNK = 1024


def new_signer() -> Ed25519Signer:
    return Ed25519Signer(Ed25519PrivateKey.generate())


SIGNER = new_signer()
VERIFIER = Ed25519Verifier([SIGNER.public_key])


def describe(path: str, data: bytes, chunk_bytes: int = CHUNK) -> FileEntry:
    chunks = [data[start : start + chunk_bytes] for start in range(0, len(data), chunk_bytes)]
    return FileEntry(
        path=path,
        size=len(data),
        sha256=hashlib.sha256(data).digest(),
        chunk_bytes=chunk_bytes,
        chunk_sha256=[hashlib.sha256(chunk).digest() for chunk in chunks],
    )


@dataclass(frozen=True)
class MadeRelease:
    files: dict[str, bytes]
    manifest: ReleaseManifest
    envelope: SignedEnvelope
    deltas: tuple[bytes, ...] = ()

    @property
    def by_digest(self) -> dict[str, bytes]:
        return {hashlib.sha256(data).hexdigest(): data for data in (*self.files.values(), *self.deltas)}

    @property
    def digest(self) -> str:
        return self.manifest.bundle_sha256.hex()


def make_release(
    release_id: str,
    *,
    files: dict[str, bytes] | None = None,
    expires_unix_ms: int = 0,
    chunk_bytes: int = CHUNK,
    signer: Ed25519Signer = SIGNER,
    deltas: Sequence[tuple[str, bytes, bytes]] = (),
    variants: Sequence[Variant] = (),
) -> MadeRelease:
    """A release of three files of which one is shared by every release of this function; deltas: path, base, delta."""
    if files is None:
        seed = hashlib.sha256(release_id.encode()).digest()
        files = {"infer.onnx": seed * 100, "model_card.md": b"same card\n" * 30, "extra/empty.bin": b""}
    entries = [describe(path, data, chunk_bytes) for path, data in files.items()]
    for path, base, delta in deltas:
        described = describe_delta(delta, base_sha256=hashlib.sha256(base).digest(), chunk_bytes=chunk_bytes)
        next(entry for entry in entries if entry.path == path).deltas.append(described)
    manifest = ReleaseManifest(
        release_id=release_id,
        sequence=1,
        task="digits",
        bundle_sha256=bundle_digest(entries),
        files=entries,
        variants=variants or [Variant(name="fp32", path=next(iter(files)))],
        expires_unix_ms=expires_unix_ms,
    )
    check_manifest(manifest)
    envelope = signer.sign(RELEASE, manifest.SerializeToString())
    return MadeRelease(files, manifest, envelope, tuple(delta for _, _, delta in deltas))


def make_desired(
    sequence: int,
    release: MadeRelease | None,
    *,
    device_id: str = DEVICE,
    rollout_id: str = "rollout-1",
    probation_ms: int = 0,
    reporting: ReportingPolicy | None = None,
    issued_unix_ms: int = 1_700_000_000_000,
    signer: Ed25519Signer = SIGNER,
    preferred: Sequence[str] = (),
) -> bytes:
    state = DesiredState(
        device_id=device_id,
        sequence=sequence,
        issued_unix_ms=issued_unix_ms,
        rollout_id=rollout_id,
        probation_ms=probation_ms,
        reporting=reporting,
        preferred_variants=preferred,
    )
    if release is not None:
        state.release.CopyFrom(release.envelope)
    return signer.sign(DESIRED, state.SerializeToString()).SerializeToString()
