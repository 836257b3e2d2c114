"""The seam between the round loop and whatever carries its messages; Flower's SuperLink is one adapter.

Delivery promises little: an instruction may never arrive, a reply may be late, doubled or lost, nodes may vanish.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from skerry_contract.campaign import Scalar
from skerry_server.errors import SkerryError


class ExchangeLostError(SkerryError):
    """The run behind the exchange is gone: nothing of it can be sent or received any more. A new one may be opened."""


@dataclass(frozen=True)
class Broadcast:
    """One instruction for several nodes.

    Attributes:
        kind: ``skerry_contract.campaign.TRAIN`` or ``EVALUATE``.
        group: Shown in Flower's records, for example the round.
        fields: The same for every node.
        ttl_s: After how long it is void (seconds).
    """

    kind: str
    group: str
    fields: Mapping[str, Scalar]
    ttl_s: float


@dataclass(frozen=True)
class ReplyError:
    """Why a node did not answer the question.

    Attributes:
        reason: From the node or the exchange.
        refused: The node decided so; asking again does not help.
    """

    reason: str
    refused: bool


@dataclass(frozen=True)
class Reply:
    """An answer.

    Attributes:
        message_id: Of the instruction that it answers.
        fields: What the node said; not checked. None with an error.
        error: None with fields.
    """

    message_id: str
    fields: Mapping[str, object] | None = None
    error: ReplyError | None = None


class Exchange(Protocol):
    """Carries instructions to nodes and replies back; used by one thread."""

    def nodes(self) -> set[int]:
        """Nodes that are connected now.

        Raises:
            ExchangeLostError: The run is gone.
        """
        ...

    def send(self, broadcast: Broadcast, node_ids: Collection[int]) -> dict[int, str]:
        """Send to nodes; returns node to message identifier, without the nodes that cannot be reached."""
        ...

    def receive(self, message_ids: Iterable[str]) -> list[Reply]:
        """Replies that have arrived to these messages, each at most once; does not wait."""
        ...


@runtime_checkable
class Waits(Protocol):
    """An exchange that hears of an answer at once; a loop waits here instead of sleeping."""

    def wait(self, seconds: float) -> None:
        """Return when an answer may have arrived, or after so many seconds (or somewhat earlier).

        Raises:
            ExchangeLostError: The run is gone.
        """
        ...


@runtime_checkable
class HasGuests(Protocol):
    """An exchange over which nodes can be asked that are no devices of ours."""

    def guests(self) -> Mapping[str, int]:
        """Connected ones: name in a campaign to node; their answers carry that name as their device."""
        ...
