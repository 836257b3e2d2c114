"""A round of secure aggregation through a real SuperLink: kinds, bulk, and a device that dies within the round."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app.metadata import validate_message_type
from flwr.supercore.primitives.asymmetric import generate_key_pairs, public_key_to_bytes

from integration.federation.rig import SuperLink, poll
from skerry_agent.identity.tls import server_context
from skerry_agent.training.node import TrainingNode
from skerry_agent.training.node_hint import NodeHint
from skerry_contract.campaign import Scalar
from skerry_contract.secure_aggregation import MASKED, SECAGG_KINDS
from skerry_contract.tensors import encode_bundle
from skerry_server.federation.flower.run import FlowerRun
from skerry_server.federation.secure_aggregation.secure_round import SecureRound, SecureRules
from skerry_server.fleet.authority import CertificateAuthority
from unit.federation.fakes import Clock
from unit.federation.secure_rig import SecureDevice, identity_of, instruction

#: More than a message holds inline.
VALUES = 100_000


class Node:
    """A device with its node in a thread; one that is fragile dies when it is asked for its update."""

    def __init__(self, link: SuperLink, folder: Path, device: SecureDevice, *, fragile: bool = False) -> None:
        self.device = device
        self.node_id = 0
        self._fragile = fragile
        self._stop = threading.Event()
        key, public = generate_key_pairs()
        assert link.nodes.register(device.name, public_key_to_bytes(public))
        tls = server_context(link.authority.read_bytes(), lambda: 0)
        hint = NodeHint(folder / f"{device.name}.json")
        node = TrainingNode(f"127.0.0.1:{link.port}", key, hint, self, tls=lambda: tls, on_link=self._hear)
        self._thread = threading.Thread(target=node.run, args=(self._stop,))

    def _hear(self, node_id: int, detail: str) -> None:
        self.node_id = node_id

    def handle(self, kind: str, fields: Mapping[str, Any]) -> Mapping[str, Scalar]:
        """The worker of the node."""
        if self._fragile and kind == MASKED:
            self._stop.set()
            raise RuntimeError("the device dies")
        return self.device.worker.handle(kind, fields)

    def __enter__(self) -> Node:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        self._thread.join(20)
        assert not self._thread.is_alive()


def test_the_kinds_are_flower_message_types() -> None:
    assert all(validate_message_type(kind) for kind in SECAGG_KINDS)


def test_a_round_over_a_superlink(link: SuperLink, tmp_path: Path) -> None:
    issuer = CertificateAuthority.load(link.authority.parent)
    devices = []
    for index in range(4):
        name = f"secure-{index}"
        device = SecureDevice(name, index + 1, Clock(), identity_of(name, issuer))
        device.moves = {"w": np.full(VALUES, 0.25 * index, np.float32)}
        devices.append(device)
    model = {"w": np.zeros(VALUES, np.float32)}
    with ExitStack() as stack:
        nodes = [stack.enter_context(Node(link, tmp_path, device, fragile=device is devices[3])) for device in devices]
        poll(lambda: all(node.node_id for node in nodes), what="they join")
        run = stack.enter_context(FlowerRun(link.access, lock=tmp_path / "submit.lock", patience_s=20))
        collector = SecureRound(
            run,
            lambda: {node.device.name: node.node_id or None for node in nodes},
            authority_pem=link.authority.read_bytes(),
        )
        asked = instruction(parameters=encode_bundle(model))
        result = collector.collect(asked, model, SecureRules(minimum=3, deadline_s=30.0, weight_bound=1))
        run.complete()
    assert result.survivors == ("secure-0", "secure-1", "secure-2")
    assert set(result.dropped) == {"secure-3"}
    np.testing.assert_allclose(result.mean_difference()["w"], 0.25, atol=1e-6)
    assert [device.trainings for device in devices] == [1, 1, 1, 0]
