"""Both sides' Flower adapters put fields into messages in the same way."""

from __future__ import annotations

import pytest
from flwr.app import Metadata, RecordDict
from flwr.app.message import make_message
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, no_object_id_recompute
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents

from skerry_agent.training import flower_node
from skerry_contract.campaign import INLINE_BYTES, Scalar
from skerry_server.federation.flower import messages as flower_messages


def carried(content: RecordDict) -> RecordDict:
    """The content after a message's way over the wire."""
    metadata = Metadata(
        run_id=1,
        message_id="",
        src_node_id=1,
        dst_node_id=2,
        reply_to_message_id="",
        group_id="1",
        created_at=1.0,
        ttl=60.0,
        message_type="train",
    )
    message = make_message(metadata, content)
    with no_object_id_recompute():
        objects = {key: item.deflate() for key, item in get_all_nested_objects(message).items()}
        head = message.object_id
    return inflate_object_from_contents(head, objects).content


@pytest.mark.parametrize("size", [0, 10, INLINE_BYTES, INLINE_BYTES + 1, 11 << 20])
def test_fields_arrive_as_they_were(size: int) -> None:
    data = (bytes(range(256)) * (size // 256 + 1))[:size]
    fields: dict[str, Scalar] = {"campaign_id": "c", "round": 3, "learning_rate": 0.25, "parameters": data}
    assert flower_node._unpack(carried(flower_messages.pack(fields))) == fields
    assert flower_messages.unpack(carried(flower_node._pack(fields))) == fields


def test_a_message_without_the_record_has_no_fields() -> None:
    assert flower_messages.unpack(carried(RecordDict({}))) == {}
    with pytest.raises(KeyError):
        flower_node._unpack(carried(RecordDict({})))
