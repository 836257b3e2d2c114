"""The API's process: REST and console, gRPC, and the device API over one context, until SIGTERM or SIGINT.

Invariants: all doors open or none does; on a signal, streams are ended, running calls are given
:data:`GRACE_S` seconds, and the context is closed last.
"""

from __future__ import annotations

import contextlib
import logging
import signal
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType

import uvicorn
from fastapi import FastAPI

from skerry_server import ports
from skerry_server.api.app import create_app
from skerry_server.context import ServerContext, open_context
from skerry_server.device_api.server import DeviceServer
from skerry_server.errors import SkerryError
from skerry_server.rpc.server import RpcServer

#: How long running calls may go on after a signal (seconds).
GRACE_S = 5
#: Exit codes: ended by a signal as asked, usage, platform.
EXIT_DONE, EXIT_USAGE, EXIT_PLATFORM = 0, 2, 3

_LOGGER = logging.getLogger(__name__)


class _Server(uvicorn.Server):
    """Ends the event streams as soon as a signal comes, and then the process by its own way out.

    uvicorn alone would wait for the streams, and raise the signal again before anything else could be closed.
    """

    def __init__(self, config: uvicorn.Config, app: FastAPI) -> None:
        super().__init__(config)
        self._app = app

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """See uvicorn."""
        previous = {number: signal.signal(number, self.handle_exit) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """See uvicorn; runs in the main thread, between two steps of the loop."""
        self._app.state.changes.finish()
        super().handle_exit(sig, frame)


def main(arguments: Sequence[str]) -> int:
    """Run the process; returns its exit code."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    if len(arguments) != 1:
        print("usage: python -m skerry_server.api DATA_DIR", file=sys.stderr)
        return EXIT_USAGE
    try:
        context = open_context(Path(arguments[0]))
        try:
            serve(context)
        finally:
            context.close()
    except SkerryError as error:
        print(f"skerry api: {error}", file=sys.stderr)
        return EXIT_PLATFORM
    return EXIT_DONE


def serve(context: ServerContext) -> None:
    """Open every door and serve until a signal comes.

    Raises:
        PlatformError: A port is busy.
    """
    config = context.config
    listener = ports.listen(config.host, config.api_port, setting="api_port")
    try:
        rpc = RpcServer(context, address=f"{config.host}:{config.grpc_port}")
        rpc.start()
        devices: DeviceServer | None = None
        try:
            devices = DeviceServer(context)
            devices.start()
            app = create_app(context)
            server = _Server(
                uvicorn.Config(
                    app,
                    log_config=None,
                    access_log=False,
                    server_header=False,
                    timeout_graceful_shutdown=GRACE_S,
                    h11_max_incomplete_event_size=64 * 1024,
                    limit_concurrency=512,
                ),
                app,
            )
            _LOGGER.info(
                "REST and console on http://%s:%d, gRPC on port %d", *listener.getsockname()[:2], config.grpc_port
            )
            server.run(sockets=[listener])
        finally:
            if devices is not None:
                devices.stop(grace_s=GRACE_S)
            rpc.stop(grace_s=GRACE_S)
    finally:
        listener.close()
