"""Which class of device this is: it decides which variants of a release may run."""

from __future__ import annotations

import platform
from pathlib import Path

#: Written by NVIDIA's board support package on every Jetson.
_TEGRA_RELEASE = Path("/etc/nv_tegra_release")


def detect_device_class(*, machine: str | None = None, tegra_release: Path = _TEGRA_RELEASE) -> str:
    """``jetson``, ``aarch64``, ``x86_64``, or the machine name of anything else.

    Args:
        machine: Machine name; the kernel's by default.
        tegra_release: File whose presence on ARM64 means a Jetson.
    """
    name = (machine if machine is not None else platform.machine()).lower()
    name = {"amd64": "x86_64", "arm64": "aarch64"}.get(name, name)
    return "jetson" if name == "aarch64" and tegra_release.exists() else name
