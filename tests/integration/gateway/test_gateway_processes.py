"""A control plane, a gateway and devices as real processes: a campaign whose gateway is killed in a round."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
from concurrent.futures import Future
from pathlib import Path

import pytest

from integration.federation.fleet import Fleet, running_fleet
from integration.federation.rig import Agent, ChildProcess, Courier, free_port, poll
from skerry_agent.identity.node_key import load_node_key
from skerry_agent.identity.tls import server_context
from skerry_agent.training.lane_client import LaneClient
from skerry_agent.training.node_link import NotRegisteredError
from skerry_agent.training.server_clock import ServerClock
from skerry_agent.training.superlink_choice import follow
from skerry_contract.topics import parse_topic
from skerry_contract.v1.telemetry_pb2 import Command
from skerry_gateway.children import running_processes
from skerry_gateway.config import GatewayLayout
from skerry_gateway.status import read_state
from skerry_server.clock import now_ms
from skerry_server.device_api.server import DeviceServer
from skerry_server.federation.campaign_job import load_plan
from skerry_server.federation.controller import CampaignController
from skerry_server.first_start import prepare
from skerry_server.fleet import enrollment, gateways
from skerry_server.store.tables import Device

pytestmark = pytest.mark.soak

SITE = ("c00", "c01")


class SiteCourier(Courier):
    """Also lets a device go where its invitation leads, as its control process does."""

    def publish(self, topic: str, payload: bytes, *, retain: bool = False, expiry_s: int | None = None) -> Future[None]:
        agent = self._agents[parse_topic(topic).device_id or ""]
        follow(agent.layout.superlink_file, Command.FromString(payload).invitation)
        return super().publish(topic, payload, retain=retain, expiry_s=expiry_s)


class Gateway(ChildProcess):
    """``skerry-gateway`` over its own data directory."""

    def __init__(self, root: Path) -> None:
        self.layout = GatewayLayout(root)
        self.port = free_port()
        command = [sys.executable, "-m", "skerry_gateway.cli", "run", "--data-dir", str(root)]
        super().__init__(command, root.parent / "gateway.log")

    def enroll(self, server: str, token: str) -> dict[str, str]:
        command = [sys.executable, "-m", "skerry_gateway.cli", "enroll", "--server", server, "--token", token, "--json"]
        command += ["--device-id", "gw", "--listen", f"127.0.0.1:{self.port}", "--data-dir", str(self.layout.root)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
        document: dict[str, str] = json.loads(done.stdout)
        return document

    def connected(self) -> int:
        return read_state(self.layout.status).connected

    def journalled(self) -> set[str]:
        return {path.name.removesuffix(".kept") for path in self.layout.rounds.glob("*/*/c*.kept")}


def enrol_gateway(fleet: Fleet, gateway: Gateway, device_port: int) -> None:
    labels = {"role": "gateway", "site": "plant", "gateway-address": f"127.0.0.1:{gateway.port}"}
    with fleet.context.database.transaction() as session:
        token = enrollment.create_token(session, fleet.context, actor="test", labels=labels)
        for name in SITE:
            session.get_one(Device, name).labels = {"site": "plant"}
    assert gateway.enroll(f"https://127.0.0.1:{device_port}", token)["gateway_id"] == "gw"
    fleet.node_keys.step()


def is_connected(fleet: Fleet) -> bool:
    with fleet.context.database.reading() as session:
        return gateways.connected(session.get_one(Device, "gw"), at_ms=now_ms())


def test_a_site_trains_through_its_gateway_which_is_killed_in_a_round(tmp_path: Path) -> None:
    with running_fleet(tmp_path) as fleet:
        prepare(fleet.context.layout, {})
        device_port = free_port()
        served = fleet.context.config.model_copy(update={"device_port": device_port})
        context = dataclasses.replace(fleet.context, config=served)
        server, gateway = DeviceServer(context), Gateway(tmp_path / "gw")
        server.start()
        try:
            fleet.up()
            fleet.context = context
            fleet.controller = CampaignController(context, SiteCourier(context, fleet.agents))
            enrol_gateway(fleet, gateway, device_port)
            gateway.start()
            poll(lambda: is_connected(fleet), what="the gateway is connected", seconds=90, every_s=0.2)

            with pytest.raises(NotRegisteredError):  # a device of another site is nobody here
                attach(fleet.agent("c02"), gateway.port)

            held = fleet.hold("c00")
            campaign_id = fleet.start(strategy="fedavg", round_deadline_ms=120_000)
            plan, _, _ = load_plan(context, campaign_id)
            assert (plan.participants, plan.gateways) == (("c02", "gw"), {"gw": SITE})
            fleet.drive(lambda: gateway.journalled() == {"c01"}, what="the gateway has one of the two updates")
            assert gateway.connected() == 2
            os.kill(running_processes(gateway.layout)["gateway"], signal.SIGKILL)
            held.unlink()
            fleet.delivered(campaign_id)

            rounds = fleet.rounds(campaign_id)
            assert [(row.invited, row.accepted) for row in rounds] == [(3, 3), (3, 3)]
            examples = {row.metrics["examples"] for row in rounds}
            assert len(examples) == 1  # nobody was counted twice in the round with the kill
            assert rounds[-1].accuracy > 0.5
            state = read_state(gateway.layout.status)
            assert (state.round.campaign_id, state.round.round, state.round.counted) == (campaign_id, 2, 2)
            assert gateway.journalled() == set()
            poll(lambda: told_rounds(fleet) == 2, what="the control plane hears of the round", seconds=30)
        finally:
            gateway.kill(signal.SIGTERM)
            server.stop(grace_s=1)


def attach(agent: Agent, port: int) -> None:
    authority = (agent.layout.identity / "authority.pem").read_bytes()
    client = LaneClient(
        f"127.0.0.1:{port}",
        load_node_key(agent.layout),
        tls=lambda: server_context(authority, lambda: 0),
        clock=ServerClock(),
    )
    try:
        client.attach()
    finally:
        client.close()


def told_rounds(fleet: Fleet) -> int:
    with fleet.context.database.reading() as session:
        return int(session.get_one(Device, "gw").site_report.get("round", 0))
