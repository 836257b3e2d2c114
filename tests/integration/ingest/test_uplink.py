"""Uplink through a real broker: at least once from the device, exactly once in the store."""

from __future__ import annotations

import sqlalchemy as sa

from integration.runtime.broker_process import ControlPlane, DeviceClient
from skerry_contract.topics import DeviceTopic, device_topic
from skerry_contract.v1.telemetry_pb2 import HealthReport, UplinkAck, UplinkMessage
from skerry_server.clock import now_ms
from skerry_server.controllers import ControllerRunner
from skerry_server.monitoring.ingest import UplinkIngest
from skerry_server.store.tables import HealthRow
from skerry_server.tally import Tally


class Outbox:
    """Sends what is not acknowledged, as the agent's does."""

    def __init__(self, device: DeviceClient, device_id: str, count: int) -> None:
        self.waiting = set(range(1, count + 1))
        self._device = device
        self._device_id = device_id
        device.subscribe(device_topic(device_id, DeviceTopic.ACK))

    def send(self) -> None:
        for sequence in sorted(self.waiting):
            message = UplinkMessage(
                device_id=self._device_id,
                outbox_id="o1",
                sequence=sequence,
                created_unix_ms=now_ms(),
                health=HealthReport(release_id="r1", requests=sequence),
            )
            self._device.publish(device_topic(self._device_id, DeviceTopic.UP), message.SerializeToString())

    def empty(self) -> bool:
        while not self._device.received.empty():
            ack = UplinkAck.FromString(self._device.received.get()[1])
            self.waiting -= set(ack.sequences)
        return not self.waiting


def test_every_report_arrives_once_over_kills_of_the_broker_and_of_the_ingest(control_plane: ControlPlane) -> None:
    database = control_plane.context.database
    device = control_plane.device("d1")
    outbox = Outbox(device, "d1", 300)
    link, tally = control_plane.link(), Tally()

    def start() -> ControllerRunner:
        ingest = UplinkIngest(database, link, tally)
        receivers.append(ingest)
        runner = ControllerRunner([ingest])
        runner.start()
        return runner

    # One subscription; an ingest that was killed is followed by another with an empty memory.
    receivers: list[UplinkIngest] = []
    link.subscribe("$share/server/skerry/v1/d/+/up", lambda topic, payload: receivers[-1].receive(topic, payload))
    runner = start()
    outbox.send()
    control_plane.wait_until(lambda: tally.counts().get("uplink-health", 0) >= 50, what="some have been stored")
    control_plane.kill_broker()
    assert runner.stop(deadline_s=10) == []
    control_plane.start_broker()
    runner = start()
    control_plane.wait_until(lambda: link.connected and device.try_connected(), what="both are back")
    device.subscribe(device_topic("d1", DeviceTopic.ACK))
    outbox.empty()
    outbox.send()
    control_plane.wait_until(outbox.empty, what="everything is acknowledged")
    assert runner.stop(deadline_s=10) == []
    with database.reading() as session:
        requests = session.scalars(sa.select(HealthRow.requests).order_by(HealthRow.requests)).all()
    assert requests == list(range(1, 301))
    device.close()


def test_servers_side_by_side_share_the_messages(control_plane: ControlPlane) -> None:
    database = control_plane.context.database
    device = control_plane.device("d1")
    outbox = Outbox(device, "d1", 100)
    tallies = [Tally(), Tally()]
    ingests = [UplinkIngest(database, control_plane.link(), tally) for tally in tallies]
    for ingest in ingests:
        ingest.start()
    runners = [ControllerRunner([ingest]) for ingest in ingests]
    for runner in runners:
        runner.start()
    outbox.send()
    control_plane.wait_until(outbox.empty, what="everything is acknowledged")
    for runner in runners:
        assert runner.stop(deadline_s=10) == []
    stored = [tally.counts().get("uplink-health", 0) for tally in tallies]
    assert sum(stored) == 100
    assert min(stored) > 0
    device.close()
