"""A plain mosquitto with a password, an application's MQTT client, and ``skerry-agent stream`` as a child."""

from __future__ import annotations

import datetime
import ipaddress
import json
import queue
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import paho.mqtt.client as paho
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

USER, PASSWORD = "app", "a secret"


class Broker:
    """The broker that stands on a device or in a site; it can be killed and started again on the same port."""

    def __init__(self, folder: Path, wait_until: Callable[..., None]) -> None:
        folder.mkdir()
        self._folder, self._wait_until = folder, wait_until
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port: int = free.getsockname()[1]
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.tls_port: int = free.getsockname()[1]
        self.authority = write_certificate(folder)
        self.password_file = folder / "password.txt"
        self.password_file.write_text(PASSWORD + "\n")
        passwords = folder / "passwords"
        tool = shutil.which("mosquitto_passwd") or "/usr/bin/mosquitto_passwd"
        subprocess.run([tool, "-b", "-c", str(passwords), USER, PASSWORD], check=True, timeout=20)
        passwords.chmod(0o644)
        folder.chmod(0o755)
        self._configuration = folder / "mosquitto.conf"
        self._configuration.write_text(
            f"listener {self.port} 127.0.0.1\nallow_anonymous false\npassword_file {passwords}\n"
            f"listener {self.tls_port} 127.0.0.1\ncertfile {self.authority}\nkeyfile {folder / 'key.pem'}\n"
            "set_tcp_nodelay true\npersistence false\nuser root\nlog_type all\n"
            f"log_dest file {folder / 'mosquitto.log'}\n"
        )
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        command = [shutil.which("mosquitto") or "/usr/sbin/mosquitto", "-c", str(self._configuration)]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self._wait_until(self._accepts, what="mosquitto accepts connections")

    def _accepts(self) -> bool:
        try:
            socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
        except OSError:
            return False
        return True

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait(20)
            self.process = None

    def url(self, topic: str, *, tls: bool = False) -> str:
        return f"mqtt{'s' if tls else ''}://{USER}@127.0.0.1:{self.tls_port if tls else self.port}/{topic}"


def write_certificate(folder: Path) -> Path:
    """A certificate for 127.0.0.1 that vouches for itself; its key lies beside it."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "broker")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .sign(key, hashes.SHA256())
    )
    path = folder / "certificate.pem"
    path.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    (folder / "key.pem").write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return path


class Application:
    """Publishes rows, hears predictions and errors."""

    def __init__(self, broker: Broker, wait_until: Callable[..., None]) -> None:
        self.heard: queue.Queue[tuple[str, Any, bool]] = queue.Queue()
        self._client: Any = paho.Client(paho.CallbackAPIVersion.VERSION2, protocol=paho.MQTTv5)
        self._client.username_pw_set(USER, PASSWORD)
        self._client.reconnect_delay_set(0.05, 0.2)
        self._client.on_socket_open = lambda _c, _d, sock: sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._client.on_connect = lambda client, *_: client.subscribe("out/#", qos=1)
        self.subscriptions = 0
        self._client.on_subscribe = self._on_subscribe
        self._client.on_message = self._on_message
        self._client.connect("127.0.0.1", broker.port)
        self._client.loop_start()
        wait_until(lambda: self.subscriptions, what="the application is connected")

    def _on_subscribe(self, *_: Any) -> None:
        self.subscriptions += 1

    def _on_message(self, _client: Any, _data: Any, message: Any) -> None:
        self.heard.put((message.topic, json.loads(message.payload), bool(message.retain)))

    def publish(self, payload: bytes) -> None:
        self._client.publish("in", payload, qos=1)

    def retain(self, payload: bytes) -> None:
        """Leave a message at the broker; returns when it has it."""
        self._client.publish("in", payload, qos=1, retain=True).wait_for_publish(20)

    def hear(self, count: int, *, seconds: float = 20) -> list[tuple[str, Any]]:
        """The next messages, in any order of topics."""
        until = time.monotonic() + seconds
        found: list[tuple[str, Any]] = []
        while len(found) < count:
            topic, document, retained = self.heard.get(timeout=max(0.01, until - time.monotonic()))
            assert not retained
            found.append((topic, document))
        return found

    def close(self) -> None:
        self._client.disconnect()
        self._client.loop_stop()


class StreamProcess:
    """``skerry-agent stream``; its standard error is kept."""

    def __init__(self, data_dir: Path, *arguments: str, stdin: int | None = subprocess.DEVNULL) -> None:
        self._log = data_dir / "stream.log"
        command = [
            sys.executable,
            "-m",
            "skerry_agent.cli",
            "stream",
            "--data-dir",
            str(data_dir),
            "--json",
            *arguments,
        ]
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(command, stdin=stdin, stdout=subprocess.PIPE, stderr=log)

    def log(self) -> str:
        return self._log.read_text()

    def stop(self) -> Any:
        """SIGTERM; returns the summary."""
        self.process.terminate()
        out, _ = self.process.communicate(timeout=20)
        assert self.process.returncode == 0, self.log()
        return json.loads(out.splitlines()[-1])

    def kill(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.communicate(timeout=20)
