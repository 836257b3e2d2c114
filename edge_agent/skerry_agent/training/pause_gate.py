"""When a training step must wait, asked before every one of them.

Reasons begin with a code of :data:`skerry_contract.campaign.STAY_OUT` where there is one: "hot: too hot: 95 °C, ...".
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from skerry_agent.training.trainer import ShouldPause, TrainingInterruptedError

#: Longest reason that is read from the policy's file (characters).
WHY_CHARACTERS = 200


class PauseGate:
    """Says when training must wait: while the policy's file exists, until the deadline, never after a stop."""

    def __init__(
        self, pause_file: Path, stopping: Callable[[], bool], *, inference_first: Callable[[], bool] = lambda: False
    ) -> None:
        """Take over who is asked.

        Args:
            pause_file: Made and removed by the policy of the control process.
            stopping: Turns true when the process must end.
            inference_first: Whether answers suffer now, asked before every step.
        """
        self._pause_file = pause_file
        self._stopping = stopping
        self._inference_first = inference_first
        self._waited = ""

    def held(self) -> str:
        """Why the policy makes training wait now, by its code; empty if it does not, or gives no reason."""
        return self._written()

    def until(self, deadline: float) -> ShouldPause:
        """The question that a trainer asks before each step; ``deadline`` is a time of ``time.monotonic``."""

        self._waited = ""

        def should_pause() -> bool:
            if self._stopping():
                raise TrainingInterruptedError("the agent is stopping")
            if time.monotonic() > deadline:
                why = f"{self._waited}; " if self._waited else ""
                raise TrainingInterruptedError(f"{why}the deadline of the round has passed")
            if self._inference_first():
                self._waited = "slow-answers: answers were slow beside training"
                return True
            if self._pause_file.exists():
                self._waited = self._why()
                return True
            return False

        return should_pause

    def _why(self) -> str:
        return self._written() or self._waited or "the device's policy"

    def _written(self) -> str:
        """What the policy wrote into its file; empty without one."""
        try:
            with self._pause_file.open(encoding="utf-8", errors="replace") as file:
                return file.read(WHY_CHARACTERS).strip()
        except OSError:
            return ""
