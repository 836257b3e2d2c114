"""Names of device classes."""

from __future__ import annotations

from pathlib import Path

import pytest

from skerry_agent.engine.device_class import detect_device_class


@pytest.mark.parametrize(
    ("machine", "tegra", "expected"),
    [
        ("x86_64", False, "x86_64"),
        ("AMD64", False, "x86_64"),
        ("x86_64", True, "x86_64"),
        ("aarch64", False, "aarch64"),
        ("arm64", False, "aarch64"),
        ("aarch64", True, "jetson"),
        ("riscv64", False, "riscv64"),
    ],
)
def test_device_class(tmp_path: Path, machine: str, tegra: bool, expected: str) -> None:
    release = tmp_path / "nv_tegra_release"
    if tegra:
        release.write_text("# R36")
    assert detect_device_class(machine=machine, tegra_release=release) == expected
