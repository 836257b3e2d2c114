"""Sets the serving process apart from other work: real-time class, cores of its own, memory that stays resident.

Every step needs a permission that a device may not give (``LimitRTPRIO``, ``LimitMEMLOCK`` and ``LimitNICE`` of
systemd.exec(5), or capabilities). One that is refused changes nothing else; what was done and what was not is said in
the status, so that nobody believes in an isolation that is not there.

A thread of a real-time class keeps its core until it sleeps. So that one that never sleeps cannot hang the device, the
kernel ends the process when a thread computes for :data:`RUNAWAY_S` without a pause (``RLIMIT_RTTIME``, getrlimit(2)),
and the supervisor starts it anew; besides, Linux leaves 5 % of every second to other classes (sched_rt_runtime_us,
sched(7)). Threads that build releases leave the class: :func:`leave_realtime`.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
import resource
from collections.abc import Collection
from typing import Protocol

from skerry_agent.config import AgentConfig
from skerry_agent.policy.cores import CorePlan, plan_cores

log = logging.getLogger(__name__)

#: Priority of the doors within the class, 1 to 99: above nothing but what has none.
PRIORITY = 5
#: Niceness where the class is not permitted, and of threads that build releases.
NICE_SERVING, NICE_BUILDING = -10, 5
#: A real-time thread that computes so long without a pause is ended (seconds).
RUNAWAY_S = 5
#: mlockall(2).
_MCL_CURRENT, _MCL_FUTURE, _MCL_ONFAULT = 1, 2, 4


class Kernel(Protocol):
    """The system calls; each raises OSError where it is not permitted."""

    def set_cores(self, cores: Collection[int]) -> None:
        """sched_setaffinity(2)."""
        ...

    def set_realtime(self, priority: int) -> None:
        """SCHED_RR for the calling thread and those that it starts."""
        ...

    def set_nice(self, nice: int) -> None:
        """setpriority(2) of the calling thread."""
        ...

    def limit_realtime(self, seconds: int) -> None:
        """RLIMIT_RTTIME."""
        ...

    def lock_memory(self) -> None:
        """Keep every page that is resident, now or later."""
        ...


class LinuxKernel:
    """See :class:`Kernel`."""

    def set_cores(self, cores: Collection[int]) -> None:
        """See :class:`Kernel`."""
        os.sched_setaffinity(0, cores)

    def set_realtime(self, priority: int) -> None:
        """See :class:`Kernel`.

        Round robin: two doors of the same priority share a core. Not SCHED_RESET_ON_FORK, which would keep threads out
        as well; serving starts no processes.
        """
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(priority))

    def set_nice(self, nice: int) -> None:
        """See :class:`Kernel`."""
        os.setpriority(os.PRIO_PROCESS, 0, nice)

    def limit_realtime(self, seconds: int) -> None:
        """See :class:`Kernel`."""
        hard = resource.getrlimit(resource.RLIMIT_RTTIME)[1]
        wanted = seconds * 1_000_000
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_RTTIME, (soft, hard))

    def lock_memory(self) -> None:
        """See :class:`Kernel`. A finite limit would make allocations fail later, so it is as good as none."""
        limit = resource.getrlimit(resource.RLIMIT_MEMLOCK)[0]
        if limit != resource.RLIM_INFINITY and os.geteuid() != 0:
            raise PermissionError(1, f"only {limit >> 10} KB may be locked")
        flags = _MCL_CURRENT | _MCL_FUTURE | _MCL_ONFAULT
        library = ctypes.CDLL(None, use_errno=True)
        if library.mlockall(flags) != 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))


def pin(plan: CorePlan, kernel: Kernel | None = None) -> str:
    """Give the calling thread, and every thread that it starts, its cores; returns what is now so, for people."""
    note = f" ({plan.note})" if plan.note else ""
    if plan.serving == plan.others:
        return f"cores shared with training: there are not enough{note}"
    numbers = ", ".join(map(str, sorted(plan.serving)))
    try:
        (kernel or LinuxKernel()).set_cores(plan.serving)
    except OSError as error:
        return f"cores shared with training: {error.strerror}{note}"
    return f"core {numbers} of its own{note}"


def keep_off_serving(config: AgentConfig, kernel: Kernel | None = None) -> str:
    """Leave the cores of serving to it; for the other processes of the agent. Returns what is now so, for people."""
    plan = plan_cores(os.sched_getaffinity(0), config.serving_cores)
    if config.isolation == "off" or plan.serving == plan.others:
        return "cores shared with serving"
    try:
        (kernel or LinuxKernel()).set_cores(plan.others)
    except OSError as error:
        return f"cores shared with serving: {error.strerror}"
    return f"runs beside the cores of serving, {', '.join(map(str, sorted(plan.serving)))}"


def isolate_serving(kernel: Kernel | None = None) -> list[str]:
    """Set the calling thread, and every thread that it starts from now on, apart.

    Returns:
        What is now so, for people, one sentence a step.
    """
    system = kernel or LinuxKernel()
    return [_scheduling(system), _memory(system)]


def leave_realtime() -> None:
    """Take the calling thread back into the normal class, a little below others."""
    with contextlib.suppress(OSError, AttributeError):
        if os.sched_getscheduler(0) != os.SCHED_OTHER:
            os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, 0, NICE_BUILDING)


def _scheduling(kernel: Kernel) -> str:
    try:
        # The limit first: without it a runaway thread would keep its core.
        kernel.limit_realtime(RUNAWAY_S)
        kernel.set_realtime(PRIORITY)
    except (OSError, ValueError, AttributeError) as refusal:
        try:
            kernel.set_nice(NICE_SERVING)
        except OSError:
            return f"scheduled like any process: SCHED_RR {_why(refusal)}, niceness {NICE_SERVING} neither"
        return f"niceness {NICE_SERVING}: SCHED_RR {_why(refusal)}"
    return f"SCHED_RR priority {PRIORITY}, ended after {RUNAWAY_S} s without a pause"


def _memory(kernel: Kernel) -> str:
    try:
        kernel.lock_memory()
    except (OSError, AttributeError) as error:
        return f"memory may be swapped: {_why(error)}"
    return "memory stays resident"


def _why(error: Exception) -> str:
    return f"is not permitted ({error.strerror})" if isinstance(error, OSError) else "is not there"
