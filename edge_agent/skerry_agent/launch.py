"""Becomes another process that dies with its parent: ``python -m skerry_agent.launch [--nice N] PYTHON-ARGUMENTS``.

``PR_SET_PDEATHSIG`` and the priority are set here and survive ``execv``, so that no code runs between fork and exec in
a parent that has threads, and ``ps`` shows the command that does the work.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
from collections.abc import Sequence

_PR_SET_PDEATHSIG = 1


def launch_command(arguments: Sequence[str], *, nice: int = 0) -> list[str]:
    """Command line that starts this Python with ``arguments``, bound to the life of the process that starts it.

    Args:
        arguments: Of the interpreter, for example ``["-m", "package", "argument"]``.
        nice: Added to the niceness; at 19 the scheduling class is SCHED_IDLE too, where that is permitted.
    """
    return [sys.executable, "-m", "skerry_agent.launch", str(os.getpid()), str(nice), *arguments]


def _become(parent: int, nice: int, arguments: list[str]) -> None:
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        sys.exit("the process that asked for this one is gone")
    if nice:
        os.nice(nice)
    if nice >= 19:
        with contextlib.suppress(OSError):
            os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    os.execv(sys.executable, [sys.executable, *arguments])  # noqa: S606 (no shell is the point)


if __name__ == "__main__":
    _become(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3:])
