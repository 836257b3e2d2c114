"""Pauses a training step that is under way: the presence of one file, looked at by the training process."""

from __future__ import annotations

import logging

from skerry_agent.config import AgentLayout
from skerry_agent.policy.eligibility import Conditions, Limits, strain_obstacle

log = logging.getLogger(__name__)
#: Below AgentLayout.run; the training process waits while it exists.
PAUSE_FILE = "pause-training"


class TrainingPause:
    """Owned by the control loop."""

    def __init__(self, layout: AgentLayout) -> None:
        self._path = layout.run / PAUSE_FILE
        self._paused = self._path.exists()

    def follow(self, conditions: Conditions, limits: Limits) -> None:
        """Pause while the device is strained, resume when it is not, by a margin (:meth:`Limits.eased`)."""
        obstacle = strain_obstacle(conditions, limits.eased() if self._paused else limits)
        # The code stands in front, so that a round that comes to nothing can be counted under it.
        reason = "" if obstacle is None else f"{obstacle.code}: {obstacle.reason}"
        if (reason != "") == self._paused:
            return
        try:
            if reason:
                self._path.parent.mkdir(parents=True, exist_ok=True)
                self._path.write_text(reason)
            else:
                self._path.unlink(missing_ok=True)
        except OSError as error:
            log.warning("training cannot be %s: %s", "paused" if reason else "resumed", error)
            return
        self._paused = reason != ""
        log.info("training %s", f"paused: {reason}" if reason else "may go on")
