"""What applies deltas keeps its promises: in this process, and in one of its own; and what a process adds to go wrong.

Each is driven by a :class:`Detour`. After every failure the disk is as it was: the delta, the base, and nothing else.
"""

from __future__ import annotations

import errno
import hashlib
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from skerry_agent.launch import launch_command
from skerry_agent.update.applier import BYTES_PER_S, START_S, SubprocessApplier, allowed_s, apply_command
from skerry_agent.update.apply_delta import InProcessApplier, main
from skerry_agent.update.delta import Detour, Way
from skerry_agent.update.delta_work import MACHINE, REFUSED, USAGE, DeltaError, DeltaWork
from skerry_agent.update.ports import DeltaApplier
from skerry_contract.delta import SEGMENT_BYTES
from skerry_contract.delta_writer import Match, write_delta
from skerry_contract.manifest import describe_delta
from unit.update.appliers import Stuck
from unit.update.device import snapshot
from unit.update.releases import describe

Wait = Callable[..., None]
#: Two segments and a bit, so that there is a middle.
BASE = bytes(range(256)) * (SEGMENT_BYTES // 128) + b"the end"
TARGET = BASE[:-7] + b"another"
PLACES = [Match(0, 0, len(BASE), 1)]
DELTA = write_delta(BASE, TARGET, PLACES)


def sha256(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


APPLIERS: dict[str, Callable[[], DeltaApplier]] = {
    "in this process": InProcessApplier,
    "in its own": SubprocessApplier,
}


@pytest.fixture(params=APPLIERS)
def applier(request: pytest.FixtureRequest) -> DeltaApplier:
    return APPLIERS[request.param]()


class Making:
    """A complete delta and a base on disk."""

    def __init__(
        self, root: Path, applier: DeltaApplier, *, delta: bytes = DELTA, base: bytes = BASE, target: bytes = TARGET
    ) -> None:
        self.folder = root / "downloads"
        self.folder.mkdir()
        self.base = root / "base"
        self.base.write_bytes(base)
        (self.folder / sha256(delta).hex()).write_bytes(delta)
        entry = describe("infer.onnx", target)
        way = Way(describe_delta(delta, base_sha256=sha256(base), chunk_bytes=1024), self.base)
        self.made = self.folder / entry.sha256.hex()
        self.temporary = self.made.with_name(f"{self.made.name}.applied")
        self.detour = Detour(entry, way, self.folder, applier)
        self.detour.download.open()
        self.before = snapshot(root)
        self._root = root

    def finish(self, wait_until: Wait) -> None:
        wait_until(self.detour.step, what="the file is made")

    def unchanged(self) -> bool:
        return snapshot(self._root) == self.before and not os.path.lexists(self.temporary)


def test_a_file_is_made(tmp_path: Path, applier: DeltaApplier, wait_until: Wait) -> None:
    making = Making(tmp_path, applier)
    making.finish(wait_until)
    assert snapshot(tmp_path) == {**making.before, f"downloads/{making.made.name}": TARGET}
    making.detour.discard()
    assert snapshot(tmp_path) == {"base": BASE, f"downloads/{making.made.name}": TARGET}


def test_an_empty_file_from_an_empty_base(tmp_path: Path, applier: DeltaApplier, wait_until: Wait) -> None:
    making = Making(tmp_path, applier, delta=write_delta(b"", b""), base=b"", target=b"")
    making.finish(wait_until)
    assert making.made.read_bytes() == b""


LONGER = BASE + b"!"
WRONG = {
    "another base": (write_delta(LONGER, TARGET, PLACES), "delta.base: expected SHA-256"),
    "a base of the same size": (write_delta(TARGET, TARGET, PLACES), "delta.base: expected SHA-256"),
    "another target": (write_delta(BASE, LONGER, PLACES), "delta.target: expected"),
    "cut off": (DELTA[:-1], "delta: expected streams of"),
    "cut off in the header": (DELTA[:50], "delta: expected at least"),
    "no delta at all": (b"noise" * 100, "delta.version: expected"),
    "a wrong difference": (DELTA[:-3] + bytes(byte ^ 255 for byte in DELTA[-3:]), "delta"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_delta_that_does_not_lead_there(tmp_path: Path, applier: DeltaApplier, name: str, wait_until: Wait) -> None:
    delta, why = WRONG[name]
    making = Making(tmp_path, applier, delta=delta)
    with pytest.raises(DeltaError) as raised:
        making.finish(wait_until)
    assert raised.value.reason.startswith(why)
    assert making.unchanged()


def test_a_full_disk_is_told_and_tried_again(tmp_path: Path, applier: DeltaApplier, wait_until: Wait) -> None:
    making = Making(tmp_path, applier)
    making.temporary.symlink_to("/dev/full")
    with pytest.raises(OSError) as raised:
        making.finish(wait_until)
    assert raised.value.errno == errno.ENOSPC
    assert raised.value.strerror == "No space left on device"
    assert making.unchanged()
    making.finish(wait_until)
    assert making.made.read_bytes() == TARGET


def test_a_folder_that_cannot_be_written(tmp_path: Path, applier: DeltaApplier, wait_until: Wait) -> None:
    making = Making(tmp_path, applier)
    making.temporary.symlink_to("/proc/nothing-can-be-made-here")
    with pytest.raises(FileNotFoundError) as raised:
        making.finish(wait_until)
    assert raised.value.filename in (str(making.temporary), making.temporary)
    assert making.unchanged()


def test_a_base_that_is_gone(tmp_path: Path, applier: DeltaApplier, wait_until: Wait) -> None:
    making = Making(tmp_path, applier)
    making.base.unlink()
    del making.before["base"]
    with pytest.raises(FileNotFoundError):
        making.finish(wait_until)
    assert making.unchanged()


def test_stopped_in_the_middle_and_begun_again(tmp_path: Path, applier: DeltaApplier, wait_until: Wait) -> None:
    making = Making(tmp_path, applier)
    assert not making.detour.step()
    assert making.detour.making
    making.detour.halt()
    assert making.unchanged()
    making.finish(wait_until)
    assert making.made.read_bytes() == TARGET


def test_nothing_was_started(applier: DeltaApplier) -> None:
    applier.stop()
    with pytest.raises(RuntimeError, match="nothing was started"):
        applier.poll()


def test_starting_another_gives_the_first_up(tmp_path: Path, applier: DeltaApplier, wait_until: Wait) -> None:
    paths = [tmp_path / name for name in ("delta", "base", "first", "second")]
    paths[0].write_bytes(DELTA)
    paths[1].write_bytes(BASE)
    for temporary in paths[2:]:
        applier.start(DeltaWork(paths[0], paths[1], temporary, sha256(TARGET), len(TARGET)))
    wait_until(applier.poll, what="the second is made")
    assert paths[3].read_bytes() == TARGET
    with pytest.raises(RuntimeError, match="nothing was started"):
        applier.poll()


# What only a process can do.


@pytest.fixture
def stuck(tmp_path_factory: pytest.TempPathFactory) -> Stuck:
    return Stuck(tmp_path_factory.mktemp("stuck") / "written")


def middle(making: Making, stuck: Stuck, wait_until: Wait) -> None:
    """Bring the process of ``stuck`` to the middle of the file."""
    wait_until(lambda: making.detour.step() or stuck.written.exists(), what="the first piece is written")
    assert making.temporary.stat().st_size == SEGMENT_BYTES


def test_a_process_stopped_in_the_middle(tmp_path: Path, stuck: Stuck, wait_until: Wait) -> None:
    making = Making(tmp_path, stuck.applier())
    middle(making, stuck, wait_until)
    pid = stuck.made[0].pid
    making.detour.halt()
    assert not Path(f"/proc/{pid}").exists()
    assert making.unchanged()


def test_a_process_killed_in_the_middle(tmp_path: Path, stuck: Stuck, wait_until: Wait) -> None:
    making = Making(tmp_path, stuck.applier())
    middle(making, stuck, wait_until)
    stuck.kill()
    with pytest.raises(DeltaError, match="the process that applies it ended with status -9: no output"):
        making.finish(wait_until)
    assert making.unchanged()


def test_a_process_that_takes_too_long(tmp_path: Path, stuck: Stuck, wait_until: Wait) -> None:
    making = Making(tmp_path, stuck.applier(allowed_s=0.0))
    with pytest.raises(DeltaError, match="applying it took too long"):
        making.finish(wait_until)
    assert stuck.made[0].pid is None
    assert making.unchanged()


def test_a_process_does_not_outlive_its_parent(tmp_path: Path, wait_until: Wait) -> None:
    for name, data in (("delta", DELTA), ("base", BASE)):
        (tmp_path / name).write_bytes(data)
    script = """
import pathlib, signal, sys
from skerry_agent.update.delta_work import DeltaWork
from unit.update.appliers import Stuck
here, digest, size = pathlib.Path(sys.argv[1]), bytes.fromhex(sys.argv[2]), int(sys.argv[3])
applier = Stuck(here / "written").applier()
applier.start(DeltaWork(here / "delta", here / "base", here / "made", digest, size))
print(applier.pid, flush=True)
signal.pause()
"""
    command = [sys.executable, "-c", script, str(tmp_path), sha256(TARGET).hex(), str(len(TARGET))]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    parent = subprocess.Popen(command, stdout=subprocess.PIPE, env=environment)
    assert parent.stdout is not None
    with parent.stdout:
        pid = int(parent.stdout.readline())
        try:
            wait_until((tmp_path / "written").exists, what="the first piece is written")
        finally:
            parent.kill()
            parent.wait(10)
    wait_until(lambda: not running(pid), what="the process ends with its parent")


def running(pid: int) -> bool:
    """Whether a process lives; what nobody has waited for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("import sys; print('noise'); print('{\"error\": \"not so\"}'); sys.exit(3)", "not so"),
        ("import sys; sys.exit(3)", "the process that applies it ended with status 3: no output"),
        ("raise MemoryError", "the process that applies it ended with status 1: MemoryError"),
        ("import os; os.abort()", "the process that applies it ended with status -6: no output"),
        ("import sys; sys.exit(2)", "the process that applies it ended with status 2: no output"),
        ('import sys; print(\'{"error": "?", "errno": null}\'); sys.exit(1)', "the process that applies it ended"),
    ],
)
def test_other_endings(script: str, reason: str, tmp_path: Path, wait_until: Wait) -> None:
    making = Making(tmp_path, SubprocessApplier(command=lambda work: [sys.executable, "-c", script]))
    with pytest.raises(DeltaError) as raised:
        making.finish(wait_until)
    assert raised.value.reason.startswith(reason)
    assert making.unchanged()


def test_one_that_says_too_much_ends_by_its_deadline(tmp_path: Path, wait_until: Wait) -> None:
    script = "print('x' * 1_000_000)"
    making = Making(
        tmp_path,
        SubprocessApplier(command=lambda work: [sys.executable, "-c", script], allowed_s=lambda work: 1.0),
    )
    with pytest.raises(DeltaError, match="took too long"):
        making.finish(wait_until)
    assert making.unchanged()


def test_no_process_can_be_started(tmp_path: Path) -> None:
    making = Making(tmp_path, SubprocessApplier(command=lambda work: [str(tmp_path / "no python")]))
    with pytest.raises(DeltaError, match="no process to apply it in: "):
        making.detour.step()
    assert making.unchanged()


def test_arguments_deadline_and_binding_to_this_process() -> None:
    work = DeltaWork(Path("/delta"), Path("/base"), Path("/made"), b"\1" * 32, 7 * BYTES_PER_S)
    command = apply_command(work)
    assert command[: len(launch_command([]))] == launch_command([], nice=10)
    expected = ["/delta", "/base", "/made", "01" * 32, str(7 * BYTES_PER_S)]
    assert command[-7:] == ["-m", "skerry_agent.update.apply_delta", *expected]
    assert allowed_s(work) == START_S + 7


def test_the_command_says_what_went_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "delta").write_bytes(DELTA)
    (tmp_path / "base").write_bytes(BASE)
    paths = [str(tmp_path / name) for name in ("delta", "base", "made")]
    assert main([*paths, "00" * 32, "1"]) == REFUSED
    assert capsys.readouterr().out.startswith('{"error": "delta.target: expected 0000')
    assert main([paths[0], "/nowhere", paths[2], sha256(TARGET).hex(), str(len(TARGET))]) == MACHINE
    assert '"errno": 2, "file": "/nowhere"' in capsys.readouterr().out
    assert main([*paths, "no digest", "1"]) == USAGE
    assert main([]) == USAGE
    assert sorted(snapshot(tmp_path)) == ["base", "delta"]
