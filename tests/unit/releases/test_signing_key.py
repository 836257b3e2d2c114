"""The signing key: made once, owner-only, refused when it is not what it should be."""

from __future__ import annotations

import stat
import threading
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from skerry_contract.signing import RELEASE, Ed25519Verifier
from skerry_server.config import ServerLayout
from skerry_server.errors import PlatformError
from skerry_server.releases.signing import load_or_create_key, signing_key_path


def test_the_key_is_made_once_and_only_its_owner_reads_it(tmp_path: Path) -> None:
    layout = ServerLayout(tmp_path)
    first = load_or_create_key(layout)
    second = load_or_create_key(layout)
    assert first.public_key == second.public_key
    assert stat.S_IMODE(signing_key_path(layout).stat().st_mode) == 0o600
    assert stat.S_IMODE(layout.keys.stat().st_mode) == 0o700
    assert [path.name for path in layout.keys.iterdir()] == ["release-signing.pem"]
    assert Ed25519Verifier([first.public_key]).verify(RELEASE, second.sign(RELEASE, b"payload")) == b"payload"


def test_two_first_starts_at_once_end_with_one_key(tmp_path: Path) -> None:
    keys: list[bytes] = []
    gate = threading.Barrier(8)

    def start() -> None:
        gate.wait(10)
        keys.append(load_or_create_key(ServerLayout(tmp_path)).public_key)

    threads = [threading.Thread(target=start) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(keys) == 8
    assert len(set(keys)) == 1


def test_a_key_that_others_may_read_is_refused(tmp_path: Path) -> None:
    layout = ServerLayout(tmp_path)
    load_or_create_key(layout)
    signing_key_path(layout).chmod(0o640)
    with pytest.raises(PlatformError, match="chmod 600"):
        load_or_create_key(layout)


@pytest.mark.parametrize("content", ["empty", "text", "other curve"])
def test_what_is_no_ed25519_key_is_refused_and_kept(tmp_path: Path, content: str) -> None:
    layout = ServerLayout(tmp_path)
    layout.keys.mkdir()
    pem = generate_private_key(SECP256R1()).private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    data = {"empty": b"", "text": b"hello", "other curve": pem}[content]
    signing_key_path(layout).write_bytes(data)
    signing_key_path(layout).chmod(0o600)
    with pytest.raises(PlatformError, match="backup"):
        load_or_create_key(layout)
    assert signing_key_path(layout).read_bytes() == data
