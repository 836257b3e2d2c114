"""A link that can be cut: a TCP relay between devices and a server, both ends real."""

from __future__ import annotations

import contextlib
import selectors
import socket
import threading

_BLOCK = 1 << 16


class LinkProxy:
    """Relays connections to one port of loopback; one thread, which :meth:`close` joins.

    While it is cut, connections are reset and new ones are refused to get through: they are accepted and closed, as a
    network that loses its uplink does to a device behind a router.
    """

    def __init__(self, target: int) -> None:
        self._target = target
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self._listener.setblocking(False)
        self.port = int(self._listener.getsockname()[1])
        self._cut = threading.Event()
        self._ended = threading.Event()
        self._pairs: dict[socket.socket, socket.socket] = {}
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._thread = threading.Thread(target=self._run, name="link-proxy", daemon=True)
        self._thread.start()

    def cut(self) -> None:
        """Nothing goes through any more."""
        self._cut.set()

    def mend(self) -> None:
        """New connections go through again."""
        self._cut.clear()

    def close(self) -> None:
        """Stop relaying."""
        self._ended.set()
        self._thread.join(10)
        self._listener.close()

    def _run(self) -> None:
        while not self._ended.is_set():
            for key, _ in self._selector.select(0.05):
                if key.fileobj is self._listener:
                    self._accept()
                else:
                    self._relay(key.fileobj)  # type: ignore[arg-type]  # only sockets are registered
            if self._cut.is_set():
                self._drop_all()
        self._drop_all()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            near, _ = self._listener.accept()
            if self._cut.is_set():
                near.close()
                return
            try:
                far = socket.create_connection(("127.0.0.1", self._target), timeout=5)
            except OSError:
                near.close()
                return
            for one, other in ((near, far), (far, near)):
                one.settimeout(5)
                self._pairs[one] = other
                self._selector.register(one, selectors.EVENT_READ)

    def _relay(self, source: socket.socket) -> None:
        target = self._pairs.get(source)
        if target is None:
            return
        try:
            data = source.recv(_BLOCK)
            if data:
                target.sendall(data)
                return
        except OSError:
            pass
        self._drop(source)

    def _drop(self, one: socket.socket) -> None:
        other = self._pairs.pop(one, None)
        for end in (one, other):
            if end is not None:
                self._pairs.pop(end, None)
                with contextlib.suppress(KeyError, ValueError):
                    self._selector.unregister(end)
                end.close()

    def _drop_all(self) -> None:
        for one in list(self._pairs):
            if one in self._pairs:
                self._drop(one)
