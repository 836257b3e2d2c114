"""A real mosquitto on free ports of the loopback interface, which a test can kill and start again.

It listens in the clear for the control plane, anybody may do anything there, and with mutual TLS for the control and
the data connections of devices, set up like the control plane's broker. Who may use which topic is not tested here.
"""

from __future__ import annotations

import shutil
import socket
import subprocess
import time
from pathlib import Path

import pytest

from integration.link.identity import NAMES, authority_of_tests, now
from skerry_server.fleet.authority import CertificateAuthority


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class Broker:
    """With persistence, so that sessions and retained messages survive a stop (not a kill).

    Attributes:
        port: In the clear, for the control plane.
        tls_port: For the control connections of devices.
        data_port: For their data connections.
    """

    def __init__(self, folder: Path, *, authority: CertificateAuthority | None = None) -> None:
        self.port, self.tls_port, self.data_port = free_port(), free_port(), free_port()
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None
        folder.mkdir(parents=True, exist_ok=True)
        self._config = folder / "mosquitto.conf"
        authority = authority or authority_of_tests()
        issued = authority.issue_server(NAMES, now=now())
        for name, data in (
            ("ca.pem", authority.certificate_pem),
            ("server.pem", issued.certificate_pem),
            ("server.key", issued.key_pem),
        ):
            (folder / name).write_bytes(data)
        self.configure()

    def configure(self) -> None:
        """Write the configuration for the ports of now."""
        folder = self._folder
        tls = (
            f"cafile {folder}/ca.pem\ncertfile {folder}/server.pem\nkeyfile {folder}/server.key\n"
            "require_certificate true\nuse_username_as_clientid true\nallow_anonymous false\n"
        )
        self._config.write_text(
            "per_listener_settings true\nuser root\npersistence true\nautosave_interval 1\nautosave_on_changes true\n"
            f"persistence_location {folder}/\n"
            f"listener {self.port} 127.0.0.1\nallow_anonymous true\n"
            f"listener {self.tls_port} 127.0.0.1\n{tls}use_identity_as_username true\n"
            f"listener {self.data_port} 127.0.0.1\n{tls}use_subject_as_username true\n"
        )

    def start(self) -> None:
        program = shutil.which("mosquitto") or "/usr/sbin/mosquitto"
        if not Path(program).exists():
            pytest.skip("mosquitto is not installed")
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen([program, "-c", str(self._config)], stdout=log, stderr=log)
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            try:
                socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
                return
            except OSError:
                time.sleep(0.02)
        raise AssertionError("mosquitto did not start")

    def kill(self) -> None:
        assert self._process is not None
        self._process.kill()
        self._process.wait(timeout=10)
        self._process = None

    def stop(self) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.wait(timeout=10)
            self._process = None
