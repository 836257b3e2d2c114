"""One child process: started so that it can never outlive its supervisor, asked for its readiness, stopped in time.

Each child leads a session of its own (a Ctrl-C in the terminal reaches the supervisor alone, which then stops them in
order) and gets SIGKILL from the kernel when the thread that started it ends (``PR_SET_PDEATHSIG``, prctl(2)): a
supervisor that is killed takes the whole tree with it, whatever state the tree is in.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
import signal
import socket
import ssl
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from skerry_server.errors import PlatformError

log = logging.getLogger(__name__)

#: A log file that is larger is moved to ``<name>.log.1`` (bytes).
LOG_BYTES = 16 << 20
_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None, use_errno=True)

#: Whether a child can be used; called with its process identifier.
Ready = Callable[[int], bool]


@dataclass(frozen=True)
class ChildSpec:
    """What to run.

    Attributes:
        name: Unique in the tree; also the name of the log file.
        command: Program and arguments.
        ready: Its readiness check, which must return within a few seconds.
        environment: All of its environment variables.
        stop_s: How long it may take to end after SIGTERM, seconds.
    """

    name: str
    command: Sequence[str]
    ready: Ready
    environment: Mapping[str, str] = field(repr=False)
    stop_s: float = 10.0


class Child:
    """A running child."""

    def __init__(self, spec: ChildSpec, log_path: Path) -> None:
        """Start it, with both of its output streams appended to ``log_path``.

        Raises:
            PlatformError: The program cannot be run.
        """
        self.spec = spec
        self.log_path = log_path
        rotate(log_path)
        supervisor = os.getpid()
        with log_path.open("ab") as stream:
            try:
                self._process = subprocess.Popen(
                    list(spec.command),
                    stdin=subprocess.DEVNULL,
                    stdout=stream,
                    stderr=subprocess.STDOUT,
                    env=dict(spec.environment),
                    start_new_session=True,
                    preexec_fn=lambda: _die_with(supervisor),
                )
            except OSError as error:
                raise PlatformError(
                    f"{spec.name}: {spec.command[0]} cannot be run ({error.strerror})", remedy="check the installation"
                ) from error
        self.started = time.monotonic()

    @property
    def pid(self) -> int:
        """Its process identifier, also that of its session and process group."""
        return self._process.pid

    def exit_status(self) -> str | None:
        """How it ended ("status 1", "signal SIGKILL"); ``None`` while it runs."""
        code = self._process.poll()
        if code is None:
            return None
        if code >= 0:
            return f"status {code}"
        try:
            return f"signal {signal.Signals(-code).name}"
        except ValueError:
            return f"signal {-code}"

    def is_ready(self) -> bool:
        """Whether it answers its readiness check."""
        return self.exit_status() is None and self.spec.ready(self.pid)

    def terminate(self) -> None:
        """Ask it to end."""
        if self._process.poll() is None:
            self._process.terminate()

    def wait(self, deadline_s: float) -> bool:
        """Wait for its end; returns whether it came within ``deadline_s`` seconds."""
        try:
            self._process.wait(deadline_s)
        except subprocess.TimeoutExpired:
            return False
        return True

    def kill_group(self) -> None:
        """End it and whatever it left in its process group."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)
        self._process.wait()


def tcp_ready(host: str, port: int) -> Ready:
    """Ready when a connection is accepted."""

    def check(_pid: int) -> bool:
        try:
            socket.create_connection((host, port), timeout=2.0).close()
        except OSError:
            return False
        return True

    return check


def http_ready(url: str, *, authority: Path | None = None) -> Ready:
    """Ready when a GET of ``url`` is answered with a status below 300.

    Args:
        url: http:// or https://.
        authority: For https, the certificate of the authority that vouches for the server; read at each check.

    Raises:
        ValueError: Another scheme, or https without an authority.
    """
    if not url.startswith("https://" if authority else "http://"):
        raise ValueError(f"expected an http:// URL, or https:// with an authority, got {url!r}")

    def check(_pid: int) -> bool:
        try:
            context = ssl.create_default_context(cafile=authority) if authority else None
            with urllib.request.urlopen(url, timeout=5.0, context=context) as answer:  # noqa: S310 - it was checked
                return int(answer.status) < 300
        except (OSError, urllib.error.URLError, ValueError):
            return False

    return check


def rotate(path: Path) -> None:
    """Keep one older generation of a log that has become large.

    Copying and truncating, not renaming: the child that writes it keeps its descriptor, opened for appending.
    """
    try:
        if path.stat().st_size <= LOG_BYTES:
            return
        data = path.read_bytes()
        path.with_name(f"{path.name}.1").write_bytes(data)
        os.truncate(path, 0)
    except FileNotFoundError:
        return
    except OSError as error:
        log.warning("%s cannot be rotated: %s", path, error)


def last_lines(path: Path, count: int = 12) -> str:
    """The end of a log, for an error message; empty if there is none."""
    try:
        with path.open("rb") as stream:
            stream.seek(max(0, path.stat().st_size - 8192))
            return "\n".join(stream.read().decode(errors="replace").splitlines()[-count:])
    except OSError:
        return ""


def _die_with(supervisor: int) -> None:
    """Runs in the child between fork and exec."""
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != supervisor:  # it died before the call
        os._exit(1)
