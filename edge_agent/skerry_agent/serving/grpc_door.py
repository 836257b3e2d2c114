"""The gRPC door: which of the two there is opened here."""

from __future__ import annotations

from typing import Protocol

from skerry_agent.serving import http2
from skerry_agent.serving.core import ServingCore
from skerry_agent.serving.grpc_methods import GrpcMethods


class GrpcDoor(Protocol):
    """``inference.GRPCInferenceService`` on a port. :meth:`start` opens it; :meth:`stop` drains and ends its threads.

    Attributes:
        port: Where it listens.
    """

    port: int

    @property
    def alive(self) -> bool:
        """Whether it answers, once it is started."""
        ...

    def start(self) -> None:
        """Answer."""
        ...

    def stop(self) -> None:
        """Finish the requests that run, refuse new ones, end the threads."""
        ...


def open_grpc_door(core: ServingCore, *, version: str, host: str, port: int, own: bool = http2.COMPILED) -> GrpcDoor:
    """Bind the door.

    Args:
        core: Answers.
        version: Version of the agent.
        host: Address to listen on.
        port: 0 picks a free one.
        own: Whether to take the compiled one; grpcio's is not even imported then.

    Raises:
        DeviceError: The address cannot be bound.
    """
    methods = GrpcMethods(core, version=version)
    if own:
        from skerry_agent.serving.http2_door import Http2Door

        return Http2Door(methods, host=host, port=port)
    from skerry_agent.serving.grpcio_door import GrpcioDoor

    return GrpcioDoor(methods, host=host, port=port)
