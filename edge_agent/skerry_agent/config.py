"""Configuration of the agent and where its files lie.

``skerry-agent enroll`` writes ``<data>/agent.json``; every process of the agent reads it.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from skerry_agent.errors import DeviceError


class AgentConfig(BaseModel):
    """Settings of one device. Unknown fields are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    device_id: str = Field(pattern=r"^[a-z0-9][a-z0-9-]{0,62}$", description="Name of the device; also its MQTT user.")
    broker_host: str = Field(description="MQTT broker.")
    broker_port: int = Field(ge=1, le=65535)
    broker_password: str = Field(repr=False, description="Given at enrolment.")
    superlink_address: str = Field(description="host:port of the Flower SuperLink's fleet API.")
    release_keys: list[str] = Field(min_length=1, description="Trusted raw Ed25519 public keys, hexadecimal.")
    labels: dict[str, str] = Field(default_factory=dict, description="Reported to the control plane, for cohorts.")
    host: str = Field(default="127.0.0.1", description="Address that the doors listen on.")
    http_port: int = Field(default=0, ge=0, le=65535, description="Open Inference Protocol over HTTP; 0 picks one.")
    grpc_port: int = Field(default=0, ge=0, le=65535, description="Open Inference Protocol over gRPC; 0 picks one.")
    window_requests: int = Field(default=1000, ge=1, description="Rows after which a drift window closes.")
    window_seconds: float = Field(default=3600.0, gt=0, description="Time after which a drift window closes.")
    health_seconds: float = Field(default=30.0, gt=0, description="Time between health reports.")
    labelled_capacity: int = Field(default=5000, ge=1, description="Labelled samples kept for training.")
    recent_requests: int = Field(default=4096, ge=1, description="Answered requests that a label can still join.")
    outbox_messages: int = Field(default=50_000, ge=1, description="Messages kept while there is no network.")
    outbox_bytes: int = Field(default=64 << 20, ge=1 << 16)
    disk_reserve_bytes: int = Field(default=64 << 20, ge=0, description="Free space that an update leaves alone.")
    reconnect_seconds: float = Field(default=300.0, gt=0, description="Longest wait between two connection attempts.")
    presence_delay_seconds: int = Field(
        default=30, ge=0, description="How long the broker waits before it says that a vanished device is offline."
    )
    training_temperature_c: float = Field(default=85.0, description="Above it the device stays out of campaigns.")
    training_battery_percent: float = Field(
        default=30.0, ge=0, le=100, description="Below it, and not charging, the device stays out of campaigns."
    )
    training_p99_ms: float = Field(
        default=200.0, gt=0, description="With slower answers (99th percentile) the device stays out of campaigns."
    )


@dataclass(frozen=True)
class AgentLayout:
    """Paths below one data directory."""

    root: Path

    @property
    def config(self) -> Path:
        """The written :class:`AgentConfig`."""
        return self.root / "agent.json"

    @property
    def slots(self) -> Path:
        """Folders ``a`` and ``b``."""
        return self.root / "slots"

    @property
    def pointer(self) -> Path:
        """Which slot answers; replaced by rename."""
        return self.root / "slots" / "active.json"

    @property
    def update(self) -> Path:
        """Journal and downloads of the update machine."""
        return self.root / "update"

    @property
    def outbox(self) -> Path:
        """SQLite file of messages that wait for the control plane."""
        return self.root / "outbox.sqlite"

    @property
    def labelled(self) -> Path:
        """SQLite file of labelled samples."""
        return self.root / "labelled.sqlite"

    @property
    def run(self) -> Path:
        """Sockets and small files between the processes of the agent."""
        return self.root / "run"

    @property
    def serving_socket(self) -> Path:
        """Unix socket of the ServingAdmin service."""
        return self.root / "run" / "serving.sock"

    @property
    def serving_file(self) -> Path:
        """JSON ``{"http_port", "grpc_port", "pid"}``, written when the doors are open."""
        return self.root / "run" / "serving.json"

    @property
    def training_file(self) -> Path:
        """JSON ``{"flower_node_id": "<decimal>", "training": bool, "detail": str, "pid": int}``."""
        return self.root / "run" / "training.json"

    @property
    def logs(self) -> Path:
        """One log file per process."""
        return self.root / "logs"


def load_config(layout: AgentLayout) -> AgentConfig:
    """Read the configuration of a data directory.

    Raises:
        DeviceError: It is missing or broken.
    """
    try:
        text = layout.config.read_text()
    except OSError as error:
        raise DeviceError(
            f"{layout.config} cannot be read ({error.strerror})", remedy="enrol the device with `skerry-agent enroll`"
        ) from error
    try:
        return AgentConfig.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"]) or "document"
        raise DeviceError(f"{layout.config}: {field}: {first['msg']}", remedy="correct the file") from error


def default_data_dir() -> Path:
    """``SKERRY_AGENT_DIR``, or ``/var/lib/skerry-agent``."""
    return Path(os.environ.get("SKERRY_AGENT_DIR", "/var/lib/skerry-agent"))
