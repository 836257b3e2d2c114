"""Makes files by their deltas in a process of its own, with low priority and a deadline.

NumPy, 11 MB of which would stay in control for ever, is loaded and left there; small files are no exception.
"""

from __future__ import annotations

import logging
import os
import subprocess
import time
from collections.abc import Callable, Sequence

from skerry_agent.launch import launch_command
from skerry_agent.update.child_output import last_document, last_line
from skerry_agent.update.delta_work import MACHINE, MADE, REFUSED, DeltaError, DeltaWork

log = logging.getLogger(__name__)
#: Longest time that a file may take: so many seconds, and its bytes at an eightieth of what a desktop's core makes.
START_S = 300.0
BYTES_PER_S = 100_000
#: How long the kernel may take to end a killed process (seconds).
KILL_S = 10.0
#: Bytes of its output that are looked at; it cannot write more than the pipe holds (64 KiB), for nobody reads before
#: it has ended.
OUTPUT_BYTES = 65_536


def apply_command(work: DeltaWork) -> list[str]:
    """The command that makes the file of ``work``."""
    paths = [str(path) for path in (work.delta, work.base, work.temporary)]
    arguments = ["-m", "skerry_agent.update.apply_delta", *paths, work.sha256.hex(), str(work.size)]
    return launch_command(arguments, nice=10)


def allowed_s(work: DeltaWork) -> float:
    """How long the file of ``work`` may take (seconds)."""
    return START_S + work.size / BYTES_PER_S


class SubprocessApplier:
    """See :class:`skerry_agent.update.ports.DeltaApplier`.

    A process that dies (killed, out of memory, a crash), does not start or takes too long is a :class:`DeltaError` like
    a delta that is wrong, so that nothing is tried for ever: the file is then downloaded whole, which needs neither.
    """

    def __init__(
        self,
        *,
        command: Callable[[DeltaWork], Sequence[str]] = apply_command,
        allowed_s: Callable[[DeltaWork], float] = allowed_s,
    ) -> None:
        self._command = command
        self._allowed_s = allowed_s
        self._process: subprocess.Popen[bytes] | None = None
        self._until = 0.0

    @property
    def pid(self) -> int | None:
        """Process id of what is running."""
        return None if self._process is None else self._process.pid

    def start(self, work: DeltaWork) -> None:
        """See :class:`DeltaApplier`."""
        self.stop()
        try:
            # A pipe and no file: what it says of a full disk must not need the disk.
            self._process = subprocess.Popen(
                list(self._command(work)),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                bufsize=0,
                # Ctrl-C in a terminal is for its parent, which then ends it.
                start_new_session=True,
            )
        except OSError as error:
            raise DeltaError(f"no process to apply it in: {error}") from error
        self._until = time.monotonic() + self._allowed_s(work)

    def poll(self) -> bool:
        """See :class:`DeltaApplier`."""
        process = self._process
        if process is None:
            raise RuntimeError("nothing was started")
        status = process.poll()
        if status is None:
            if time.monotonic() <= self._until:
                return False
            self.stop()
            raise DeltaError("applying it took too long")
        text = _said(process)
        self.stop()
        if status == MADE:
            return True
        document = last_document(text) or {}
        if status == REFUSED and "error" in document:
            raise DeltaError(str(document["error"])[:300])
        number, file = document.get("errno"), document.get("file")
        if status == MACHINE and isinstance(number, int):
            raise OSError(number, os.strerror(number), file)
        raise DeltaError(f"the process that applies it ended with status {status}: {last_line(text)}"[:300])

    def stop(self) -> None:
        """See :class:`DeltaApplier`."""
        process, self._process = self._process, None
        if process is None:
            return
        if process.poll() is None:
            process.kill()
            try:
                process.wait(timeout=KILL_S)
            except subprocess.TimeoutExpired:
                log.error("process %d is killed and does not end: a disk that does not answer?", process.pid)
        if process.stdout is not None:
            process.stdout.close()


def _said(process: subprocess.Popen[bytes]) -> str:
    """What an ended process has written; never waits, even if somebody else holds the other end of the pipe."""
    if process.stdout is None:
        return ""
    os.set_blocking(process.stdout.fileno(), False)
    return (process.stdout.read(OUTPUT_BYTES) or b"").decode(errors="replace")
