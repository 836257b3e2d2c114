"""Configuration of the control plane and where its files lie.

``skerry up`` writes ``<data>/server.json`` and every process of the tree reads it, so that one setting points a part
at its big brother. Ports are chosen once, at the first start, and kept: devices remember them.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from skerry_server.errors import PlatformError


class TrustSettings(BaseModel):
    """The signed metadata of The Update Framework. What changes here holds from the next signature on."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    root_days: int = Field(default=365, ge=1, le=3650, description="How long a root holds.")
    targets_days: int = Field(default=90, ge=1, le=3650, description="How long the lists of releases and keys hold.")
    snapshot_days: int = Field(default=7, ge=1, le=365, description="How long a snapshot holds.")
    timestamp_hours: int = Field(default=24, ge=1, le=720, description="How long a timestamp holds.")
    releases: int = Field(default=64, ge=1, le=256, description="Newest releases of a task that may be installed.")


class ServerConfig(BaseModel):
    """Settings of one control plane. Unknown fields are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    host: str = Field(
        default="127.0.0.1",
        description="Address that API, gRPC, the broker's TLS listeners, device API and SuperLink listen on.",
    )
    public_names: list[str] = Field(
        default=[],
        max_length=16,
        description="DNS names or addresses by which devices reach this machine; the first is what they are told.",
    )
    api_port: int = Field(ge=1, le=65535, description="REST API and console.")
    grpc_port: int = Field(ge=1, le=65535, description="gRPC API.")
    broker_port: int = Field(ge=1, le=65535, description="MQTT of the control plane itself; loopback only.")
    broker_tls_port: int = Field(ge=1, le=65535, description="MQTT over mutual TLS: control connections of devices.")
    broker_data_port: int = Field(ge=1, le=65535, description="MQTT over mutual TLS: data connections of devices.")
    device_port: int = Field(ge=1, le=65535, description="Device API over TLS: enrolment, renewal, files.")
    superlink_port: int = Field(ge=1, le=65535, description="Flower SuperLink.")
    database_url: str = Field(default="", description="SQLAlchemy URL; empty means SQLite in the data directory.")
    mlflow_uri: str = Field(default="", description="MLflow tracking URI; empty means SQLite in the data directory.")
    artifacts_url: str = Field(default="", description="fsspec URL of the artifact store; empty means a local folder.")
    reconnect_spread_ms: int = Field(
        default=0,
        ge=0,
        le=3_600_000,
        description="Devices spread their next attempt over so long (milliseconds) after a broken connection; "
        "0: chosen from their number.",
    )
    certificate_days: int = Field(default=90, ge=1, le=825, description="Life of a device's certificate (days).")
    enabled_policies_default: bool = Field(default=True, description="Whether a new policy is enabled at once.")
    epsilon_limit: float = Field(
        default=0.0,
        ge=0.0,
        le=1e4,
        description="Most epsilon that the private campaigns of one task may together spend of a device; one that "
        "could spend more is refused. 0: no limit.",
    )
    trust: TrustSettings = Field(default=TrustSettings(), description="Lifetimes and bounds of the signed metadata.")


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
    def trust_keys(self) -> Path:
        """Private keys of the roles of The Update Framework."""
        return self.keys / "tuf"

    @property
    def trust(self) -> Path:
        """Signed metadata of The Update Framework, and their lock."""
        return self.root / "trust"

    @property
    def pki(self) -> Path:
        """The certificate authority, and the certificate with which broker, device API and SuperLink serve."""
        return self.root / "pki"

    @property
    def authority_certificate(self) -> Path:
        """Certificate of the authority."""
        return self.pki / "ca.pem"

    @property
    def server_certificate(self) -> Path:
        """Certificate of the TLS listeners."""
        return self.pki / "server.pem"

    @property
    def server_key(self) -> Path:
        """Its private key, PKCS #8 PEM."""
        return self.pki / "server.key"

    @property
    def revocation_list(self) -> Path:
        """Certificates of devices that are refused (CRL, PEM)."""
        return self.pki / "revoked.pem"

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
        raise _broken(layout, error) from error


def complete_config(layout: ServerLayout, missing: Callable[[list[str]], Mapping[str, int]]) -> ServerConfig:
    """Read a configuration that an earlier version may have written, without the ports that came later.

    Args:
        layout: Whose.
        missing: Chooses values for the fields of these names.

    Raises:
        PlatformError: It is missing or broken.
    """
    try:
        document = json.loads(layout.config.read_bytes())
    except (OSError, ValueError):
        return load_config(layout)
    if not isinstance(document, dict):
        return load_config(layout)
    names = [name for name, field in ServerConfig.model_fields.items() if field.is_required() and name not in document]
    try:
        return ServerConfig.model_validate(document | dict(missing(names) if names else {}))
    except ValidationError as error:
        raise _broken(layout, error) from error


def _broken(layout: ServerLayout, error: ValidationError) -> PlatformError:
    first = error.errors()[0]
    field = ".".join(str(part) for part in first["loc"]) or "document"
    return PlatformError(f"{layout.config}: {field}: {first['msg']}", remedy="correct the file")


def default_data_dir() -> Path:
    """``SKERRY_SERVER_DIR``, or ``~/.local/share/skerry``."""
    return Path(os.environ.get("SKERRY_SERVER_DIR", "~/.local/share/skerry")).expanduser()
