"""Flower's own simulation engine on Ray: devices are ClientApps in worker processes. Only this file imports it."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Collection, Iterable
from typing import Any, TypeVar

from skerry_contract.campaign import RECORD, REFUSED
from skerry_server.federation.exchange import Broadcast, Exchange, Reply, ReplyError
from skerry_simulation.clients import ClientPlan, create_worker
from skerry_simulation.engines.engine import Devices
from skerry_simulation.engines.sequential import answer
from skerry_simulation.errors import StepError

T = TypeVar("T")

#: How long the engine may take until every device has said who it is (seconds).
_START_S = 120.0
_POLL_S = 0.02


class GridExchange:
    """An exchange over a Flower Grid."""

    def __init__(self, grid: Any) -> None:
        self._grid = grid

    def nodes(self) -> set[int]:
        """See :class:`~skerry_server.federation.exchange.Exchange`."""
        return set(self._grid.get_node_ids())

    def send(self, broadcast: Broadcast, node_ids: Collection[int]) -> dict[int, str]:
        """See :class:`~skerry_server.federation.exchange.Exchange`."""
        from flwr.app import ConfigRecord, Message, RecordDict

        content = RecordDict({RECORD: ConfigRecord(dict(broadcast.fields))})
        messages = [
            Message(
                content=content,
                message_type=broadcast.kind,
                dst_node_id=node_id,
                group_id=broadcast.group,
                ttl=broadcast.ttl_s,
            )
            for node_id in node_ids
        ]
        sent = zip(node_ids, self._grid.push_messages(messages), strict=True)
        return {node_id: str(message_id) for node_id, message_id in sent if message_id}

    def receive(self, message_ids: Iterable[str]) -> list[Reply]:
        """See :class:`~skerry_server.federation.exchange.Exchange`."""
        replies = []
        for message in self._grid.pull_messages(list(message_ids)):
            replied_to = str(message.metadata.reply_to_message_id)
            if message.has_error():
                reason = message.error.reason or f"code {message.error.code}"
                replies.append(Reply(replied_to, error=ReplyError(reason, refused=message.error.code == REFUSED)))
            else:
                replies.append(Reply(replied_to, fields=dict(message.content.config_records[RECORD])))
        return replies


def _client_app(plan: ClientPlan) -> Any:
    from flwr.app import ConfigRecord, Error, Message, RecordDict
    from flwr.clientapp import ClientApp

    app = ClientApp()

    def respond(message: Any, context: Any) -> Any:
        worker = create_worker(plan, int(context.node_config["partition-id"]))
        fields = dict(message.content.config_records[RECORD])
        reply = answer(worker, message.metadata.message_type, fields, "")
        if reply.error is not None:
            return Message(Error(REFUSED, reply.error.reason), reply_to=message)
        return Message(RecordDict({RECORD: ConfigRecord(dict(reply.fields or {}))}), reply_to=message)

    def introduce(message: Any, context: Any) -> Any:
        name = plan.clients[int(context.node_config["partition-id"])]
        return Message(RecordDict({RECORD: ConfigRecord({"device_id": name})}), reply_to=message)

    app.train()(respond)
    app.evaluate()(respond)
    app.query()(introduce)
    return app


def _introduce(exchange: GridExchange, count: int) -> Devices:
    """Ask every node which device it is."""
    deadline = time.monotonic() + _START_S
    devices: Devices = {}
    pending: dict[str, int] = {}
    while len(devices) < count:
        if time.monotonic() > deadline:
            raise StepError("starting the ray engine", f"{len(devices)} of {count} devices within {_START_S:g} s")
        known = {node for node in devices.values() if node is not None} | set(pending.values())
        fresh = exchange.nodes() - known
        asked = exchange.send(Broadcast("query", "hello", {"hello": 1}, _START_S), fresh)
        pending |= {message_id: node_id for node_id, message_id in asked.items()}
        for reply in exchange.receive(pending) if pending else []:
            node_id = pending.pop(reply.message_id)
            if reply.fields is not None:
                devices[str(reply.fields["device_id"])] = node_id
        time.sleep(_POLL_S)
    return dict(sorted(devices.items()))


class RayEngine:
    """See the module."""

    def __init__(self, *, workers: int) -> None:
        self._workers = workers

    def run(self, plan: ClientPlan, body: Callable[[Exchange, Devices], T]) -> T:
        """See :class:`~skerry_simulation.engines.engine.SimulationEngine`."""
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
        from flwr.serverapp import ServerApp
        from flwr.simulation import run_simulation

        results: list[T] = []
        failures: list[BaseException] = []
        server = ServerApp()

        def main(grid: Any, context: Any) -> None:
            exchange = GridExchange(grid)
            try:
                results.append(body(exchange, _introduce(exchange, len(plan.clients))))
            except Exception as error:
                failures.append(error)  # Flower would turn it into a log line; the caller gets it below
                raise

        server.main()(main)
        quiet = logging.getLogger("flwr")
        level = quiet.level
        quiet.setLevel(logging.ERROR)
        try:
            run_simulation(
                server_app=server,
                client_app=_client_app(plan),
                num_supernodes=len(plan.clients),
                backend_config={
                    "client_resources": {"num_cpus": 1.0, "num_gpus": 0.0},
                    "init_args": {"num_cpus": self._workers, "include_dashboard": False, "log_to_driver": False},
                },
            )
        except Exception as error:
            raise (failures[0] if failures else StepError("the ray engine", str(error))) from error
        finally:
            quiet.setLevel(level)
        if not results:
            raise failures[0] if failures else StepError("the ray engine", "it ended without a result")
        return results[0]
