"""Appliers that misbehave: real processes, each with something that goes wrong in it."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from skerry_agent.launch import launch_command
from skerry_agent.update.applier import SubprocessApplier
from skerry_agent.update.delta_work import DeltaWork

#: Writes its first piece, says so by a file and does not go on.
_STUCK = """
import pathlib, signal, sys
from skerry_agent.files import Disk
from skerry_agent.update.apply_delta import main

class StuckDisk(Disk):
    def write(self, descriptor, data, offset):
        super().write(descriptor, data, offset)
        pathlib.Path(sys.argv[1]).touch()
        signal.pause()

sys.exit(main(sys.argv[2:], StuckDisk()))
"""


def arguments(work: DeltaWork) -> list[str]:
    """What the process that applies a delta gets."""
    return [str(work.delta), str(work.base), str(work.temporary), work.sha256.hex(), str(work.size)]


class Stuck:
    """Makes appliers whose process stands still after its first piece.

    Attributes:
        written: Is there as soon as a piece is written.
        made: What was made, in order.
    """

    def __init__(self, written: Path) -> None:
        self.written = written
        self.made: list[SubprocessApplier] = []

    def applier(self, *, allowed_s: float = 60.0) -> SubprocessApplier:
        """Makes one; it may take ``allowed_s`` (seconds)."""
        applier = SubprocessApplier(
            command=lambda work: launch_command(["-c", _STUCK, str(self.written), *arguments(work)]),
            allowed_s=lambda work: allowed_s,
        )
        self.made.append(applier)
        return applier

    def kill(self) -> None:
        """Kill every process that runs, as the kernel does when memory is short."""
        for applier in self.made:
            if applier.pid is not None:
                os.kill(applier.pid, signal.SIGKILL)
