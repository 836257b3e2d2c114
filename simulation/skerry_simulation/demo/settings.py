"""How large the demo is: rows, windows, rounds, deadlines. Pure data."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from skerry_simulation.errors import ScenarioError


@dataclass(frozen=True)
class DemoSettings:
    """What ``skerry-sim demo`` was asked for.

    Attributes:
        task: "digits", "har", or any registered task with a drift.
        devices: Number of agents, 2 to 12.
        folder: Where everything of the run is kept.
        report: Folder of the HTML report.
        keep: Leave every process running at the end.
        seed: Of the traffic that devices see.
        drifted_fraction: Share of the devices whose data drift.
        window_rows: Rows of a drift window.
        baseline_windows: Windows that every device reports before the drift.
        drift_windows: Windows within which the drift must be noticed.
        offline_requests: Requests that every device answers while nothing else runs.
        federated_rounds: Rounds of each campaign; 0 takes the task's default.
        canary_percent: Share of the fleet that gets a release first.
        probation_ms: How long a device watches a new release.
    """

    task: str
    devices: int
    folder: Path
    report: Path
    keep: bool = False
    seed: int = 7
    drifted_fraction: float = 0.4
    window_rows: int = 300
    baseline_windows: int = 2
    drift_windows: int = 4
    offline_requests: int = 2000
    federated_rounds: int = 0
    canary_percent: int = 10
    probation_ms: int = 1500

    def __post_init__(self) -> None:
        if not 2 <= self.devices <= 12:
            raise ScenarioError("--devices", expected="2 to 12", got=self.devices)
        if self.federated_rounds < 0:
            raise ScenarioError("--rounds", expected="0 or more", got=self.federated_rounds)

    @property
    def drifted_devices(self) -> int:
        """Number of devices whose data drift; at least one, never all."""
        return min(self.devices - 1, max(1, round(self.devices * self.drifted_fraction)))

    @property
    def server_folder(self) -> Path:
        """Data directory of the control plane."""
        return self.folder / "server"

    def agent_folder(self, device_id: str) -> Path:
        """Data directory of one agent."""
        return self.folder / "agents" / device_id
