"""Configuration of the control plane and where its files lie.

``skerry up`` writes ``<data>/server.json`` and every process of the tree reads it, so that one setting points a part
at its big brother. Ports are chosen once, at the first start, and kept: devices remember them.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from skerry_server.errors import PlatformError


class ServerConfig(BaseModel):
    """Settings of one control plane. Unknown fields are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    host: str = Field(default="127.0.0.1", description="Address that API, gRPC, broker and SuperLink listen on.")
    api_port: int = Field(ge=1, le=65535, description="REST API and console.")
    grpc_port: int = Field(ge=1, le=65535, description="gRPC API.")
    broker_port: int = Field(ge=1, le=65535, description="MQTT.")
    superlink_port: int = Field(ge=1, le=65535, description="Flower SuperLink.")
    database_url: str = Field(default="", description="SQLAlchemy URL; empty means SQLite in the data directory.")
    mlflow_uri: str = Field(default="", description="MLflow tracking URI; empty means SQLite in the data directory.")
    artifacts_url: str = Field(default="", description="fsspec URL of the artifact store; empty means a local folder.")
    enabled_policies_default: bool = Field(default=True, description="Whether a new policy is enabled at once.")


@dataclass(frozen=True)
class ServerLayout:
    """Paths below one data directory."""

    root: Path

    @property
    def config(self) -> Path:
        """The written :class:`ServerConfig`."""
        return self.root / "server.json"

    @property
    def database(self) -> Path:
        """SQLite file of the store."""
        return self.root / "skerry.sqlite"

    @property
    def mlflow_database(self) -> Path:
        """SQLite file of MLflow; apart, because its Alembic table would collide with ours."""
        return self.root / "mlflow.sqlite"

    @property
    def mlflow_artifacts(self) -> Path:
        """Artifacts of MLflow runs and logged models."""
        return self.root / "mlflow-artifacts"

    @property
    def artifacts(self) -> Path:
        """Content-addressed blobs and bundles."""
        return self.root / "artifacts"

    @property
    def broker(self) -> Path:
        """Configuration, passwords and persistence of mosquitto."""
        return self.root / "broker"

    @property
    def superlink(self) -> Path:
        """State of the Flower SuperLink (also its FLWR_HOME)."""
        return self.root / "superlink"

    @property
    def keys(self) -> Path:
        """Private keys, readable by the owner only."""
        return self.root / "keys"

    @property
    def jobs(self) -> Path:
        """A working folder per job."""
        return self.root / "jobs"

    @property
    def logs(self) -> Path:
        """One log file per process."""
        return self.root / "logs"

    @property
    def run(self) -> Path:
        """Files that describe the running process tree."""
        return self.root / "run"

    @property
    def admin_token(self) -> Path:
        """The administrator's API token, made at the first start."""
        return self.root / "admin-token"

    @property
    def operator_password(self) -> Path:
        """Password of the MQTT user "operator", who may read everything."""
        return self.root / "keys" / "operator-mqtt-password"

    @property
    def server_password(self) -> Path:
        """Password of the MQTT user "server"."""
        return self.root / "keys" / "server-mqtt-password"

    def database_url(self, config: ServerConfig) -> str:
        """URL of the store."""
        return config.database_url or f"sqlite:///{self.database}"

    def mlflow_uri(self, config: ServerConfig) -> str:
        """URI of the MLflow store."""
        return config.mlflow_uri or f"sqlite:///{self.mlflow_database}"

    def artifacts_url(self, config: ServerConfig) -> str:
        """URL of the artifact store."""
        return config.artifacts_url or f"file://{self.artifacts}"


def load_config(layout: ServerLayout) -> ServerConfig:
    """Read the configuration of a data directory.

    Raises:
        PlatformError: It is missing or broken.
    """
    try:
        text = layout.config.read_text()
    except OSError as error:
        raise PlatformError(
            f"{layout.config} cannot be read ({error.strerror})", remedy="run `skerry up --data-dir DIR` there first"
        ) from error
    try:
        return ServerConfig.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"]) or "document"
        raise PlatformError(f"{layout.config}: {field}: {first['msg']}", remedy="correct the file") from error


def default_data_dir() -> Path:
    """``SKERRY_SERVER_DIR``, or ``~/.local/share/skerry``."""
    return Path(os.environ.get("SKERRY_SERVER_DIR", "~/.local/share/skerry")).expanduser()
