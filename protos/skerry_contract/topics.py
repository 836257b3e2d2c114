"""MQTT topics: the only place that spells them.

=====================================  ========  ======================================================
topic                                  retained  payload
=====================================  ========  ======================================================
``skerry/v1/d/<device>/desired``       yes       SignedEnvelope of DesiredState, server to device
``skerry/v1/d/<device>/reported``      yes       ReportedState, device to server
``skerry/v1/d/<device>/presence``      yes       Presence, device to server, last will
``skerry/v1/d/<device>/up``            no        UplinkMessage, device to server
``skerry/v1/d/<device>/ack``           no        UplinkAck, server to device
``skerry/v1/d/<device>/cmd``           no        Command, server to device
``skerry/v1/d/<device>/need``          no        ChunkRequest, device to server
``skerry/v1/d/<device>/refuse``        no        ChunkRefusal, server to device
``skerry/v1/d/CN=<device>/bulk/<sha>`` no        Chunk, unicast repair; ``CN=<device>`` is the user's name on the
                                                 data listener
``skerry/v1/bulk/<sha>``               no        Chunk, broadcast; by digest, never by cohort
``skerry/v1/trust/<file>``             yes       a file of TUF metadata, or ``index``: TrustIndex; server to all
=====================================  ========  ======================================================

A device may publish and read only below its own ``d/<device>`` and read ``bulk`` and ``trust``; the broker's ACL says
the same.
"""

from __future__ import annotations

import enum
import re
from dataclasses import dataclass

from skerry_contract.errors import WireError
from skerry_contract.identifiers import check_name, check_sha256_hex

ROOT = "skerry/v1"
#: Everything that a device reads to know whom to trust.
TRUST_FILTER = f"{ROOT}/trust/+"
#: Last level of the topic of the TrustIndex.
TRUST_INDEX = "index"
#: What the broker puts before a device's name on the data listener: there the user is the certificate's whole subject,
#: so that the two connections of a device are different users with different client identifiers.
DATA_USER = "CN="
_TRUST_NAME = re.compile(r"(?:[0-9]{1,9}\.)?[a-z0-9][a-z0-9-]{0,70}\.json\Z")


class DeviceTopic(enum.StrEnum):
    """The last level of a device's own topics."""

    DESIRED = "desired"
    REPORTED = "reported"
    PRESENCE = "presence"
    UP = "up"
    ACK = "ack"
    COMMAND = "cmd"
    NEED = "need"
    REFUSE = "refuse"


_KINDS: dict[str, DeviceTopic] = {kind.value: kind for kind in DeviceTopic}

#: Topics that a device publishes.
FROM_DEVICE = frozenset({DeviceTopic.REPORTED, DeviceTopic.PRESENCE, DeviceTopic.UP, DeviceTopic.NEED})
#: Topics that are published with the retain flag.
RETAINED = frozenset({DeviceTopic.DESIRED, DeviceTopic.REPORTED, DeviceTopic.PRESENCE})


@dataclass(frozen=True)
class ParsedTopic:
    """A topic taken apart.

    Attributes:
        device_id: Device it belongs to; ``None`` for broadcast bulk.
        kind: Last level of a device topic; ``None`` for bulk.
        sha256_hex: Digest of the file for bulk topics; ``None`` otherwise.
        trust_name: File of metadata, or :data:`TRUST_INDEX`; ``None`` otherwise.
    """

    device_id: str | None
    kind: DeviceTopic | None
    sha256_hex: str | None
    trust_name: str | None = None


def device_topic(device_id: str, kind: DeviceTopic) -> str:
    """``skerry/v1/d/<device>/<kind>``; raises WireError for a name that is not valid."""
    return f"{ROOT}/d/{check_name(device_id, field='device_id')}/{kind.value}"


def device_bulk_topic(device_id: str, sha256_hex: str) -> str:
    """Topic of chunks that only one device receives, on its data connection."""
    device = check_name(device_id, field="device_id")
    return f"{ROOT}/d/{DATA_USER}{device}/bulk/{check_sha256_hex(sha256_hex, field='sha256')}"


def bulk_topic(sha256_hex: str) -> str:
    """Topic of chunks that every device which needs the file receives."""
    return f"{ROOT}/bulk/{check_sha256_hex(sha256_hex, field='sha256')}"


def check_trust_name(name: str, *, field: str) -> str:
    """Return ``name`` if it can be a file of TUF metadata or the index; raises WireError."""
    if name != TRUST_INDEX and not _TRUST_NAME.match(name):
        raise WireError(field, expected="a file name of TUF metadata", got=name[:100])
    return name


def trust_topic(name: str) -> str:
    """Topic of one file of TUF metadata, or of :data:`TRUST_INDEX`."""
    return f"{ROOT}/trust/{check_trust_name(name, field='name')}"


def every_device_filter(kind: DeviceTopic, *, share: str | None = None) -> str:
    """Subscription filter for one kind of topic of all devices, optionally as a shared subscription."""
    plain = f"{ROOT}/d/+/{kind.value}"
    return plain if share is None else f"$share/{check_name(share, field='share')}/{plain}"


def parse_topic(topic: str) -> ParsedTopic:
    """Take a concrete topic apart.

    Raises:
        WireError: It is not one of ours, or has a malformed device or digest.
    """
    if len(topic) > 256:
        raise WireError("topic", expected="at most 256 characters", got=len(topic))
    match topic.split("/"):
        case ["skerry", "v1", "bulk", digest]:
            return ParsedTopic(None, None, check_sha256_hex(digest, field="topic.sha256"))
        case ["skerry", "v1", "d", user, "bulk", digest] if user.startswith(DATA_USER):
            device = check_name(user.removeprefix(DATA_USER), field="topic.device_id")
            return ParsedTopic(device, None, check_sha256_hex(digest, field="topic.sha256"))
        case ["skerry", "v1", "trust", name]:
            return ParsedTopic(None, None, None, check_trust_name(name, field="topic.name"))
        case ["skerry", "v1", "d", device, kind] if kind in _KINDS:
            return ParsedTopic(check_name(device, field="topic.device_id"), _KINDS[kind], None)
        case _:
            raise WireError("topic", expected=f"a topic below {ROOT}", got=topic)
