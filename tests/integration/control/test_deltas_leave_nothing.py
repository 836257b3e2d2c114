"""A file is made by its delta as the control process does it, and the process that asked for it stays as light."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from skerry_contract.delta_writer import Match, write_delta
from skerry_contract.manifest import describe_delta
from unit.update.releases import describe

#: Control's own modules, and its downloader with what is its default; the delta is on disk already.
SCRIPT = """
import json, sys, time
from pathlib import Path

import skerry_agent.control.process
from skerry_agent.config import AgentLayout
from skerry_agent.update.downloader import Downloader
from skerry_contract.v1.release_pb2 import FileEntry

def resident_kb():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmRSS"))

class Nobody:
    ready = False

root, entry = Path(sys.argv[1]), FileEntry.FromString(bytes.fromhex(sys.argv[2]))
downloader = Downloader(
    AgentLayout(root), device_id="press-07", reserve_bytes=0, control=Nobody(), open_data=lambda digests: Nobody()
)
before = resident_kb()
downloader.begin([entry])
until = time.monotonic() + 60
while not (progress := downloader.poll()).finished and time.monotonic() < until:
    time.sleep(0.02)
heavy = [name for name in ("numpy", "zstandard", "skerry_contract.delta") if name in sys.modules]
print(json.dumps({"finished": progress.finished, "note": progress.note, "heavy": heavy,
    "grown_kb": resident_kb() - before}))
"""


@pytest.mark.parametrize("size", [64, 6_000_000], ids=["a small file", "a large file"])
def test_control_holds_no_numpy_after_a_delta(tmp_path: Path, size: int) -> None:
    old = np.random.default_rng(1).integers(-127, 128, size).astype(np.int8)
    new = (old + np.random.default_rng(2).integers(-1, 2, size)).astype(np.int8).tobytes()
    delta = write_delta(old.tobytes(), new, [Match(0, 0, size, 1)])
    entry = describe("infer.onnx", new, 65_536)
    base_sha256 = hashlib.sha256(old.tobytes()).digest()
    entry.deltas.append(describe_delta(delta, base_sha256=base_sha256, chunk_bytes=65_536))
    downloads, slot = tmp_path / "update" / "downloads", tmp_path / "slots" / "a"
    for folder in (downloads, slot):
        folder.mkdir(parents=True)
    (slot / "infer.onnx").write_bytes(old.tobytes())
    (downloads / hashlib.sha256(delta).hexdigest()).write_bytes(delta)
    command = [sys.executable, "-c", SCRIPT, str(tmp_path), entry.SerializeToString().hex()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    said = json.loads(done.stdout)
    assert (said["finished"], said["note"], said["heavy"]) == (True, "", [])
    assert said["grown_kb"] < 4_096
    assert [path.name for path in downloads.iterdir()] == [entry.sha256.hex()]
    assert (downloads / entry.sha256.hex()).read_bytes() == new
