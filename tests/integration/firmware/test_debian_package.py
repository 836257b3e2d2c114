"""The agent as a Debian package: built, installed into a fresh Debian, run there as its own user, without a network."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from integration.link.identity import give_identity
from skerry_agent.config import AgentConfig, AgentLayout
from skerry_agent.update.slots import MANIFEST, Pointer, write_pointer
from skerry_contract.signing import RELEASE, Ed25519Signer
from skerry_models.bundle import build_bundle, describe_release
from skerry_models.parameters import initial_parameters
from skerry_models.task import load_task

ROOT = Path(__file__).resolve().parents[3]
HOME = "var/lib/skerry-agent"
pytestmark = [
    pytest.mark.soak,  # building the package alone takes a minute
    pytest.mark.timeout(600),
    pytest.mark.skipif(os.geteuid() != 0, reason="debootstrap and chroot need root"),
]


def chroot(root: Path, *command: str, user: str | None = None) -> subprocess.CompletedProcess[str]:
    as_user = ["--userspec", f"{user}:{user}"] if user else []
    return subprocess.run(
        ["chroot", *as_user, str(root), *command], capture_output=True, text=True, timeout=300, check=False,
        env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C.UTF-8"},
    )  # fmt: skip


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("deb")
    done = subprocess.run(
        [ROOT / "firmware_images" / "build-deb.sh", output],
        capture_output=True, text=True, timeout=400, check=False,
        env={**os.environ, "PYTHON": sys.executable, "DEB_COMPRESSION": "none"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return Path(done.stdout.strip().splitlines()[-1])


@pytest.fixture(scope="module")
def debian(tmp_path_factory: pytest.TempPathFactory, package: Path) -> Iterator[Path]:
    root = tmp_path_factory.mktemp("debian") / "root"
    done = subprocess.run(
        ["debootstrap", "--variant=minbase", "--include=python3,adduser,systemd,libnghttp2-14", "bookworm", str(root)],
        capture_output=True, text=True, timeout=500, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:]
    subprocess.run(["mount", "--bind", "/proc", str(root / "proc")], check=False)
    (root / "tmp" / "agent.deb").write_bytes(package.read_bytes())
    installed = chroot(root, "dpkg", "--install", "/tmp/agent.deb")
    assert installed.returncode == 0, installed.stdout + installed.stderr
    yield root
    subprocess.run(["umount", "--lazy", str(root / "proc")], check=False, capture_output=True)


def test_the_package_says_what_it_is(package: Path) -> None:
    shown = subprocess.run(["dpkg-deb", "--info", package], capture_output=True, text=True, check=True).stdout
    assert "Package: skerry-agent" in shown
    names = subprocess.run(["dpkg-deb", "--contents", package], capture_output=True, text=True, check=True).stdout
    assert "./usr/bin/skerry-agent" in names
    for absent in ("/torch/", "/skerry_server/", "/skerry_models/", "/mlflow/", "/sklearn/"):
        assert absent not in names


def test_it_depends_on_nghttp2_when_it_was_built_with_it(package: Path) -> None:
    depends = subprocess.run(["dpkg-deb", "--field", package, "Depends"], capture_output=True, text=True, check=True)
    names = subprocess.run(["dpkg-deb", "--contents", package], capture_output=True, text=True, check=True).stdout
    compiled = re.search(r"/skerry_agent/serving/_http2\.\S+\.so$", names, re.MULTILINE) is not None
    expected = ["python3 (>= 3.11)", "adduser", *(["libnghttp2-14"] if compiled else [])]
    assert depends.stdout.strip().split(", ") == expected
    headers = [Path("/usr/include/nghttp2/nghttp2.h"), Path(sysconfig.get_path("include"), "Python.h")]
    if shutil.which("gcc") and all(header.exists() for header in headers):
        assert compiled


@pytest.mark.soak
def test_installed_it_runs_and_its_unit_is_valid(debian: Path) -> None:
    version = chroot(debian, "skerry-agent", "version")
    assert version.returncode == 0, version.stderr
    assert version.stdout.strip()
    verified = chroot(debian, "systemd-analyze", "verify", "/lib/systemd/system/skerry-agent.service")
    assert "skerry-agent.service:" not in verified.stderr, verified.stderr
    streamed = chroot(debian, "systemd-analyze", "verify", "/lib/systemd/system/skerry-agent-stream@.service")
    assert "skerry-agent-stream@" not in streamed.stderr, streamed.stderr
    unit = (debian / "lib/systemd/system/skerry-agent.service").read_text().splitlines()
    assert {"Type=notify", "NotifyAccess=main", "WatchdogSec=30"} <= set(unit)
    assert chroot(debian, "id", "skerry-agent").returncode == 0
    home = (debian / HOME).stat()
    assert home.st_mode & 0o777 == 0o750


@pytest.mark.soak
def test_what_was_compiled_loads_there(debian: Path) -> None:
    compiled = sorted((debian / "opt/skerry-agent/lib/skerry_agent").glob("*/_*.so"))
    imports = "".join(f"import skerry_agent.{path.parent.name}.{path.name.split('.')[0]}\n" for path in compiled)
    done = chroot(debian, "env", "PYTHONPATH=/opt/skerry-agent/lib", "python3", "-c", imports)
    assert done.returncode == 0, done.stderr


@pytest.mark.soak
def test_before_enrolment_it_says_what_to_do(debian: Path) -> None:
    done = chroot(debian, "skerry-agent", "run", "--data-dir", f"/{HOME}", user="skerry-agent")
    assert done.returncode == 3
    assert "skerry-agent enroll" in done.stderr
    assert "Traceback" not in done.stderr


def prepare_device(home: Path) -> None:
    """A device that has had its first release and never saw its control plane again."""
    task = load_task("digits")
    layout = AgentLayout(home)
    slot = layout.slots / "a"
    slot.mkdir(parents=True)
    central = task.source("central")
    build_bundle(
        task, initial_parameters(task, seed=1), slot,
        reference=central, calibration=central, holdout=task.source("holdout"), lineage={}, parent_edges=None,
    )  # fmt: skip
    manifest = describe_release(slot, release_id="digits-1", sequence=1, task=task, parent="", now_ms=1)
    signer = Ed25519Signer(Ed25519PrivateKey.generate())
    (slot / MANIFEST).write_bytes(signer.sign(RELEASE, manifest.SerializeToString()).SerializeToString())
    write_pointer(layout, Pointer(slot="a", release_id="digits-1", committed=True))
    config = AgentConfig(
        device_id="debian-1", broker_host="127.0.0.1", broker_port=1, broker_data_port=1,
        device_api="https://127.0.0.1:1",
        superlink_address="127.0.0.1:1", release_keys=[signer.public_key.hex()],
    )  # fmt: skip
    give_identity(layout, config.device_id)
    layout.config.write_text(config.to_json())


@pytest.mark.soak
def test_as_its_own_user_it_answers_without_a_network(debian: Path, wait_until: Callable[..., None]) -> None:
    home = debian / HOME
    prepare_device(home)
    assert chroot(debian, "chown", "-R", "skerry-agent:skerry-agent", f"/{HOME}").returncode == 0
    agent = subprocess.Popen(
        [
            "chroot", "--userspec", "skerry-agent:skerry-agent", str(debian),
            "skerry-agent", "run", "--data-dir", f"/{HOME}",
        ],
        env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": f"/{HOME}"},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    try:
        doors = home / "run" / "serving.json"
        wait_until(doors.exists, what="the doors of the agent", seconds=60)
        port = json.loads(doors.read_text())["http_port"]
        rows = np.zeros((1, 64), np.float32)
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False) as client:
            metadata = client.get("/v2/models/digits").json()
            shape = [1, *metadata["inputs"][0]["shape"][1:]]
            tensor = {"name": "input", "datatype": "FP32", "shape": shape, "data": rows.ravel().tolist()}
            answer = client.post("/v2/models/digits/infer", json={"inputs": [tensor]})
        assert answer.status_code == 200, answer.text
        scores = next(output for output in answer.json()["outputs"] if output["name"] == "scores")
        assert scores["shape"] == [1, 10]
    finally:
        agent.terminate()
        output, _ = agent.communicate(timeout=60)
    assert "Traceback" not in output


@pytest.mark.soak
def test_removed_it_leaves_the_device_s_state_and_purged_it_does_not(debian: Path) -> None:
    assert chroot(debian, "dpkg", "--remove", "skerry-agent").returncode == 0
    assert not (debian / "opt" / "skerry-agent").exists()
    assert (debian / HOME / "agent.json").exists()
    assert chroot(debian, "dpkg", "--purge", "skerry-agent").returncode == 0
    assert not (debian / HOME).exists()
