"""Training on what the rest of the device leaves: one thread of the class SCHED_IDLE, with idle I/O priority.

The kernel runs a SCHED_IDLE thread when no other wants its core, and takes the core away at once when one does
(sched(7)); ``nice`` alone leaves it about a tenth of a busy core. Only training is lowered so: heartbeats and messages
of the same process go on with its nice value. A thread cannot be raised again without privileges, therefore training
has a thread of its own, for as long as the process lives.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
import platform
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

logger = logging.getLogger(__name__)

R = TypeVar("R")

#: Number of the system call ioprio_set by machine; glibc has no wrapper.
_IOPRIO_SET = {"x86_64": 251, "aarch64": 30, "armv7l": 314, "i686": 289, "riscv64": 30}
_IOPRIO_WHO_PROCESS = 1
_IOPRIO_IDLE = 3 << 13


def lower_this_thread() -> None:
    """Give the calling thread what is left of processor and disk; what the system does not allow stays as it is."""
    try:
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    except (OSError, AttributeError) as error:
        logger.info("training runs at the priority of its process: %s", error)
    number = _IOPRIO_SET.get(platform.machine())
    if number is not None:
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None, use_errno=True).syscall(number, _IOPRIO_WHO_PROCESS, 0, _IOPRIO_IDLE)


class IdleThread:
    """Runs one action at a time on a lowered thread; owned by the training process."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="training", initializer=lower_this_thread)

    def run(self, action: Callable[[], R]) -> R:
        """The result of ``action``, or what it raises."""
        return self._pool.submit(action).result()

    def close(self) -> None:
        """Wait for the action under way, which the stop interrupts at its next step, and end the thread."""
        self._pool.shutdown(wait=True, cancel_futures=True)
