"""Proves a slot in a process of its own, with low priority and a deadline: a bad artifact can take only that down."""

from __future__ import annotations

import logging
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO

from skerry_agent.launch import launch_command
from skerry_agent.update.child_output import last_document, last_line
from skerry_agent.update.ports import ProofResult
from skerry_agent.update.slots import SlotName

log = logging.getLogger(__name__)
DEADLINE_S = 300.0
#: Bytes of its output that are looked at.
OUTPUT_BYTES = 65_536
REFUSED = 3


def prove_command(root: Path, slot: SlotName) -> list[str]:
    """The command that proves ``slot`` of the data directory ``root``."""
    return launch_command(["-m", "skerry_agent.engine.prove", str(root), slot], nice=10)


class SubprocessProver:
    """See :class:`skerry_agent.update.ports.Prover`.

    The command prints one JSON line; exit status 0 means proved, 3 that the artifact is refused, anything else that
    the proof itself died.
    """

    def __init__(
        self,
        root: Path,
        *,
        command: Callable[[Path, SlotName], Sequence[str]] = prove_command,
        deadline_s: float = DEADLINE_S,
    ) -> None:
        self._root = root
        self._command = command
        self._deadline_s = deadline_s
        self._process: subprocess.Popen[bytes] | None = None
        self._output: IO[bytes] | None = None
        self._started = 0.0

    def start(self, slot: SlotName) -> None:
        """See :class:`Prover`."""
        self.stop()
        self._output = tempfile.TemporaryFile()  # noqa: SIM115 (lives as long as the process)
        self._process = subprocess.Popen(
            list(self._command(self._root, slot)),
            stdin=subprocess.DEVNULL,
            stdout=self._output,
            stderr=self._output,
        )
        self._started = time.monotonic()

    def poll(self) -> ProofResult | None:
        """See :class:`Prover`."""
        process = self._process
        if process is None:
            return ProofResult(False, "no proof is running")
        status = process.poll()
        if status is None:
            if time.monotonic() - self._started <= self._deadline_s:
                return None
            self.stop()
            return ProofResult(False, f"the proof took more than {self._deadline_s:.0f} s")
        text = self._read()
        self.stop()
        document = last_document(text)
        if status == 0 and document is not None:
            return ProofResult(True, f"variant {document.get('variant', '?')}, {document.get('latency_us', '?')} us")
        reason = str((document or {}).get("error") or (document or {}).get("reason") or last_line(text))
        prefix = "" if status == REFUSED else f"the proof ended with status {status}: "
        return ProofResult(False, f"{prefix}{reason}"[:300])

    def stop(self) -> None:
        """See :class:`Prover`."""
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
        if self._process is not None:
            self._process.wait(timeout=10)
        if self._output is not None:
            self._output.close()
        self._process, self._output = None, None

    def _read(self) -> str:
        if self._output is None:
            return ""
        size = self._output.seek(0, 2)
        self._output.seek(max(0, size - OUTPUT_BYTES))
        return self._output.read().decode(errors="replace")
