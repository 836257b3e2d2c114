"""Flower as it comes and ours meet: a stock node in our campaign, our node at a stock server. Real processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.cli.build import build_fab_from_files
from flwr.common.serde import user_config_to_proto
from flwr.proto.control_pb2 import StartRunRequest
from flwr.proto.fab_pb2 import Fab
from flwr.supercore.control.control_http_client import ControlHttpClient
from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor
from flwr.supercore.primitives.asymmetric import generate_key_pairs, public_key_to_bytes

from integration.federation.rig import SuperLink, free_port, issue_identity, poll, server_config
from skerry_agent.identity.tls import server_context
from skerry_agent.training.node import TrainingNode
from skerry_agent.training.node_hint import NodeHint
from skerry_agent.training.stock_questions import ActiveStep
from skerry_contract.campaign import TRAIN, Scalar, TrainInstruction, TrainReply
from skerry_contract.tensors import decode_bundle, encode_bundle
from skerry_server.config import ServerLayout
from skerry_server.federation.exchange import Broadcast
from skerry_server.federation.flower.run import FlowerRun
from skerry_server.federation.rounds.round_loop import RoundCollector, RoundRules
from skerry_server.federation.rounds.updates import read_update

pytestmark = pytest.mark.soak

#: A ClientApp that knows nothing of us; installed on the stock node's machine.
PLAIN_CLIENT = """
import numpy as np
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

app = ClientApp()


@app.train()
def train(message, context):
    config = message.content["config"]
    moved = {name: array.numpy() + config["server-round"] for name, array in message.content["arrays"].items()}
    arrays = ArrayRecord({name: Array(np.asarray(value)) for name, value in moved.items()})
    metrics = MetricRecord({"num-examples": 30, "train_loss": 0.25})
    return Message(RecordDict({"arrays": arrays, "metrics": metrics}), reply_to=message)
"""

PLAIN_PROJECT = b"""[project]
name = "stock"
version = "1.0.0"
[tool.flwr.app]
publisher = "test"
[tool.flwr.app.components]
serverapp = "stock.server:app"
clientapp = "stock.client:app"
[tool.flwr.app.config]
result = ""
"""
PLAIN_SERVER = b'''"""Flower's FedAvg over two rounds; writes the model and what the client said."""
import json
import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord
from flwr.serverapp import ServerApp
from flwr.serverapp.strategy import FedAvg

app = ServerApp()


@app.main()
def main(grid, context):
    strategy = FedAvg(fraction_evaluate=0.0, min_train_nodes=1, min_available_nodes=1)
    start = ArrayRecord({"w": Array(np.zeros(3, np.float32))})
    result = strategy.start(
        grid=grid, initial_arrays=start, num_rounds=2, train_config=ConfigRecord({"lr": 0.5, "batch-size": 4})
    )
    document = {
        "w": result.arrays["w"].numpy().tolist(),
        "loss": {str(number): dict(record)["train_loss"] for number, record in result.train_metrics_clientapp.items()},
    }
    with open(context.run_config["result"], "w") as stream:
        json.dump(document, stream)
