"""Setting serving apart: which cores, and what is said when a permission is missing."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Collection

import pytest

from skerry_agent.isolation import LinuxKernel, isolate_serving, leave_realtime, pin
from skerry_agent.memory import forget_code, give_memory_back
from skerry_agent.policy.cores import CorePlan, plan_cores

OWN = CorePlan(frozenset({1}), frozenset({0}))


class FakeKernel:
    """Refuses what it is told to, with the error of the real call; keeps the calls that it took."""

    def __init__(self, *refused: str) -> None:
        self.refused = refused
        self.calls: list[tuple[str, object]] = []

    def _call(self, name: str, argument: object) -> None:
        if name in self.refused:
            raise PermissionError(1, "Operation not permitted")
        self.calls.append((name, argument))

    def set_cores(self, cores: Collection[int]) -> None:
        self._call("cores", sorted(cores))

    def set_realtime(self, priority: int) -> None:
        self._call("realtime", priority)

    def set_nice(self, nice: int) -> None:
        self._call("nice", nice)

    def limit_realtime(self, seconds: int) -> None:
        self._call("limit", seconds)

    def lock_memory(self) -> None:
        self._call("lock", None)


def test_everything_is_permitted_and_the_limit_comes_before_the_class() -> None:
    kernel = FakeKernel()
    assert [pin(OWN, kernel), *isolate_serving(kernel)] == [
        "core 1 of its own",
        "SCHED_RR priority 5, ended after 5 s without a pause",
        "memory stays resident",
    ]
    assert kernel.calls == [("cores", [1]), ("limit", 5), ("realtime", 5), ("lock", None)]


@pytest.mark.parametrize(
    ("refused", "says"),
    [
        (("realtime",), "niceness -10: SCHED_RR is not permitted (Operation not permitted)"),
        # Without its limit the class is not entered: a runaway thread would keep its core.
        (("limit",), "niceness -10: SCHED_RR is not permitted (Operation not permitted)"),
        (
            ("realtime", "nice"),
            "scheduled like any process: SCHED_RR is not permitted (Operation not permitted), niceness -10 neither",
        ),
        (("lock",), "memory may be swapped: is not permitted (Operation not permitted)"),
    ],
)
def test_a_refusal_is_said_and_changes_nothing_else(refused: tuple[str, ...], says: str) -> None:
    kernel = FakeKernel(*refused)
    steps = isolate_serving(kernel)
    assert says in steps
    assert ("lock", None) in kernel.calls or "lock" in refused
    if "limit" in refused:
        assert ("realtime", 5) not in kernel.calls


def test_cores_that_are_refused_or_too_few_are_shared() -> None:
    assert pin(OWN, FakeKernel("cores")) == "cores shared with training: Operation not permitted"
    kernel = FakeKernel()
    assert pin(plan_cores({0}, "auto"), kernel) == "cores shared with training: there are not enough"
    assert kernel.calls == []


@pytest.mark.parametrize(
    ("allowed", "setting", "serving", "others"),
    [
        ({0}, "auto", {0}, {0}),
        ({0, 1}, "auto", {1}, {0}),
        ({2, 5, 9}, "auto", {9}, {2, 5}),  # what a container leaves
        (set(range(8)), "auto", {6, 7}, set(range(6))),
        ({0, 1, 2, 3}, "1,2", {1, 2}, {0, 3}),
        ({0, 1}, "0,1", {0, 1}, {0, 1}),  # nothing is left for others
        ({0, 1}, "1,7", {1}, {0}),
        ({0, 1}, "7", {1}, {0}),
    ],
)
def test_plans_of_cores(allowed: set[int], setting: str, serving: set[int], others: set[int]) -> None:
    plan = plan_cores(allowed, setting)
    assert (set(plan.serving), set(plan.others)) == (serving, others)
    assert plan.note == ("cores 7 of serving_cores are not there" if "7" in setting else "")


def test_a_thread_that_builds_leaves_the_class_and_no_other_does() -> None:
    seen: list[tuple[int, int]] = []

    def build() -> None:
        leave_realtime()
        seen.append((os.sched_getscheduler(0), os.getpriority(os.PRIO_PROCESS, threading.get_native_id())))

    before = os.getpriority(os.PRIO_PROCESS, threading.get_native_id())
    thread = threading.Thread(target=build)
    thread.start()
    thread.join()
    assert seen == [(os.SCHED_OTHER, max(before, 5))]
    assert os.getpriority(os.PRIO_PROCESS, threading.get_native_id()) == before


def test_threads_of_a_real_time_thread_are_real_time_until_they_leave() -> None:
    """On the real kernel, where it is permitted: what a door's threads get, and what a building thread gives up."""
    seen: list[int] = []

    def door() -> None:
        seen.append(os.sched_getscheduler(0))
        leave_realtime()
        seen.append(os.sched_getscheduler(0))

    def serve() -> None:
        try:
            LinuxKernel().set_realtime(1)
        except OSError:
            return
        thread = threading.Thread(target=door)
        thread.start()
        thread.join()

    main = threading.Thread(target=serve)
    main.start()
    main.join()
    if not seen:
        pytest.skip("SCHED_RR is not permitted here")
    assert seen == [os.SCHED_RR, os.SCHED_OTHER]


def test_code_that_was_forgotten_comes_back() -> None:
    give_memory_back()
    forget_code()
    assert sum(range(1000)) == 499_500
    assert len(os.urandom(8)) == 8


def test_locked_code_is_forgotten_too_and_stays_locked() -> None:
    """In a process of its own: pages of its libraries go, what comes back is locked."""
    program = """
import re, sys
from pathlib import Path
import numpy
from skerry_agent.isolation import LinuxKernel
from skerry_agent.memory import forget_code

def kilobytes(name):
    return int(re.search(name + r":\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])

def code_flags():
    text = Path("/proc/self/smaps").read_text()
    return re.findall(r" r-xp [^\\n]* /[^\\n]*\\n(?:\\w+:[^\\n]*\\n)*?VmFlags: ([^\\n]*)", text)

numpy.linalg.inv(numpy.eye(50))
try:
    LinuxKernel().lock_memory()
except OSError:
    sys.exit(77)
before, locked = kilobytes("RssFile"), kilobytes("VmLck")
forget_code()
after = kilobytes("RssFile")
assert after < before - 1000, (before, after)
numpy.linalg.inv(numpy.eye(50))
assert locked > 10_000
assert abs(kilobytes("VmLck") - locked) < 1000, (locked, kilobytes("VmLck"))
flags = code_flags()
assert len(flags) > 5
assert all(" lo" in each for each in flags), flags
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    if done.returncode == 77:
        pytest.skip("memory may not be locked here")
    assert done.returncode == 0, done.stderr
