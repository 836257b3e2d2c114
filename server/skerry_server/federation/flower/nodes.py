"""The SuperLink's node keys over its Control API, as ``flwr supernode register`` uses it (flwr 1.41.0, pinned)."""

from __future__ import annotations

from typing import Any

import httpx
from flwr.proto.control_pb2 import ListNodesRequest, RegisterNodeRequest, UnregisterNodeRequest
from flwr.supercore.constant import NodeStatus
from flwr.supercore.control.control_http_client import ControlHttpClient

from skerry_server.federation.flower.client import open_client
from skerry_server.federation.flower.node_registry import DEVICE_PREFIX, RegisteredNode, RegistryError
from skerry_server.superlink import SuperLinkAccess


class FlowerNodes:
    """A :class:`~skerry_server.federation.flower.node_registry.NodeRegistry`; its connection is opened when needed."""

    def __init__(self, access: SuperLinkAccess) -> None:
        """Connect to nothing yet."""
        self._access = access
        self._client: Any = None

    def nodes(self) -> list[RegisteredNode]:
        """See :class:`~skerry_server.federation.flower.node_registry.NodeRegistry`."""
        response = self._call("ListNodes", ListNodesRequest())
        return [
            RegisteredNode(
                node_id=int(info.node_id),
                public_key=bytes(info.public_key),
                name=str(info.name),
                active=info.status != NodeStatus.UNREGISTERED,
                online=info.status == NodeStatus.ONLINE,
            )
            for info in response.nodes_info
        ]

    def register(self, device_id: str, public_key: bytes) -> bool:
        """See :class:`~skerry_server.federation.flower.node_registry.NodeRegistry`."""
        return self.register_as(DEVICE_PREFIX + device_id, public_key)

    def register_as(self, name: str, public_key: bytes) -> bool:
        """Register a key under any name: an operator's own node has one that is no device's."""
        request = RegisterNodeRequest(public_key=public_key, name=name)
        return self._call("RegisterNode", request, refused=httpx.codes.PRECONDITION_FAILED) is not None

    def unregister(self, node_id: int) -> None:
        """See :class:`~skerry_server.federation.flower.node_registry.NodeRegistry`."""
        self._call("UnregisterNode", UnregisterNodeRequest(node_id=node_id), refused=httpx.codes.NOT_FOUND)

    def close(self) -> None:
        """Let go of the connection; the next call opens another."""
        client, self._client = self._client, None
        if client is not None:
            client.close()

    def _call(self, method: str, request: Any, *, refused: int = 0) -> Any:
        """The response; None when the SuperLink answers ``refused``."""
        try:
            if self._client is None:
                self._client = open_client(ControlHttpClient, self._access)
            return getattr(self._client, method)(request)
        except httpx.HTTPStatusError as error:
            status = error.response.status_code
            if status == refused:
                return None
            raise RegistryError(f"{method}: HTTP {status}: {error.response.text[:200]}") from error
        except (httpx.HTTPError, ValueError) as error:
            self.close()  # the certificate or the secret may be new
            raise RegistryError(f"{method}: {type(error).__name__}: {error}") from error
