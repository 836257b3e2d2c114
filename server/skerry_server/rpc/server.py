"""The gRPC door: a thread pool with bounds on messages and calls in flight."""

from __future__ import annotations

import concurrent.futures
from collections.abc import Callable
from typing import Any

import grpc

from skerry_contract.v1 import fleet_api_pb2_grpc as api
from skerry_server.api.limits import BODY_BYTES
from skerry_server.context import ServerContext
from skerry_server.errors import PlatformError
from skerry_server.rpc import services
from skerry_server.rpc.status import Servicer

#: Threads, and calls that may wait for one; more are refused with RESOURCE_EXHAUSTED.
THREADS = 8
CALLS = 128
#: Generated registration function and the service that it registers. The generated code has no types.
_SERVICES: tuple[tuple[Callable[[Servicer, Any], None], Callable[[ServerContext], Servicer]], ...] = (
    (api.add_FleetServiceServicer_to_server, services.FleetService),
    (api.add_ReleaseServiceServicer_to_server, services.ReleaseService),
    (api.add_RolloutServiceServicer_to_server, services.RolloutService),
    (api.add_CampaignServiceServicer_to_server, services.CampaignService),
    (api.add_IncidentServiceServicer_to_server, services.IncidentService),
    (api.add_AuditServiceServicer_to_server, services.AuditService),
)


class RpcServer:
    """Serves ``fleet_api.proto`` on one address; :meth:`stop` joins everything."""

    def __init__(self, context: ServerContext, *, address: str) -> None:
        """Open the door; calls are answered from :meth:`start` on.

        Args:
            context: What the services work with.
            address: host:port; port 0 takes a free one.

        Raises:
            PlatformError: The port is busy.
        """
        self._pool = concurrent.futures.ThreadPoolExecutor(THREADS, thread_name_prefix="rpc")
        self._server: Any = grpc.server(
            self._pool,
            maximum_concurrent_rpcs=CALLS,
            options=[
                ("grpc.max_receive_message_length", BODY_BYTES),
                ("grpc.so_reuseport", 0),
            ],
        )
        for add, service in _SERVICES:
            add(service(context), self._server)
        try:
            self.port: int = self._server.add_insecure_port(address)
        except RuntimeError:
            self.port = 0
        if self.port == 0:
            self._pool.shutdown()
            raise PlatformError(
                f"gRPC address {address} cannot be opened",
                remedy="end the program that uses it, or set another grpc_port in server.json",
            )

    def start(self) -> None:
        """Answer calls."""
        self._server.start()

    def stop(self, *, grace_s: float) -> None:
        """Take no new calls, give running ones ``grace_s`` seconds, join the threads."""
        self._server.stop(grace_s).wait()
        self._pool.shutdown()
