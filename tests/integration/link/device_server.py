"""A small device API over TLS for tests: enrols and renews with a real authority, and misbehaves when it is told to."""

from __future__ import annotations

import base64
import json
import ssl
import threading
from collections.abc import Callable
from datetime import datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ec import ECDSA
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding

from integration.link.identity import DAYS, NAMES, authority_of_tests, now
from skerry_server.fleet.authority import CertificateAuthority

#: What the server says beside certificates.
GIVEN = {
    "broker_host": "10.0.0.2",
    "broker_port": 8883,
    "broker_data_port": 8884,
    "device_api": "https://10.0.0.2:8443",
    "superlink_address": "10.0.0.2:9092",
    "release_keys": ["ab" * 32],
    "trust_root": json.dumps({"signed": {"_type": "root", "version": 1}, "signatures": []}),
    "reconnect_spread_ms": 30_000,
}


class DeviceServer:
    """Answers on a free port; every answer can be changed.

    Attributes:
        status: Of the answers to POST.
        change: Makes the answer to POST what it becomes, a document or bytes.
        authority_pem: Answer to whoever asks for the authority.
        clock: When certificates are issued.
        bodies: What came, by path.
    """

    def __init__(
        self,
        folder: Path,
        *,
        authority: CertificateAuthority | None = None,
        names: tuple[str, ...] = NAMES,
        issued: datetime | None = None,
        days: int = 825,
    ) -> None:
        self.authority = authority or authority_of_tests()
        self.authority_pem = self.authority.certificate_pem
        self.status = 201
        self.change: Callable[[dict[str, Any]], Any] = lambda answer: answer
        self.clock: Callable[[], datetime] = now
        self.bodies: list[tuple[str, dict[str, Any]]] = []
        self.renewed = 0
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                assert self.path == "/device/v1/authority"
                self._send(200, server.authority_pem)

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                server.bodies.append((self.path, body))
                answer = server.change(server.answer(self.path, body))
                self._send(server.status, answer if isinstance(answer, bytes) else json.dumps(answer).encode())

            def _send(self, status: int, data: bytes) -> None:
                self.send_response(status)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, format: str, *args: Any) -> None:
                """Quiet."""

        certificate = self.authority.issue_server(names, now=issued or now(), days=days)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "server.pem").write_bytes(certificate.certificate_pem + certificate.key_pem)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(folder / "server.pem")
        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.socket = context.wrap_socket(self.http.socket, server_side=True)
        self.url = f"https://127.0.0.1:{self.http.server_port}"
        self.thread = threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.05})
        self.thread.start()

    @property
    def token(self) -> str:
        """A token of this control plane."""
        return f"enroll-c2VjcmV0c2VjcmV0.{self.authority.fingerprint[:32]}"

    def answer(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """What a control plane that behaves says."""
        csr = body["csr"].encode()
        if path == "/device/v1/enroll":
            device_id = body["device_id"]
            given = {"device_id": device_id, **GIVEN}
        else:
            assert path == "/device/v1/renew"
            old = self.authority.check_issued(body["certificate"].encode())
            der = x509.load_pem_x509_csr(csr).public_bytes(Encoding.DER)
            old.public_key.verify(
                base64.b64decode(body["signature"], validate=True), b"skerry-renew-v1\0" + der, ECDSA(SHA256())
            )
            device_id, given = old.device_id, {}
            self.renewed += 1
        certificate = self.authority.issue_device(csr, device_id=device_id, now=self.clock(), days=DAYS)
        return given | {"certificate": certificate.decode(), "authority": self.authority_pem.decode()}

    def stop(self) -> None:
        self.http.shutdown()
        self.http.server_close()
        self.thread.join(timeout=10)
