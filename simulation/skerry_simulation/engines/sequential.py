"""Every device in this process, one after the other: exact, easy to debug, quick to start."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterable
from typing import TypeVar

from skerry_agent.training.worker import CampaignWorker, RefusedError
from skerry_contract.campaign import TRAIN, EvaluateInstruction, TrainInstruction
from skerry_server.federation.exchange import Broadcast, Exchange, Reply, ReplyError
from skerry_simulation.clients import ClientPlan, create_worker
from skerry_simulation.engines.engine import Devices

T = TypeVar("T")


def answer(worker: CampaignWorker, kind: str, fields: dict[str, object], message_id: str) -> Reply:
    """What a device answers to one instruction."""
    try:
        if kind == TRAIN:
            return Reply(message_id, fields=worker.train(TrainInstruction.from_fields(fields)).to_fields())
        return Reply(message_id, fields=worker.evaluate(EvaluateInstruction.from_fields(fields)).to_fields())
    except RefusedError as error:
        return Reply(message_id, error=ReplyError(error.reason, refused=True))


class LocalExchange:
    """An exchange whose devices answer when they are asked for replies, in the order in which they were sent to."""

    def __init__(self, workers: dict[int, CampaignWorker]) -> None:
        self._workers = workers
        self._queue: deque[tuple[str, int, Broadcast]] = deque()
        self._count = 0

    def nodes(self) -> set[int]:
        """See :class:`~skerry_server.federation.exchange.Exchange`."""
        return set(self._workers)

    def send(self, broadcast: Broadcast, node_ids: Collection[int]) -> dict[int, str]:
        """See :class:`~skerry_server.federation.exchange.Exchange`."""
        sent: dict[int, str] = {}
        for node_id in node_ids:
            self._count += 1
            sent[node_id] = f"message-{self._count}"
            self._queue.append((sent[node_id], node_id, broadcast))
        return sent

    def receive(self, message_ids: Iterable[str]) -> list[Reply]:
        """See :class:`~skerry_server.federation.exchange.Exchange`; works for one device."""
        wanted = set(message_ids)
        while self._queue:
            message_id, node_id, broadcast = self._queue.popleft()
            if message_id in wanted:
                return [answer(self._workers[node_id], broadcast.kind, dict(broadcast.fields), message_id)]
        return []


class SequentialEngine:
    """See the module."""

    def __init__(self, *, workers: int) -> None:
        """``workers`` has no meaning here: there is one process."""

    def run(self, plan: ClientPlan, body: Callable[[Exchange, Devices], T]) -> T:
        """See :class:`~skerry_simulation.engines.engine.SimulationEngine`."""
        workers = {partition: create_worker(plan, partition) for partition in range(len(plan.clients))}
        devices: Devices = {name: partition for partition, name in enumerate(plan.clients)}
        return body(LocalExchange(workers), devices)
