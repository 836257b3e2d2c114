"""Whether the network of the default route is paid by the byte.

Asked are, in this order: the owner's setting; the kernel, which knows a mobile modem by its device type; and
NetworkManager, if its ``nmcli`` is there. Whatever cannot be found out means: not metered. Nothing here waits, for
``nmcli`` runs beside.
"""

from __future__ import annotations

import contextlib
import logging
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

log = logging.getLogger(__name__)
#: How often it is asked, and how long an answer may take (seconds).
LOOK_S = 60.0
ANSWER_S = 10.0
SETTINGS = ("auto", "yes", "no")


def network_obstacle(*, metered: bool, allowed: bool, limit_bytes: int, transfer_bytes: int) -> str:
    """Why an update may not be downloaded over the present network; empty if it may. Pure.

    Args:
        metered: Whether the network is paid by the byte.
        allowed: Whether updates may use such a network at all.
        limit_bytes: Most bytes of one update over such a network; 0: no limit.
        transfer_bytes: What is left to download.
    """
    if not metered or transfer_bytes <= 0:
        return ""
    if not allowed:
        return "waits for a network that is not metered (updates_on_metered is false)"
    if limit_bytes and transfer_bytes > limit_bytes:
        return (
            f"waits for a network that is not metered: {transfer_bytes} bytes to download,"
            f" metered_limit_bytes is {limit_bytes}"
        )
    return ""


def default_interface(proc: Path) -> str:
    """Interface of the IPv4 default route by ``/proc/net/route``; empty if there is none."""
    best: tuple[int, str] | None = None
    with contextlib.suppress(OSError, ValueError, IndexError):
        for line in (proc / "net" / "route").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[1] == "00000000" and fields[7] == "00000000":
                route = (int(fields[6]), fields[0])
                best = route if best is None else min(best, route)
    return "" if best is None else best[1]


def is_mobile(interface: str, sys: Path) -> bool:
    """Whether the kernel calls an interface a mobile modem (``DEVTYPE=wwan``)."""
    try:
        return "DEVTYPE=wwan" in (sys / "class" / "net" / interface / "uevent").read_text().splitlines()
    except OSError:
        return False


def says_metered(answer: str) -> bool:
    """Reads ``nmcli -g GENERAL.METERED``: "yes", "no", "yes (guessed)", "no (guessed)", "unknown"."""
    return answer.strip().lower().startswith("yes")


class MeteredNetwork:
    """Says whether the network is metered; owned by the control loop."""

    def __init__(
        self,
        setting: str,
        *,
        nmcli: str | None = None,
        proc: Path = Path("/proc"),
        sys: Path = Path("/sys"),
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """``setting`` is one of :data:`SETTINGS`; ``nmcli`` is found in the path unless it is given."""
        self._setting = setting
        self._nmcli = (shutil.which("nmcli") if setting == "auto" else None) if nmcli is None else nmcli
        self._proc = proc
        self._sys = sys
        self._monotonic = monotonic
        self._look_at = float("-inf")
        self._mobile = False
        self._managed = False
        self._asking: subprocess.Popen[str] | None = None
        self._asked_at = 0.0

    @property
    def metered(self) -> bool:
        """By the newest answer."""
        if self._setting != "auto":
            return self._setting == "yes"
        self._hear()
        now = self._monotonic()
        if now >= self._look_at and self._asking is None:
            self._look_at = now + LOOK_S
            interface = default_interface(self._proc)
            self._mobile = bool(interface) and is_mobile(interface, self._sys)
            self._managed = self._managed and bool(interface)
            if interface and self._nmcli and not self._mobile:
                self._ask(self._nmcli, interface)
        return self._mobile or self._managed

    def close(self) -> None:
        """Give up an open question."""
        if self._asking is not None:
            self._asking.kill()
            self._asking.communicate()
            self._asking = None

    def _ask(self, nmcli: str, interface: str) -> None:
        try:
            self._asking = subprocess.Popen(
                [nmcli, "-g", "GENERAL.METERED", "device", "show", interface],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
            )
        except OSError as error:
            log.warning("%s cannot be asked: %s", nmcli, error.strerror)
            self._nmcli = ""
        self._asked_at = self._monotonic()

    def _hear(self) -> None:
        process = self._asking
        if process is None:
            return
        if process.poll() is None:
            if self._monotonic() - self._asked_at > ANSWER_S:
                self.close()
            return
        answer, _ = process.communicate()
        self._asking = None
        self._managed = process.returncode == 0 and says_metered(answer)
