"""``skerry-agent probe``: the machine, the runtimes, and what is served and why."""

from __future__ import annotations

import json
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest

from integration.engine.tiny_bundle import TinyRelease, enrol, install
from skerry_agent.cli import run
from skerry_agent.engine.device_profile import read_profile


def test_a_bare_machine_and_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["probe", "--data-dir", str(tmp_path), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["release"] is None
    assert document["machine"]["backends"]["onnxruntime"]["available"]
    assert "built without" in document["machine"]["backends"]["onnxruntime-cuda"]["detail"]
    model = tmp_path / "model.onnx"
    model.write_bytes(TinyRelease().graph("fp32"))
    assert run(["probe", "--data-dir", str(tmp_path), "--onnx", str(model)]) == 0
    assert "fastest correct form" in capsys.readouterr().out
    for content in (b"not an onnx file", None):
        model.write_bytes(content) if content else model.unlink()
        assert run(["probe", "--data-dir", str(tmp_path), "--onnx", str(model)]) == 2
        assert "--onnx" in capsys.readouterr().err


def test_the_active_release_measured_now(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    layout = enrol(tmp_path)
    content = install(layout, TinyRelease(slow_variants={"fp32": 60}))
    assert run(["probe", "--data-dir", str(tmp_path)]) == 0
    assert "not measured yet" in capsys.readouterr().out
    before = sorted(content.folder.iterdir())
    assert run(["probe", "--data-dir", str(tmp_path), "--release"]) == 0
    told = capsys.readouterr().out
    assert [line.split()[2] for line in told.splitlines() if line.startswith("*")] == ["int8-qdq"]
    assert sorted(content.folder.iterdir()) == before  # nothing is kept


BOARD = {
    "proc/cpuinfo": "Features\t: fp asimd asimddp evtstrm\nCPU implementer\t: 0x41\nCPU part\t: 0xd42\n",
    "proc/meminfo": "MemTotal:       31246312 kB\n",
    "proc/device-tree/model": "NVIDIA Jetson AGX Orin\0",
    "etc/nv_tegra_release": "# R36 (release), REVISION: 4.3\nmore\n",
    "var/lib/nvpmodel/status": "pmode:0002\n",
    "dev/accel/accel0": "",
}


def test_the_profile_of_a_board_and_of_a_machine_that_says_nothing(tmp_path: Path) -> None:
    def installed(name: str) -> str:
        if name != "tensorrt":
            raise PackageNotFoundError(name)
        return "10.3.0"

    for path, text in BOARD.items():
        (tmp_path / "board" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "board" / path).write_text(text)
    profile = read_profile(tmp_path / "board", installed=installed)
    assert profile.cpu == "NVIDIA Jetson AGX Orin, implementer 0x41 part 0xd42"
    assert profile.isa == ("asimd", "asimddp")
    assert profile.memory_bytes == 31246312 * 1024
    assert profile.accelerators == ("jetson # R36 (release), REVISION: 4.3", "npu accel0")
    assert (profile.runtimes, profile.power_mode) == ({"tensorrt": "10.3.0"}, "pmode:0002")
    empty = read_profile(tmp_path / "nothing", installed=installed)
    assert (empty.isa, empty.memory_bytes, empty.accelerators, empty.power_mode) == ((), 0, (), "")
    assert empty.digest != profile.digest
