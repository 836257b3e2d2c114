"""A campaign's end of the lane; see :mod:`skerry_contract.lane`. Raises what httpx raises.

One connection is kept. Large parameters go through the folder of blobs, which the SuperLink's process shares.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

import httpx
from flwr.supercore.constant import TASK_TOKEN_HEADER

from skerry_contract import lane
from skerry_contract.campaign import Scalar
from skerry_contract.errors import WireError
from skerry_server.federation.exchange import ExchangeLostError, Reply, ReplyError
from skerry_server.federation.flower.client import tls_context
from skerry_server.federation.flower.lane_blobs import BlobError, BlobFolder
from skerry_server.superlink import SECRET_HEADER, SuperLinkAccess

#: How long a response may take beyond what it may wait (seconds).
PATIENCE_S = 30.0
#: An idle connection is kept so long (seconds); the SuperLink keeps it longer.
KEEP_S = 60.0


class LaneClient:
    """Used by one thread."""

    def __init__(self, access: SuperLinkAccess, token: str) -> None:
        """``token`` is the run's task's; raises OSError when a file of ``access`` is missing."""
        headers = {SECRET_HEADER: access.secret.read_text().strip(), TASK_TOKEN_HEADER: token}
        self._blobs = BlobFolder(access.blobs)
        self._mailbox = ""
        self._http = httpx.Client(
            base_url=f"https://{access.address}",
            headers=headers,
            verify=tls_context(access.authority),
            timeout=PATIENCE_S,
            limits=httpx.Limits(max_connections=2, keepalive_expiry=KEEP_S),
        )

    def send(
        self, node_ids: Collection[int], *, kind: str, fields: Mapping[str, Scalar], ttl_s: float
    ) -> tuple[dict[int, str], list[int]]:
        """Node to message, and the nodes that are not on the lane."""
        frame, blobs = lane.pack_fields(fields)
        for sha256, data in blobs.items():
            self._blobs.put(sha256, data)
        head = {"nodes": [str(node) for node in node_ids], "owner": str(fields.get("campaign_id", ""))}
        answer, _ = self._post(lane.SEND_PATH, head | {"kind": kind, "ttl_s": ttl_s}, frame)
        self._check_mailbox(answer)
        sent = {int(node): str(message_id) for node, message_id in answer["sent"].items()}
        return sent, [int(node) for node in answer["other"]]

    def receive(self, done: Iterable[str], *, wait_s: float) -> list[tuple[str, bytes]]:
        """Messages with their answers, as frames, once ``done`` are forgotten; waits for the first."""
        answer, frames = self._post(lane.RECEIVE_PATH, {"done": list(done), "wait_s": wait_s}, wait_s=wait_s)
        self._check_mailbox(answer)
        listed: list[tuple[str, bytes]] = []
        position = 0
        for message_id, size in answer["answers"]:
            listed.append((str(message_id), frames[position : position + size]))
            position += size
        return listed

    def read(self, message_id: str, frame: bytes) -> Reply:
        """An answer."""
        try:
            head, _ = lane.unpack(frame)
            if "error" in head:
                error = head["error"] if isinstance(head["error"], dict) else {}
                refused = error.get("refused") is True
                return Reply(message_id, error=ReplyError(str(error.get("reason", "no reason"))[:500], refused=refused))
            return Reply(message_id, fields=lane.unpack_fields(frame, read=self._blobs.read))
        except (WireError, BlobError) as error:
            return Reply(message_id, error=ReplyError(f"the reply could not be read: {error}", refused=False))

    def nodes(self) -> dict[int, str]:
        """Connected nodes and the names that their keys were registered under."""
        answer, _ = self._post(lane.NODES_PATH, {})
        return {int(node): str(name) for node, name in answer["nodes"]}

    def end(self) -> None:
        """Nothing of the run is wanted any more."""
        self._post(lane.END_PATH, {})

    def close(self) -> None:
        """Let go of the connection."""
        self._http.close()

    def _check_mailbox(self, answer: Mapping[str, Any]) -> None:
        """Raise ExchangeLostError when what was sent cannot be answered any more: the file that held it is gone."""
        found = str(answer.get("mailbox", ""))
        if self._mailbox and found != self._mailbox:
            raise ExchangeLostError("the SuperLink has lost its mailbox, and every message of this run with it")
        self._mailbox = found

    def _post(
        self, path: str, head: Mapping[str, Any], body: bytes = b"", *, wait_s: float = 0.0
    ) -> tuple[dict[str, Any], bytes]:
        response = self._http.post(path, content=lane.pack(head, body), timeout=PATIENCE_S + wait_s)
        response.raise_for_status()
        return lane.unpack(response.content, most=2 * lane.FRAME_BYTES)  # several answers, the last of any size
