"""What the update machine lets the rest of the agent see of itself."""

from __future__ import annotations

from dataclasses import dataclass

from skerry_agent.policy.reporting import WindowPolicy
from skerry_agent.update.ports import DownloadProgress
from skerry_agent.update.update_machine import State


@dataclass(frozen=True)
class UpdateSnapshot:
    """What the device says about its update.

    Attributes:
        state: State of the machine.
        detail: What it waits for, or the error.
        desired_sequence: Newest accepted desired state.
        target_release: Release that is, or was last, worked on.
        rollout_id: Rollout that asked for it.
        progress: Of the download.
        health_period_ms: Wanted by the control plane; 0 if it did not say.
        windows: Drift windows that the control plane wants.
    """

    state: State
    detail: str
    desired_sequence: int
    target_release: str
    rollout_id: str
    progress: DownloadProgress
    health_period_ms: int
    windows: WindowPolicy
