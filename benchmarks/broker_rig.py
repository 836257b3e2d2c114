"""A real mosquitto with the configuration that the control plane generates, for benchmarks. Not a benchmark itself."""

from __future__ import annotations

import contextlib
import resource
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from skerry_server import broker, ports, server_identity
from skerry_server.config import ServerConfig, ServerLayout
from skerry_server.files import write_atomically
from skerry_server.first_start import make_folders
from skerry_server.fleet.authority import CertificateAuthority, utc_now
from skerry_server.store.database import Database
from skerry_server.store.tables import Base
from skerry_server.supervision.child import tcp_ready

PASSWORD = "benchmark"


class Broker:
    """A running broker.

    Attributes:
        layout: Its data directory.
        config: Its configuration.
        authority: Signs certificates of devices.
    """

    def __init__(self, layout: ServerLayout, config: ServerConfig) -> None:
        self.layout = layout
        self.config = config
        self.authority = CertificateAuthority.load(layout.pki)
        self.start()

    @property
    def pid(self) -> int:
        """Its process."""
        return self._process.pid

    def start(self) -> None:
        """Start it and wait until it listens."""
        with (self.layout.logs / "mosquitto.log").open("ab") as log:
            self._process = subprocess.Popen(
                broker.command(broker.find_mosquitto(), self.layout), stdout=log, stderr=log
            )
        ready, until = tcp_ready(broker.LOOPBACK, self.config.broker_port), time.monotonic() + 20
        while not ready(self.pid):
            if self._process.poll() is not None or time.monotonic() > until:
                raise RuntimeError((self.layout.logs / "mosquitto.log").read_text()[-2000:])
            time.sleep(0.02)

    def kill(self) -> None:
        """End it at once, as a power cut does."""
        self._process.kill()
        self._process.wait()

    def identity(self, name: str, folder: Path) -> Path:
        """A device's key, certificate and authority in ``folder``."""
        folder.mkdir(parents=True, exist_ok=True)
        key = generate_private_key(SECP256R1())
        csr = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([])).sign(key, SHA256())
        certificate = self.authority.issue_device(
            csr.public_bytes(Encoding.PEM), device_id=name, now=utc_now(), days=90
        )
        (folder / "key.pem").write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        (folder / "certificate.pem").write_bytes(certificate)
        (folder / "authority.pem").write_bytes(self.authority.certificate_pem)
        return folder

    def memory_mb(self, name: str = "VmHWM") -> float:
        """Resident memory, by default the most since the start (MB)."""
        for line in Path(f"/proc/{self.pid}/status").read_text().splitlines():
            if line.startswith(f"{name}:"):
                return int(line.split()[1]) / 1000
        raise LookupError(name)

    def cpu_s(self) -> float:
        """CPU time so far (seconds)."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / 100


@contextlib.contextmanager
def running_broker() -> Iterator[Broker]:
    """Start a broker in a folder of its own; it is gone afterwards."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    with tempfile.TemporaryDirectory(prefix="skerry-bench-") as folder:
        layout = ServerLayout(Path(folder))
        make_folders(layout)
        names = [name for name, field in ServerConfig.model_fields.items() if field.is_required()]
        config = ServerConfig(**dict(zip(names, ports.free_ports("127.0.0.1", len(names)), strict=True)))
        server_identity.ensure(config, layout)
        for path in (layout.server_password, layout.operator_password):
            write_atomically(path, PASSWORD.encode())
        database = Database("sqlite://")
        Base.metadata.create_all(database.engine)
        broker.publish_access(database, layout)
        database.close()
        broker.write_configuration(config, layout)
        running = Broker(layout, config)
        try:
            yield running
        finally:
            running.kill()
