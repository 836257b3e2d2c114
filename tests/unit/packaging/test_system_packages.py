"""What `make install` does about Debian packages, on a Debian whose tools only note what they were asked for."""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[3] / "scripts" / "install-system-packages.sh"
NEEDED_AND_OPTIONAL = ("mosquitto", "--optional", "libnghttp2-dev")


@dataclass
class Machine:
    """One person at one machine."""

    folder: Path
    installed: list[str] = field(default_factory=list)
    sudo: str | None = "exit 0"  # what sudo does; None: there is no sudo

    def install(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        self.folder.mkdir(exist_ok=True)
        for name in ("sh", "grep"):
            found = shutil.which(name)
            assert found
            (self.folder / name).symlink_to(found)
        self._tool("id", "echo 1000")
        known = "|".join(self.installed) or "-"
        self._tool("dpkg-query", f'case "$3" in {known}) echo installed;; *) exit 1;; esac')
        if self.sudo is not None:
            self._tool("sudo", f'echo "$@" >>{self.folder}/asked; {self.sudo}')
        return subprocess.run(
            [SCRIPT, *arguments], env={"PATH": str(self.folder)},
            capture_output=True, text=True, timeout=30, check=False,
        )  # fmt: skip

    def _tool(self, name: str, does: str) -> None:
        (self.folder / name).write_text(f"#!{os.path.realpath('/bin/sh')}\n{does}\n")
        (self.folder / name).chmod(0o755)

    @property
    def asked_apt(self) -> list[str]:
        """The packages of each call of apt-get install."""
        asked = self.folder / "asked"
        lines = asked.read_text().splitlines() if asked.exists() else []
        flags = "apt-get install -y -qq --no-install-recommends "
        return [line.removeprefix(flags) for line in lines if line.startswith(flags)]


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path / "bin")


def test_what_is_installed_is_left_alone(machine: Machine) -> None:
    machine.installed = ["mosquitto", "libnghttp2-dev"]
    done = machine.install(*NEEDED_AND_OPTIONAL)
    assert (done.returncode, done.stderr) == (0, "")
    assert not (machine.folder / "asked").exists()


def test_both_kinds_are_installed(machine: Machine) -> None:
    done = machine.install(*NEEDED_AND_OPTIONAL)
    assert (done.returncode, done.stderr) == (0, "")
    assert machine.asked_apt == ["mosquitto", "libnghttp2-dev"]


def test_without_root_and_sudo_what_is_needed_ends_it(machine: Machine) -> None:
    machine.sudo = None
    done = machine.install(*NEEDED_AND_OPTIONAL)
    assert done.returncode == 3
    assert "needed: mosquitto." in done.stderr
    assert "apt-get install mosquitto libnghttp2-dev" in done.stderr


@pytest.mark.parametrize("sudo", [None, "exit 1"])
def test_what_is_optional_ends_nothing(machine: Machine, sudo: str | None) -> None:
    machine.installed = ["mosquitto"]
    machine.sudo = sudo
    done = machine.install(*NEEDED_AND_OPTIONAL)
    assert done.returncode == 0
    assert "apt-get install libnghttp2-dev" in done.stderr
    assert "mosquitto" not in done.stderr


def test_an_archive_without_the_optional_package_ends_nothing(machine: Machine) -> None:
    machine.sudo = 'case "$*" in *libnghttp2-dev) exit 100;; esac'
    done = machine.install(*NEEDED_AND_OPTIONAL)
    assert done.returncode == 0
    assert "Going on without libnghttp2-dev" in done.stderr
    assert machine.asked_apt == ["mosquitto", "libnghttp2-dev"]


def test_an_archive_without_what_is_needed_ends_it(machine: Machine) -> None:
    machine.sudo = 'case "$*" in *install*mosquitto) exit 100;; esac'
    done = machine.install(*NEEDED_AND_OPTIONAL)
    assert done.returncode == 100
    assert "Going on" not in done.stderr
    assert machine.asked_apt == ["mosquitto"]
