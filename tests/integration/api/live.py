"""The application behind a real uvicorn, in a thread of this process: a real port without the cost of a start."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator

import uvicorn
from fastapi import FastAPI

START_S = 30.0


@contextlib.contextmanager
def serving(app: FastAPI, *, port: int = 0) -> Iterator[str]:
    """Serve on a port, by default a free one; gives the address."""
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", port))
        server = uvicorn.Server(uvicorn.Config(app, log_config=None, timeout_graceful_shutdown=1))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            deadline = time.monotonic() + START_S
            while not server.started:
                assert thread.is_alive(), "uvicorn ended"
                assert time.monotonic() < deadline, "uvicorn does not start"
                time.sleep(0.01)
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            app.state.changes.finish()
            server.should_exit = True
            thread.join()
