"""The HTTP door: uvicorn on a thread of its own, bounded in connections, in time, and in what it takes.

Inference runs on the event loop's thread, which is the fastest way for models of microseconds to a few milliseconds.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections.abc import Callable

import uvicorn

from skerry_agent.errors import DeviceError
from skerry_agent.serving.http_app import Application
from skerry_agent.serving.http_body import Receive
from skerry_agent.serving.http_infer import Scope, Send
from skerry_agent.serving.http_protocol import BoundedProtocol, sweep
from skerry_agent.serving.listening import listen

#: How long requests under way may take at shutdown (s).
DRAIN_SECONDS = 5.0
#: How long uvicorn may take to start (s).
START_SECONDS = 30.0


class HttpDoor:
    """uvicorn on its own thread. :meth:`start` returns when the door answers; :meth:`stop` drains and joins.

    Args:
        app: An ASGI application; its lifespan is the door's own business.
        host: Address to listen on.
        port: 0 picks a free one.
        protocol: A connection, and the bounds on it.

    Raises:
        DeviceError: The address cannot be bound.
    """

    def __init__(
        self, app: Application, *, host: str, port: int, protocol: type[BoundedProtocol] = BoundedProtocol
    ) -> None:
        self._protocol = protocol
        self._socket = listen(host, port, door="HTTP", setting="http_port")
        self.port: int = self._socket.getsockname()[1]
        # uvicorn warns of each bad request: clients that send them would fill the log.
        logging.getLogger("uvicorn.error").setLevel(logging.ERROR)
        self._started = threading.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._server = uvicorn.Server(
            uvicorn.Config(
                self._with_lifespan(app),
                http=protocol,
                log_config=None,
                access_log=False,
                lifespan="on",
                ws="none",  # "auto" would load a WebSocket library for a door that has none
                server_header=False,
                limit_concurrency=protocol.most + 1,  # one that comes when all are taken makes room,
                timeout_graceful_shutdown=int(DRAIN_SECONDS),
            )
        )
        self._thread = threading.Thread(target=self._run, name="http-door", daemon=True)

    def start(self) -> None:
        """Answer; raises DeviceError if that does not come about in time."""
        self._thread.start()
        if not self._started.wait(START_SECONDS):
            self.stop()
            raise DeviceError("the HTTP door did not start", remedy="see the log of the serving process")

    @property
    def alive(self) -> bool:
        """Whether the door's thread runs."""
        return self._thread.is_alive()

    def call_soon(self, call: Callable[[], None]) -> None:
        """Have the loop that answers requests call something; nothing happens once it has ended."""
        if self._loop is not None:
            with contextlib.suppress(RuntimeError):
                self._loop.call_soon_threadsafe(call)

    def stop(self) -> None:
        """Finish the requests that run, refuse new ones, end the thread."""
        self._server.should_exit = True
        if self._thread.is_alive():
            self._thread.join(DRAIN_SECONDS + 5)
        self._socket.close()

    def _run(self) -> None:
        self._server.run(sockets=[self._socket])

    def _with_lifespan(self, app: Application) -> Application:
        async def run(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] != "lifespan":
                await app(scope, receive, send)
                return
            await receive()
            self._loop = asyncio.get_running_loop()
            sweeper = asyncio.create_task(self._sweep(), name="http-door-sweep")
            await send({"type": "lifespan.startup.complete"})
            self._started.set()
            await receive()
            sweeper.cancel()
            await send({"type": "lifespan.shutdown.complete"})

        return run

    async def _sweep(self) -> None:
        """Now and then: end connections whose clients keep the door waiting."""
        while True:
            await asyncio.sleep(self._protocol.sweep_seconds)
            sweep(self._server.server_state.connections)
