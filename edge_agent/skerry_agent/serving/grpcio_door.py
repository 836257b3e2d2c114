"""The gRPC door by grpcio, where the compiled one (:mod:`.http2_door`) was not built."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc

from skerry_agent.errors import DeviceError
from skerry_agent.serving.grpc_methods import MESSAGE_LIMIT, SERVICE, CallError, GrpcMethods, Method

#: Requests under way at the same time; more get RESOURCE_EXHAUSTED. A thread waits for the bytes of each, so that
#: clients that trickle hold threads and not each other; the engine decides how many are computed at a time.
CONCURRENT_REQUESTS = 64
#: Requests under way on one connection; more wait at the client.
STREAMS = 32
#: After so long a connection is closed and its client opens another (ms): the end of requests that never arrive whole.
CONNECTION_AGE_MS = 300_000
CONNECTION_GRACE_MS = 10_000
#: How long requests under way may take at shutdown (s).
DRAIN_SECONDS = 5.0

_CODES = {code.value[0]: code for code in grpc.StatusCode}


class GrpcioDoor:
    """See :class:`~skerry_agent.serving.grpc_door.GrpcDoor`."""

    def __init__(self, methods: GrpcMethods, *, host: str, port: int) -> None:
        self._pool = ThreadPoolExecutor(CONCURRENT_REQUESTS, thread_name_prefix="grpc-door")
        self._server: Any = grpc.server(
            self._pool,
            maximum_concurrent_rpcs=CONCURRENT_REQUESTS,
            options=[
                ("grpc.max_receive_message_length", MESSAGE_LIMIT),
                ("grpc.max_concurrent_streams", STREAMS),
                ("grpc.max_connection_age_ms", CONNECTION_AGE_MS),
                ("grpc.max_connection_age_grace_ms", CONNECTION_GRACE_MS),
                ("grpc.so_reuseport", 0),  # with it, two agents would share a port in silence
            ],
        )
        handlers = {name: _handler(method) for name, method in methods.table.items()}
        # By generic handlers, under the public name of the service.
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
        address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        try:
            self.port = int(self._server.add_insecure_port(address))
        except RuntimeError as error:
            self._pool.shutdown()
            raise DeviceError(
                f"the gRPC door cannot listen on {address}", remedy="free the port, or set grpc_port to 0"
            ) from error

    @property
    def alive(self) -> bool:
        """See :class:`GrpcDoor`; its threads are gRPC's own."""
        return True

    def start(self) -> None:
        """See :class:`GrpcDoor`."""
        self._server.start()

    def stop(self) -> None:
        """See :class:`GrpcDoor`."""
        self._server.stop(DRAIN_SECONDS).wait(DRAIN_SECONDS + 5)
        self._pool.shutdown()


def _handler(method: Method) -> Any:
    def handle(data: bytes, context: Any) -> bytes:
        remaining_s: float | None = context.time_remaining()
        try:
            return method(data, None if remaining_s is None else remaining_s * 1e6)
        except CallError as error:
            context.abort(_CODES[error.status], error.text)
        raise AssertionError("abort raises")

    return grpc.unary_unary_rpc_method_handler(handle)
