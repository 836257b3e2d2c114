"""The training process of a device against a real SuperLink: joins, leaves, comes back, whatever is killed."""

from __future__ import annotations

import signal
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from integration.federation.rig import (
    Agent,
    SuperLink,
    TrainableBundle,
    install,
    poll,
    sign_bundle,
)
from unit.agent_training.linear_graphs import linear_graphs


@pytest.fixture
def agent(tmp_path: Path, bundle: TrainableBundle, link: SuperLink) -> Iterator[Agent]:
    agent = Agent(tmp_path / "phone", "phone", bundle, link)
    assert link.nodes.register(agent.device_id, agent.public_key())
    yield agent
    agent.kill()


def node_status(link: SuperLink, node_id: str) -> str:
    """What the SuperLink's own database says of a node."""
    signed = int(node_id) - (1 << 64 if int(node_id) >= 1 << 63 else 0)
    database = link.environment["FLWR_HOME"] + "/state.db"
    with sqlite3.connect(f"file:{database}?mode=ro", uri=True) as connection:
        row = connection.execute("SELECT status FROM node WHERE node_id = ?", (signed,)).fetchone()
    return str(row[0]) if row else "unknown"


def test_it_joins_leaves_and_is_the_same_node_after_every_kind_of_end(agent: Agent, link: SuperLink) -> None:
    agent.start()
    poll(lambda: agent.node_id() != "0", what="the node joins", seconds=60)
    node = agent.node_id()
    assert agent.status()["detail"] == ""
    assert agent.status()["training"] is False
    assert node_status(link, node) == "online"

    assert agent.process is not None
    process = agent.process
    agent.kill(signal.SIGTERM)
    assert process.returncode == 0
    assert node_status(link, node) == "offline"
    assert agent.status() == {"flower_node_id": "0", "training": False, "detail": "stopped", "pid": process.pid}

    agent.start()
    poll(lambda: agent.node_id() == node, what="the same node comes back", seconds=60)
    agent.kill(signal.SIGKILL)
    assert node_status(link, node) == "online"  # nobody told the SuperLink
    agent.layout.training_file.unlink()
    agent.start()
    poll(lambda: agent.node_id() == node, what="a killed node comes back at once", seconds=60)


def test_it_outlives_the_superlink_with_and_without_its_memory(agent: Agent, link: SuperLink) -> None:
    agent.start()
    poll(lambda: agent.node_id() != "0", what="the node joins", seconds=60)
    node = agent.node_id()
    link.kill(signal.SIGKILL)
    poll(lambda: "does not answer" in str(agent.status()["detail"]), what="the node notices", seconds=30)
    assert agent.node_id() == node
    link.start()
    poll(lambda: agent.status()["detail"] == "", what="the node goes on", seconds=30)
    assert agent.node_id() == node

    link.kill(signal.SIGKILL)
    for file in Path(link.environment["FLWR_HOME"]).glob("state.db*"):
        file.unlink()
    link.start()
    poll(lambda: "does not admit this device's key" in str(agent.status()["detail"]), what="it says so", seconds=60)
    assert agent.node_id() == "0"
    assert link.nodes.register(agent.device_id, agent.public_key())
    poll(lambda: agent.node_id() not in ("0", node), what="the node is another", seconds=60)
    assert node_status(link, agent.node_id()) == "online"
    assert agent.process is not None
    assert agent.process.poll() is None


def test_it_waits_until_it_is_registered_and_is_cut_off_when_it_is_revoked(
    tmp_path: Path, bundle: TrainableBundle, link: SuperLink
) -> None:
    stranger = Agent(tmp_path / "watch", "watch", bundle, link)
    stranger.start()
    try:
        refused = "does not admit this device's key"
        poll(lambda: refused in str(stranger.status().get("detail")), what="it is refused", seconds=60)
        assert stranger.node_id() == "0"
        assert link.nodes.register("watch", stranger.public_key())
        poll(stranger.joined, what="it joins once it is registered", seconds=60)
        node = stranger.node_id()

        link.nodes.unregister(int(node))
        poll(lambda: refused in str(stranger.status().get("detail")), what="it is cut off", seconds=30)
        assert stranger.node_id() == "0"
        assert node_status(link, node) == "unregistered"
        assert not link.nodes.register("watch", stranger.public_key())  # a key that was cut off is never taken again
        assert stranger.process is not None
        assert stranger.process.poll() is None
    finally:
        stranger.kill()


def test_it_stays_out_until_its_golden_step_comes_out_right(
    agent: Agent, bundle: TrainableBundle, tmp_path: Path
) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    for file in bundle.folder.iterdir():
        (broken / file.name).write_bytes(file.read_bytes())
    (broken / "manifest.pb").unlink()
    graphs = linear_graphs((1, 8, 8), 10, momentum=0.5, scale=1 / 16)
    (broken / "train_step.onnx").write_bytes(graphs.step)
    (broken / "train_step.pb").write_bytes(graphs.spec.SerializeToString())
    (broken / "golden_step.pb").write_bytes(graphs.golden(off_by=0.5).SerializeToString())
    install(agent.layout, sign_bundle(broken, b"", signer=bundle.signer))
    agent.start()
    poll(lambda: "golden step: loss is off by" in str(agent.status().get("detail")), what="it says why", seconds=60)
    assert agent.node_id() == "0"
    install(agent.layout, bundle)
    poll(lambda: agent.node_id() != "0", what="it joins with the good release", seconds=60)


def test_a_device_without_a_release_waits(agent: Agent, bundle: TrainableBundle) -> None:
    agent.layout.pointer.unlink()
    agent.start()
    poll(lambda: "no release is installed yet" in str(agent.status().get("detail")), what="it says so", seconds=60)
    install(agent.layout, bundle)
    poll(lambda: agent.node_id() != "0", what="it joins", seconds=60)
