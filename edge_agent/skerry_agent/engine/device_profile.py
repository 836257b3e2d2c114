"""What a device is, as far as it decides which form of a model is fastest: read from files, without a runtime.

Two devices with the same :attr:`DeviceProfile.digest` may learn from each other which form to download. The profile is
cheap, so the control process can report it; whether a runtime really works is for the probes of the backends.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from skerry_agent.engine.device_class import detect_device_class
from skerry_contract.fitness import profile_digest
from skerry_contract.v1.fitness_pb2 import DeviceProfile as ProfileMessage

#: Instruction sets that runtimes have kernels for; everything else in a processor's flags is noise here.
ISA_FLAGS = frozenset(
    {
        *("sse4_1", "sse4_2", "avx", "f16c", "fma", "avx2", "avx_vnni", "avx512f", "avx512bw", "avx512vl"),
        *("avx512_vnni", "avx512_bf16", "avx512_fp16", "amx_tile", "amx_int8", "amx_bf16"),
        *("asimd", "asimdhp", "asimddp", "fphp", "sve", "sve2", "i8mm", "bf16", "sme", "neon", "vfpv4"),
    }
)
#: Distributions whose version decides how fast a form is.
RUNTIMES = ("onnxruntime", "onnxruntime-gpu", "tensorrt", "cuda-python")
_TEXT = 120


@dataclass(frozen=True)
class DeviceProfile:
    """Hardware and runtimes.

    Attributes:
        device_class: Which variants may run: see :func:`~skerry_agent.engine.device_class.detect_device_class`.
        cpu: Model of the processor; empty if the kernel does not say.
        isa: Its instruction sets that matter, sorted.
        cores: Cores that this process may use.
        memory_bytes: Memory of the machine; 0 if the kernel does not say.
        accelerators: What else can compute, sorted: "nvidia ...", "jetson ...", "npu ...".
        runtimes: Distribution to version, of those that are installed.
        power_mode: Mode of the board or governor of the processor; empty if there is none.
    """

    device_class: str
    cpu: str
    isa: tuple[str, ...]
    cores: int
    memory_bytes: int
    accelerators: tuple[str, ...]
    runtimes: Mapping[str, str]
    power_mode: str

    @property
    def hardware(self) -> str:
        """Digest (64 hexadecimal digits) of what a kept choice depends on: all but memory and power mode."""
        return replace(self, power_mode="").digest

    @property
    def digest(self) -> str:
        """Digest (64 hexadecimal digits) of what makes devices alike: all but the exact memory."""
        return profile_digest(self.to_message())

    def to_message(self) -> ProfileMessage:
        """As it is reported."""
        return ProfileMessage(
            device_class=self.device_class,
            cpu=self.cpu,
            isa=self.isa,
            cores=self.cores,
            memory_bytes=self.memory_bytes,
            accelerators=self.accelerators,
            runtimes=self.runtimes,
            power_mode=self.power_mode,
        )


def read_profile(root: Path = Path("/"), *, installed: Callable[[str], str] = version) -> DeviceProfile:
    """Read the profile of this machine; what cannot be read is left empty.

    Args:
        root: Root of the file system.
        installed: Version of a distribution; raises PackageNotFoundError.
    """
    information = _text(root / "proc/cpuinfo", limit=1 << 16)
    return DeviceProfile(
        device_class=detect_device_class(tegra_release=root / "etc/nv_tegra_release"),
        cpu=_cpu(information, root),
        isa=_isa(information),
        cores=_cores(),
        memory_bytes=_memory(root),
        accelerators=_accelerators(root),
        runtimes=_runtimes(installed),
        power_mode=power_mode(root),
    )


@lru_cache(maxsize=1)
def this_hardware() -> str:
    """Digest of the hardware that this process runs on, read once."""
    return read_profile().hardware


def power_mode(root: Path = Path("/")) -> str:
    """Jetson's power mode, or the processor's frequency governor; empty if there is none."""
    mode = _text(root / "var/lib/nvpmodel/status")
    return mode or _text(root / "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")


def _text(path: Path, *, limit: int = _TEXT) -> str:
    try:
        with path.open("rb") as stream:
            return stream.read(limit).decode(errors="replace").strip().strip("\0")
    except OSError:
        return ""


def _field(information: str, *names: str) -> str:
    for name in names:
        for line in information.splitlines():
            key, _, value = line.partition(":")
            if key.strip() == name and value.strip():
                return value.strip()[:_TEXT]
    return ""


def _cpu(information: str, root: Path) -> str:
    if model := _field(information, "model name"):
        numbers = [_field(information, name) for name in ("cpu family", "model", "stepping")]
        return f"{model} (family {numbers[0]}, model {numbers[1]}, stepping {numbers[2]})" if all(numbers) else model
    implementer, part = _field(information, "CPU implementer"), _field(information, "CPU part")
    board = _text(root / "proc/device-tree/model")
    named = f"implementer {implementer} part {part}" if part else platform.processor()
    return ", ".join(text for text in (board, named) if text)[:_TEXT]


def _isa(information: str) -> tuple[str, ...]:
    return tuple(sorted(ISA_FLAGS & set(_all_flags(information))))


def _all_flags(information: str) -> list[str]:
    for line in information.splitlines():
        key, _, value = line.partition(":")
        if key.strip() in ("flags", "Features"):
            return value.split()
    return []


def _cores() -> int:
    try:
        return len(os.sched_getaffinity(0))
    except (AttributeError, OSError):
        return os.cpu_count() or 1


def _memory(root: Path) -> int:
    value = _field(_text(root / "proc/meminfo", limit=4096), "MemTotal")
    return int(value.split()[0]) * 1024 if value.split()[:1] and value.split()[0].isdigit() else 0


def _accelerators(root: Path) -> tuple[str, ...]:
    found = []
    for gpu in sorted((root / "proc/driver/nvidia/gpus").glob("*/information")):
        found.append(f"nvidia {_field(_text(gpu, limit=4096), 'Model')}")
    if release := _text(root / "etc/nv_tegra_release"):
        found.append(f"jetson {release.splitlines()[0][:80]}")
    found += [f"npu {node.name}" for node in sorted((root / "dev/accel").glob("accel*"))]
    return tuple(sorted(found))


def _runtimes(installed: Callable[[str], str]) -> dict[str, str]:
    found = {}
    for name in RUNTIMES:
        try:
            found[name] = installed(name)
        except PackageNotFoundError:
            continue
    return found
