"""Messages of a run through Flower's own Runtime API, for nodes that are not on the lane (flwr 1.41.0, pinned).

A message is a tree of objects; each of them is one more request.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from flwr.app import Metadata
from flwr.app.message import make_message, remove_content_from_message
from flwr.common.constant import SUPERLINK_NODE_ID
from flwr.common.serde import message_to_proto
from flwr.proto.message_pb2 import ConfirmMessageReceivedRequest
from flwr.proto.node_pb2 import Node
from flwr.proto.runtime_pb2 import PullAppMessagesRequest, PushAppMessagesRequest
from flwr.supercore.inflatable.inflatable_object import (
    get_all_nested_objects,
    get_object_tree,
    iterate_object_tree,
    no_object_id_recompute,
)
from flwr.supercore.inflatable.inflatable_protobuf_utils import (
    make_pull_object_fn_protobuf,
    make_push_object_fn_protobuf,
)
from flwr.supercore.inflatable.inflatable_utils import (
    ObjectPullError,
    inflate_object_from_contents,
    pull_objects,
    push_objects,
)

from skerry_contract.campaign import REFUSED
from skerry_contract.errors import WireError
from skerry_server.federation.exchange import Broadcast, Reply, ReplyError
from skerry_server.federation.flower import messages as flower_messages

#: How long an object of a reply that was announced is waited for (seconds).
_PULL_LIMIT_S = 30.0

R = TypeVar("R")


class FlowerMessages:
    """Of one run; used by one thread."""

    def __init__(self, client: Any, run_id: int, call: Callable[[Callable[[], Any]], Any]) -> None:
        """Take over a connection.

        Args:
            client: A ``RuntimeHttpClient``.
            run_id: The run.
            call: Does a request, and tries it again.
        """
        self._client = client
        self.run_id = run_id
        self._call = call
        self._node = Node(node_id=SUPERLINK_NODE_ID)
        #: Messages that wait for an answer: kind, and the guest's name or nothing.
        self._sent: dict[str, tuple[str, str]] = {}

    @property
    def waiting(self) -> set[str]:
        """Messages that wait for an answer."""
        return set(self._sent)

    def send(
        self, broadcast: Broadcast, node_ids: list[int], content: Any, guests: Mapping[int, str]
    ) -> dict[int, str]:
        """Send to nodes, guests among them by name; the content is uploaded once. Returns node to message."""
        messages = [
            make_message(
                Metadata(
                    run_id=self.run_id,
                    message_id="",
                    src_node_id=SUPERLINK_NODE_ID,
                    dst_node_id=node_id,
                    reply_to_message_id="",
                    group_id=broadcast.group,
                    created_at=time.time(),
                    ttl=broadcast.ttl_s,
                    message_type=broadcast.kind,
                ),
                content,
            )
            for node_id in node_ids
        ]
        with no_object_id_recompute():
            objects: dict[str, Any] = {}
            for message in messages:
                message.metadata.__dict__["_message_id"] = message.object_id
                objects.update(get_all_nested_objects(message))
            request = PushAppMessagesRequest(
                messages_list=[message_to_proto(remove_content_from_message(message)) for message in messages],
                message_object_trees=[get_object_tree(message) for message in messages],
            )
            response = self._call(lambda: self._upload(request, objects))
        sent: dict[int, str] = {}
        for node_id, message_id in zip(node_ids, response.message_ids, strict=True):
            if message_id:
                sent[node_id] = str(message_id)
                self._sent[str(message_id)] = (broadcast.kind, guests.get(node_id, ""))
        return sent

    def _upload(self, request: Any, objects: dict[str, Any]) -> Any:
        response = self._client.PushMessages(request)
        push_objects(
            objects,
            push_object_fn=make_push_object_fn_protobuf(
                self._client.PushObject, self._node, self.run_id, response.session_id
            ),
            object_ids_to_push=set(response.objects_to_push),
        )
        return response

    def receive(self, message_ids: set[str]) -> list[Reply]:
        """Answers that have arrived to these."""
        request = PullAppMessagesRequest(message_ids=sorted(message_ids))
        response = self._call(lambda: self._client.PullMessages(request))
        pairs = zip(response.messages_list, response.message_object_trees, strict=True)
        return [self._read(proto, tree) for proto, tree in pairs]

    def _read(self, proto: Any, tree: Any) -> Reply:
        replied_to, object_id = str(proto.metadata.reply_to_message_id), proto.metadata.message_id
        try:
            contents = self._call(
                lambda: pull_objects(
                    [item.object_id for item in iterate_object_tree(tree)],
                    make_pull_object_fn_protobuf(self._client.PullObject, self._node, self.run_id),
                    max_time=_PULL_LIMIT_S,
                    initial_backoff=0.01,
                    backoff_cap=0.2,
                )
            )
            confirmation = ConfirmMessageReceivedRequest(
                node=self._node, run_id=self.run_id, message_object_id=object_id
            )
            self._call(lambda: self._client.ConfirmMessageReceived(confirmation))
            message = inflate_object_from_contents(object_id, contents)
        except (ObjectPullError, ValueError) as error:
            return Reply(replied_to, error=ReplyError(f"the reply could not be read: {error}", refused=False))
        if message.has_error():
            reason = message.error.reason or f"code {message.error.code}"
            return Reply(replied_to, error=ReplyError(reason, refused=message.error.code == REFUSED))
        kind, guest = self._sent.pop(replied_to, ("", ""))
        if not guest:
            return Reply(replied_to, fields=flower_messages.unpack(message.content))
        try:
            fields = flower_messages.unpack_from_guest(message.content, kind=kind, device_id=guest)
        except WireError as error:
            return Reply(replied_to, error=ReplyError(f"the guest's answer: {error}", refused=True))
        return Reply(replied_to, fields=fields)