'''


@contextmanager
def running(command: list[str], log: Path, **more: str) -> Iterator[None]:
    """A process group of a test."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    quiet = {"FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1", "FLWR_HOME": str(log.parent / "home")}
    with log.open("ab") as stream:
        process = subprocess.Popen(
            command,
            stdout=stream,
            stderr=stream,
            env={**os.environ, **quiet, "PATH": path, **more},
            start_new_session=True,
        )
    try:
        yield
    finally:
        os.killpg(process.pid, 15)
        try:
            process.wait(15)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, 9)
            process.wait()


def program(name: str) -> str:
    """A console script of this environment."""
    return str(Path(sys.executable).with_name(name))


def private_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    """As ``flower-supernode --auth-supernode-private-key`` reads it."""
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
    )


def test_a_plain_client_app_under_a_stock_supernode_takes_part_in_our_round(tmp_path: Path) -> None:
    layout = ServerLayout(tmp_path / "server")
    layout.root.mkdir()
    issue_identity(layout)
    link = SuperLink(layout, server_config())
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "lab_client.py").write_text(PLAIN_CLIENT)
    key, public = generate_key_pairs()
    (tmp_path / "key").write_bytes(private_pem(key))
    command = [program("flower-supernode"), "--superlink", f"127.0.0.1:{link.port}", "--port", str(free_port())]
    command += ["--root-certificates", str(link.authority), "--auth-supernode-private-key", str(tmp_path / "key")]
    link.start()
    try:
        assert link.nodes.register_as("lab-1", public_key_to_bytes(public))
        with (
            running(command, tmp_path / "supernode.log", PYTHONPATH=str(tmp_path / "site")),
            FlowerRun(link.access, lock=tmp_path / "submit.lock", client_app="lab_client:app") as run,
        ):
            poll(run.guests, what="the stock node joins", seconds=60, every_s=0.2)
            model = {"w": np.array([1.0, 2.0, 3.0], np.float32), "b": np.array(0.5, np.float32)}
            updates: dict[str, Any] = {}

            def accept(device_id: str, fields: Mapping[str, object]) -> None:
                updates[device_id] = read_update(fields, device_id=device_id, model=model)

            instruction = TrainInstruction(
                campaign_id="c",
                round=2,
                task="t",
                train_step_sha256="0" * 64,
                local_epochs=1,
                batch_size=8,
                learning_rate=0.1,
                proximal_mu=0.0,
                minimum_samples=0,
                deadline_ms=60_000,
                seed=1,
                parameters=encode_bundle(model),
            )
            collector = RoundCollector(run, lambda: dict(run.guests()))
            collector.collect(
                Broadcast(TRAIN, "2", instruction.to_fields(), 60.0), RoundRules(quorum=1, deadline_s=60.0), accept
            )
            run.complete()
    finally:
        link.nodes.close()
        link.kill()
    update = updates["supernode-lab-1"]
    assert (update.examples, update.metrics["loss"]) == (30, 0.25)
    assert {name: array.tolist() for name, array in update.state.items()} == {"w": [3.0, 4.0, 5.0], "b": 2.5}


class Halves:
    """A device that moves every parameter half of the way to 1 and says what it was asked."""

    def __init__(self) -> None:
        self.asked: list[TrainInstruction] = []

    def handle(self, kind: str, fields: Mapping[str, object]) -> Mapping[str, Scalar]:
        instruction = TrainInstruction.from_fields(fields)
        self.asked.append(instruction)
        state = {
            name: (np.asarray(value, np.float32) + np.float32(1)) / np.float32(2)
            for name, value in decode_bundle(instruction.parameters).items()
        }
        return TrainReply(
            device_id="d",
            examples=12,
            steps=3,
            seconds=0.0,
            loss=1.0 / instruction.round,
            validation_examples=4,
            validation_accuracy=0.5,
            validation_loss=0.0,
            parameters=encode_bundle(state),
        ).to_fields()


def test_our_node_takes_part_in_a_stock_fedavg(tmp_path: Path) -> None:
    layout = ServerLayout(tmp_path / "server")
    layout.root.mkdir()
    issue_identity(layout)
    port, result = free_port(), tmp_path / "result.json"
    command = [program("flower-superlink"), "--host", "127.0.0.1", "--port", str(port)]
    command += [
        "--ssl-ca-certfile",
        str(layout.authority_certificate),
        "--ssl-certfile",
        str(layout.server_certificate),
    ]
    command += ["--ssl-keyfile", str(layout.server_key), "--disable-runtime-dependency-installation"]
    authority = layout.authority_certificate.read_bytes()
    key, _ = generate_key_pairs()
    worker, stop, heard = Halves(), threading.Event(), [(0, "")]
    node = TrainingNode(
        f"127.0.0.1:{port}",
        key,
        NodeHint(tmp_path / "node.json"),
        worker,
        tls=lambda: server_context(authority, lambda: 0),
        on_link=lambda node_id, detail: heard.append((node_id, detail)),
        active=lambda: ActiveStep("har", "a" * 64),
    )
    thread = threading.Thread(target=node.run, args=(stop,))
    with running(command, tmp_path / "superlink.log"):
        thread.start()
        try:
            poll(lambda: heard[-1][0], what="our node joins", seconds=90, every_s=0.1)
            files = {
                "stock/__init__.py": b"",
                "stock/client.py": PLAIN_CLIENT.encode(),
                "stock/server.py": PLAIN_SERVER,
            }
            fab, _ = build_fab_from_files({"pyproject.toml": PLAIN_PROJECT, **files})
            version = RuntimeVersionHttpInterceptor(component_name="flwr-serverapp")
            with ControlHttpClient.from_server_address(
                f"127.0.0.1:{port}", False, authority, interceptors=[version]
            ) as control:
                config = user_config_to_proto({"result": str(result)})
                control.StartRun(StartRunRequest(fab=Fab(content=fab), override_config=config))
            poll(
                lambda: result.exists() and result.read_text().endswith("}"),
                what="two rounds",
                seconds=120,
                every_s=0.2,
            )
        finally:
            stop.set()
            thread.join(20)
    assert not thread.is_alive()
    assert json.loads(result.read_text()) == {"w": [0.75] * 3, "loss": {"1": 1.0, "2": 0.5}}
    first = worker.asked[0]
    assert (first.task, first.train_step_sha256, first.round) == ("har", "a" * 64, 1)
    assert (first.learning_rate, first.batch_size, first.local_epochs) == (0.5, 4, 1)
