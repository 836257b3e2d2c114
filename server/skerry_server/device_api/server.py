"""The TLS listener of the device API: uvicorn on a thread of its own, so that a download never delays the console."""

from __future__ import annotations

import logging
import ssl
import threading
import time

import uvicorn

from skerry_server import ports
from skerry_server.context import ServerContext
from skerry_server.device_api.app import create_device_app
from skerry_server.device_api.tls import TlsProtocol
from skerry_server.errors import PlatformError

_LOGGER = logging.getLogger(__name__)

#: Connections at the same time; further ones are answered 503.
CONNECTIONS = 1024
#: Connections that wait to be accepted.
BACKLOG = 2048
#: How long a connection may stay open without a request (seconds).
KEEP_ALIVE_S = 30
#: How long the listener may take to open (seconds).
START_S = 20.0


class DeviceServer:
    """Owns the socket and the thread."""

    def __init__(self, context: ServerContext, *, protocol: type[TlsProtocol] = TlsProtocol) -> None:
        """Take the port.

        Args:
            context: Whose devices; closed by the caller afterwards.
            protocol: How a connection is served.

        Raises:
            PlatformError: The port is busy, or certificate or authority cannot be read.
        """
        config, layout = context.config, context.layout
        self._listener = ports.listen(config.host, config.device_port, setting="device_port")
        settings = uvicorn.Config(
            create_device_app(context),
            http=protocol,
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_keep_alive=KEEP_ALIVE_S,
            h11_max_incomplete_event_size=64 * 1024,
            limit_concurrency=CONNECTIONS,
            backlog=BACKLOG,
            ssl_certfile=layout.server_certificate,
            ssl_keyfile=layout.server_key,
            ssl_ca_certs=str(layout.authority_certificate),
            ssl_cert_reqs=ssl.CERT_OPTIONAL,
        )
        try:
            settings.load()
        except (OSError, ssl.SSLError) as error:
            self._listener.close()
            raise PlatformError(
                f"the device API cannot use the certificate {layout.server_certificate} ({error})",
                remedy="remove it and start again: a new one is made",
            ) from error
        self._server = uvicorn.Server(settings)
        self._thread = threading.Thread(target=self._run, name="device-api", daemon=True)

    def start(self) -> None:
        """Listen; returns when it does.

        Raises:
            PlatformError: It does not.
        """
        self._thread.start()
        until = time.monotonic() + START_S
        while not self._server.started:
            if not self._thread.is_alive() or time.monotonic() > until:
                self.stop(grace_s=0)
                raise PlatformError("the device API does not start", remedy="see the log before this line")
            time.sleep(0.01)
        _LOGGER.info("device API on https://%s:%d", *self._listener.getsockname()[:2])

    def stop(self, *, grace_s: float) -> None:
        """Stop listening; calls that run get ``grace_s`` seconds."""
        self._server.config.timeout_graceful_shutdown = int(grace_s)
        self._server.should_exit = True
        if self._thread.ident is not None:
            self._thread.join(grace_s + 5.0)
        self._listener.close()

    def _run(self) -> None:
        try:
            self._server.run(sockets=[self._listener])
        except SystemExit:  # uvicorn's way to say that it could not start; it has logged why
            _LOGGER.error("the device API ended")
