"""What people do with keys: where they lie, what is refused, and that nothing is half done."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest

from skerry_contract.signing import DESIRED, Ed25519Verifier
from skerry_server.cli.main import main
from skerry_server.config import ServerLayout, TrustSettings
from skerry_server.errors import ConflictError, InvalidRequestError, PlatformError, SkerryError
from skerry_server.releases.signing import load_or_create_key, rotate_key
from skerry_server.trust import service
from skerry_server.trust.folder import TrustFolder
from skerry_server.trust.keys import MissingKeysError
from unit.trust.tuf_device import TufDevice, files_of

SETTINGS = TrustSettings()


@pytest.fixture
def layout(tmp_path: Path) -> ServerLayout:
    return ServerLayout(tmp_path / "plane")


def disks(tmp_path: Path, number: int) -> list[Path]:
    paths = [tmp_path / f"disk-{index}" for index in range(number)]
    for path in paths:
        path.mkdir()
    return paths


def snapshot(root: Path) -> dict[str, bytes]:
    """Every file below ``root`` but the lock."""
    return {
        str(path.relative_to(root)): path.read_bytes()
        for path in root.rglob("*")
        if path.is_file() and path.name != "lock"
    }


def test_root_keys_are_dealt_out_to_disks_and_never_touch_the_control_plane(
    layout: ServerLayout, tmp_path: Path
) -> None:
    offline = disks(tmp_path, 3)
    status = service.initialise(layout, SETTINGS, offline=offline)
    assert [len(list(disk.glob("root.*.pem"))) for disk in offline] == [1, 1, 1]
    assert sorted(path.name.partition(".")[0] for path in layout.trust_keys.iterdir()) == [
        "snapshot",
        "targets",
        "timestamp",
    ]
    assert {stat.S_IMODE(path.stat().st_mode) for path in layout.trust_keys.iterdir()} == {0o600}
    assert (status.roles[0].private_keys_here, status.warnings, status.broken) == (0, [], False)
    device = TufDevice(tmp_path / "device", service.current_root(layout))
    # Any two of the three disks suffice, and the new keys are dealt out to those that are there.
    status = service.rotate(layout, SETTINGS, "root", offline=offline[1:])
    assert [len(list(disk.glob("root.*.pem"))) for disk in offline] == [1, 3, 2]
    assert (status.roles[0].version, status.roles[0].threshold, len(status.roles[0].key_ids)) == (2, 2, 3)
    device.refresh(files_of(layout.trust / "repository"))
    before = snapshot(layout.root)
    for role in ("root", "targets"):
        with pytest.raises(MissingKeysError, match="--offline DIR"):
            service.rotate(layout, SETTINGS, role, offline=offline[:1])
    assert snapshot(layout.root) == before


def test_moving_the_root_keys_of_the_first_start_to_a_disk(layout: ServerLayout, tmp_path: Path) -> None:
    service.ensure(layout, SETTINGS)
    assert service.status(layout, SETTINGS).roles[0].private_keys_here == 3
    first = service.current_root(layout)
    status = service.rotate(layout, SETTINGS, "root", offline=disks(tmp_path, 1), threshold=3, of=5)
    assert (status.roles[0].private_keys_here, status.roles[0].threshold, len(status.roles[0].key_ids)) == (0, 3, 5)
    assert "count no more" in status.warnings[0]
    TufDevice(tmp_path / "device", first).refresh(files_of(layout.trust / "repository"))


@pytest.mark.parametrize(
    ("changes", "error", "said"),
    [
        ({"threshold": 4}, InvalidRequestError, "threshold: expected 1 to 3"),
        ({"threshold": 0}, InvalidRequestError, "threshold"),
        ({"of": 17}, InvalidRequestError, "of: expected 1 to 16"),
        ({"offline": [Path("/nowhere/at/all")]}, InvalidRequestError, "offline: expected a folder that exists"),
    ],
)
def test_what_cannot_be_is_refused_and_nothing_is_made(
    layout: ServerLayout, changes: dict[str, object], error: type[SkerryError], said: str
) -> None:
    with pytest.raises(error, match=said):
        service.initialise(layout, SETTINGS, **changes)  # type: ignore[arg-type]  # a table of wrong arguments
    assert not layout.root.exists() or snapshot(layout.root) == {}


def test_keys_are_made_once(layout: ServerLayout) -> None:
    service.initialise(layout, SETTINGS)
    before = snapshot(layout.root)
    with pytest.raises(ConflictError, match="keys rotate"):
        service.initialise(layout, SETTINGS)
    service.ensure(layout, SETTINGS)
    for role in ("nonsense", "model-digits"):
        with pytest.raises(InvalidRequestError, match="one of root, targets"):
            service.rotate(layout, SETTINGS, role)
    with pytest.raises(InvalidRequestError, match="outside the data directory"):
        service.rotate(layout, SETTINGS, "root", offline=[layout.root])
    assert snapshot(layout.root) == before


@pytest.mark.parametrize("harm", ["mode", "text", "another"])
def test_a_key_file_that_is_not_what_it_should_be_is_refused(layout: ServerLayout, harm: str) -> None:
    service.initialise(layout, SETTINGS)
    path = next(layout.trust_keys.glob("timestamp.*.pem"))
    if harm == "mode":
        path.chmod(0o644)
    else:
        path.write_bytes(b"hello" if harm == "text" else next(layout.trust_keys.glob("targets.*.pem")).read_bytes())
    before = snapshot(layout.root / "trust")
    with pytest.raises(PlatformError, match="chmod 600" if harm == "mode" else "backup"):
        service.rotate(layout, SETTINGS, "timestamp")
    assert snapshot(layout.root / "trust") == before


def test_a_signer_follows_the_rotation_of_its_file(layout: ServerLayout) -> None:
    signer = load_or_create_key(layout)
    old = signer.public_key
    new = rotate_key(layout).public_key
    assert old != new == signer.public_key
    assert Ed25519Verifier([new]).verify(DESIRED, signer.sign(DESIRED, b"payload")) == b"payload"


def test_two_writers_do_not_write_at_once(layout: ServerLayout) -> None:
    folder = TrustFolder(layout.trust)
    with (
        folder.locked(),
        pytest.raises(PlatformError, match="another process has held"),
        TrustFolder(layout.trust).locked(deadline_s=0),
    ):
        pass
    with folder.locked(deadline_s=0):
        pass


def test_exit_codes_and_json(layout: ServerLayout, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def run(*arguments: str) -> int:
        return main(["keys", *arguments, "--data-dir", str(layout.root)])

    assert run("status") == 3
    assert run("init", "--threshold", "5") == 2
    assert run("init", "--offline", str(disks(tmp_path, 1)[0])) == 0
    assert run("init") == 5
    assert run("rotate", "timestamp") == 3
    assert run("rotate", "nonsense") == 2
    assert run("renew") == 3
    capsys.readouterr()
    assert run("renew", "--offline", str(tmp_path / "disk-0"), "--json") == 0
    assert json.loads(capsys.readouterr().out)["roles"][0]["version"] == 2
    next(layout.trust_keys.glob("timestamp.*.pem")).unlink()
    assert run("status", "--json") == 1
    assert "the private key of timestamp" in json.loads(capsys.readouterr().out)["warnings"][0]
