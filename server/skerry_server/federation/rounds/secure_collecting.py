"""Rounds of which the control plane sees the sum only; between :mod:`~.secure_aggregation` and an open round.

The sum is journalled before it counts, as one update of many devices; until then the session's own checkpoint lies
beside the round's updates, so that a process that takes over unmasks the same sum and nothing is trained twice.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Iterable
from dataclasses import replace
from pathlib import Path

from skerry_contract.secagg_graph import MINIMUM_DEVICES
from skerry_server.federation.exchange import Broadcast, Exchange, Reply, Waits
from skerry_server.federation.rounds.downlink import DownLink
from skerry_server.federation.rounds.journal import CampaignJournal
from skerry_server.federation.rounds.open_round import SUM_NAME, OpenRound
from skerry_server.federation.rounds.round_loop import Collected, Resolve, RoundRules
from skerry_server.federation.rounds.round_metrics import size
from skerry_server.federation.secure_aggregation.failure import SecureRoundFailedError
from skerry_server.federation.secure_aggregation.secure_round import SecureRound, SecureRules
from skerry_server.federation.secure_aggregation.sums import SecureSum
from skerry_server.files import write_atomically

#: A device with more samples counts as if it had so many: the ring is the finer the smaller this is.
WEIGHT_BOUND = 4_096
#: Begins the reason of a device whose lie made a round be skipped.
LIE = "lied: "
#: Where a session lies beside the updates of its round.
_SESSION = "secure-session"


class SecureCollecting:
    """Brings one sum to each round; a :class:`~.collecting.Collecting`, used by one thread."""

    def __init__(
        self,
        exchange: Exchange,
        journal: CampaignJournal,
        *,
        authority_pem: bytes,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
        check: Callable[[], None] = lambda: None,
    ) -> None:
        """See :class:`~.secure_aggregation.secure_round.SecureRound`; the journal keeps the sessions."""
        self._exchange = _CountingWaits(exchange, exchange) if isinstance(exchange, Waits) else _Counting(exchange)
        self._journal = journal
        self._authority_pem = authority_pem
        self._clock = clock
        self._sleep = sleep
        self._check = check

    def collect(self, open_round: OpenRound, question: DownLink, rules: RoundRules, resolve: Resolve) -> Collected:
        """See :class:`~.collecting.Collecting`; raises SecureRoundFailedError, a RoundFailedError."""
        started = self._clock()
        if open_round.accepted:  # the sum was journalled before a resumption
            return Collected(tuple(open_round.accepted), tuple(open_round.accepted), {}, 0, 0.0)
        self._exchange.down = self._exchange.up = 0
        instruction = question.instruction
        secure = SecureRound(
            self._exchange,
            _without(resolve, self._liars()),
            authority_pem=self._authority_pem,
            clock=self._clock,
            sleep=self._sleep,
            check=self._check,
        )
        options = SecureRules(
            minimum=max(MINIMUM_DEVICES, rules.quorum),
            deadline_s=rules.deadline_s,
            grace_factor=rules.grace_factor,
            attempts=rules.attempts,
            repeat_s=rules.repeat_s,
        )
        if instruction.clip_norm:
            # What a device adds as noise must fit as well: 8 standard deviations are passed once in 1e15.
            options = replace(options, bound=instruction.clip_norm + 8 * instruction.noise_std)
        options = replace(options, weight_bound=1 if open_round.privacy.plan.enabled else WEIGHT_BOUND)
        try:
            total = secure.collect(
                instruction,
                open_round.start.model,
                options,
                keeper=_Keeper(self._journal.scratch(open_round.number) / _SESSION),
            )
        except SecureRoundFailedError as error:
            question.sent_bytes[SUM_NAME] = self._exchange.down
            lies = {device: f"{LIE}{reason}" for device, reason in error.liars.items()}
            error.failures = {**error.failures, **lies}
            raise
        self._take(open_round, total)
        question.sent_bytes[SUM_NAME] = self._exchange.down
        return Collected(
            asked=tuple(sorted({*total.survivors, *total.dropped})),
            accepted=total.survivors,
            failures={**total.dropped, **{device: f"rejected: {reason}" for device, reason in total.liars.items()}},
            dropped=0,
            seconds=self._clock() - started,
        )

    def _liars(self) -> frozenset[str]:
        """Devices whose lies made an earlier round be skipped: they would do it again."""
        skipped = [record.failures for record in self._journal.rounds() if record.skipped]
        return frozenset(device for failures in skipped for device, why in failures.items() if why.startswith(LIE))

    def _take(self, open_round: OpenRound, total: SecureSum) -> None:
        figures = total.metrics
        examples = max(1, int(figures.pop("examples")))
        figures["seconds"] = total.seconds
        figures["bytes_up"] = float(self._exchange.up)
        figures["bytes_down"] = float(self._exchange.down)
        figures["quantisation_step"] = total.rounding_norm / math.sqrt(total.layout.size)
        open_round.take_sum(
            total.layout.tensors(total.difference),
            weight=total.weight,
            examples=examples,
            members=total.survivors,
            metrics=figures,
        )


def _without(resolve: Resolve, left_out: Collection[str]) -> Resolve:
    if not left_out:
        return resolve
    return lambda: {device: node for device, node in resolve().items() if device not in left_out}


class _Keeper:
    """Keeps a session in a file of the round."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def load(self) -> bytes | None:
        """See :class:`~.secure_aggregation.secure_round.Keeper`."""
        return self._path.read_bytes() if self._path.exists() else None

    def save(self, data: bytes) -> None:
        """See :class:`~.secure_aggregation.secure_round.Keeper`."""
        write_atomically(self._path, data)


class _Counting:
    """An exchange that counts bytes."""

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange
        self.down = 0
        self.up = 0

    def nodes(self) -> set[int]:
        """See :class:`~.exchange.Exchange`."""
        return self._exchange.nodes()

    def send(self, broadcast: Broadcast, node_ids: Collection[int]) -> dict[int, str]:
        """See :class:`~.exchange.Exchange`."""
        sent = self._exchange.send(broadcast, node_ids)
        self.down += len(sent) * size(broadcast.fields)
        return sent

    def receive(self, message_ids: Iterable[str]) -> list[Reply]:
        """See :class:`~.exchange.Exchange`."""
        replies = self._exchange.receive(message_ids)
        self.up += sum(size(reply.fields or {}) for reply in replies)
        return replies


class _CountingWaits(_Counting):
    """One over which answers are heard of at once."""

    def __init__(self, exchange: Exchange, waits: Waits) -> None:
        super().__init__(exchange)
        self._waits = waits

    def wait(self, seconds: float) -> None:
        """See :class:`~.exchange.Waits`."""
        self._waits.wait(seconds)
