"""A SuperLink, devices and a control plane's store in real processes and files, for the tests of campaigns."""

from __future__ import annotations

import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from skerry_agent.config import AgentConfig, AgentLayout
from skerry_agent.identity.certificate import make_request, new_key, request_to_pem
from skerry_agent.identity.identity_files import IdentityFiles
from skerry_agent.identity.node_key import node_public_key
from skerry_agent.training.labelled_store import LabelledStore
from skerry_agent.update.slots import MANIFEST, Pointer, slot_folder, write_pointer
from skerry_contract.manifest import bundle_digest, describe_folder
from skerry_contract.signing import RELEASE, Ed25519Signer
from skerry_contract.tensors import encode_bundle
from skerry_contract.topics import parse_topic
from skerry_contract.v1.release_pb2 import ReleaseManifest, Variant
from skerry_contract.v1.telemetry_pb2 import Command
from skerry_server import superlink
from skerry_server.clock import now_ms
from skerry_server.config import ServerConfig, ServerLayout
from skerry_server.context import ServerContext, open_context
from skerry_server.federation.flower.nodes import FlowerNodes
from skerry_server.fleet.authority import CertificateAuthority, utc_now
from skerry_server.store.migrate import upgrade
from skerry_server.store.tables import CampaignParticipant, Candidate, ChampionEntry, Cohort, Device
from skerry_server.store.tables import Release as ReleaseRow
from unit.agent_training.linear_graphs import linear_graphs, with_ranges

TASK = "linear-digits"
RELEASE_ID = "linear-digits-r1"
#: A task package as a user would install it; also on the path of the job processes.
TASK_PACKAGE = Path(__file__).parent / "task_package"


def free_port() -> int:
    """A port of loopback that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def poll(condition: Callable[[], object], *, what: str, seconds: float = 30.0, every_s: float = 0.02) -> None:
    """Wait for a condition with a deadline; one that costs something is asked less often."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"{what}: not within {seconds:g} s")
        time.sleep(every_s)


@dataclass
class TrainableBundle:
    """What a device needs of a bundle to train, signed.

    Attributes:
        folder: Files and the signed manifest.
        train_step_sha256: Hexadecimal.
        parameters: Wire form of the parameters.
        signer: Who signed.
    """

    folder: Path
    train_step_sha256: str
    parameters: bytes
    signer: Ed25519Signer


def server_config() -> ServerConfig:
    """A control plane of which only the SuperLink is started."""
    return ServerConfig(
        api_port=1,
        grpc_port=1,
        broker_port=1,
        broker_tls_port=1,
        broker_data_port=1,
        device_port=1,
        superlink_port=free_port(),
    )


def issue_identity(layout: ServerLayout) -> None:
    """Make the authority and the server's certificate, as the first start does."""
    authority = CertificateAuthority.create(now=utc_now())
    authority.save(layout.pki)
    server = authority.issue_server(["localhost", "127.0.0.1"], now=utc_now())
    layout.server_certificate.write_bytes(server.certificate_pem)
    layout.server_key.write_bytes(server.key_pem)


def certify(layout: AgentLayout, device_id: str, pki: Path) -> None:
    """Give a device the identity that enrolment gives it: a key of its own and the fleet authority's certificate."""
    authority, key = CertificateAuthority.load(pki), new_key()
    request = request_to_pem(make_request(key, device_id)).encode()
    certificate_pem = authority.issue_device(request, device_id=device_id, now=utc_now())
    IdentityFiles(layout).write_first(key, certificate_pem, authority.certificate_pem)


def build_bundle(folder: Path) -> TrainableBundle:
    """A bundle of softmax regression on digits, all parameters zero."""
    graphs = linear_graphs((1, 8, 8), 10, scale=1 / 16)
    folder.mkdir(parents=True)
    for name, data in {
        "infer.onnx": graphs.evaluate,
        "evaluate.onnx": graphs.evaluate,
        "calibrate.onnx": with_ranges(graphs.evaluate, ("rows", "scores")),
        "train_step.onnx": graphs.step,
        "train_step.pb": graphs.spec.SerializeToString(),
        "golden_step.pb": graphs.golden().SerializeToString(),
    }.items():
        (folder / name).write_bytes(data)
    return sign_bundle(folder, encode_bundle(graphs.zero_state()))


def sign_bundle(folder: Path, parameters: bytes, *, signer: Ed25519Signer | None = None) -> TrainableBundle:
    """Describe and sign what lies in ``folder``, by a new key unless one is given."""
    entries = list(describe_folder(folder))
    step = next(entry for entry in entries if entry.path == "train_step.onnx")
    signer = signer or Ed25519Signer(Ed25519PrivateKey.generate())
    manifest = ReleaseManifest(
        release_id=RELEASE_ID,
        sequence=1,
        task=TASK,
        bundle_sha256=bundle_digest(entries),
        files=entries,
        variants=[Variant(name="fp32", path="infer.onnx")],
        train_step_sha256=step.sha256,
        created_unix_ms=now_ms(),
    )
    envelope = signer.sign(RELEASE, manifest.SerializeToString())
    (folder / MANIFEST).write_bytes(envelope.SerializeToString())
    return TrainableBundle(folder, step.sha256.hex(), parameters, signer)


def install(layout: AgentLayout, bundle: TrainableBundle) -> None:
    """Put a bundle into slot a and make it the active one."""
    target = slot_folder(layout, "a")
    target.mkdir(parents=True, exist_ok=True)
    for file in bundle.folder.iterdir():
        (target / file.name).write_bytes(file.read_bytes())
    write_pointer(layout, Pointer(slot="a", release_id=RELEASE_ID, committed=True))


@dataclass
class ChildProcess:
    """A process that a test owns."""

    command: list[str]
    log: Path
    environment: dict[str, str] = field(default_factory=dict)
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it; its output is appended to the log."""
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as stream:
            self.process = subprocess.Popen(
                self.command, stdout=stream, stderr=stream, env={**os.environ, **self.environment}
            )

    def send(self, number: int) -> None:
        """Send a signal, if it runs."""
        if self.process is not None:
            self.process.send_signal(number)

    def kill(self, number: int = signal.SIGKILL) -> None:
        """End it by a signal and wait."""
        self.send(number)
        if self.process is not None:
            self.process.wait(20)
            self.process = None


class SuperLink(ChildProcess):
    """The SuperLink, started as the control plane starts it; ``layout`` has an identity."""

    def __init__(self, layout: ServerLayout, config: ServerConfig) -> None:
        layout.superlink.mkdir(parents=True, exist_ok=True)
        command = superlink.command(config, layout)
        super().__init__(command, layout.root / "superlink.log", superlink.environment(layout, os.environ))
        self.port = config.superlink_port
        self.authority = layout.authority_certificate
        self.access = superlink.access(config, layout)
        self.nodes = FlowerNodes(self.access)
        self._tls = ssl.create_default_context(cafile=self.authority)

    def start(self) -> None:
        """Start it and wait until it answers."""
        super().start()
        poll(self.healthy, what="the SuperLink answers", seconds=60, every_s=0.1)

    def healthy(self) -> bool:
        """Whether it answers its health check."""
        url = f"https://127.0.0.1:{self.port}{superlink.HEALTH_PATH}"
        try:
            with urllib.request.urlopen(url, timeout=1, context=self._tls) as response:
                return bool(response.status == 200)
        except OSError:
            return False


class Agent(ChildProcess):
    """The training process of one device, which is enrolled but not registered at the SuperLink."""

    def __init__(
        self, root: Path, device_id: str, bundle: TrainableBundle, link: SuperLink, *, port: int | None = None
    ) -> None:
        self.device_id = device_id
        self.layout = AgentLayout(root)
        root.mkdir(parents=True)
        config = AgentConfig(
            device_id=device_id,
            broker_host="127.0.0.1",
            broker_port=1,
            broker_data_port=1,
            device_api="https://127.0.0.1:1",
            superlink_address=f"127.0.0.1:{port or link.port}",
            release_keys=[bundle.signer.public_key.hex()],
        )
        self.layout.config.write_text(config.to_json())
        certify(self.layout, device_id, link.authority.parent)
        install(self.layout, bundle)
        super().__init__([sys.executable, "-m", "skerry_agent.training", str(root)], root / "training.log")

    def public_key(self) -> bytes:
        """Its node key, as enrolment sends it."""
        return node_public_key(self.layout)

    def label(self, x: np.ndarray, y: np.ndarray) -> None:
        """Put labelled samples into its store."""
        store = LabelledStore(self.layout.labelled, 5000)
        for index, (row, label) in enumerate(zip(x, y, strict=True)):
            store.add(f"request-{index}", row, int(label))
        store.close()

    def status(self) -> dict[str, object]:
        """What its training process says; empty while there is no file."""
        try:
            document: dict[str, object] = json.loads(self.layout.training_file.read_bytes())
        except FileNotFoundError:
            return {}
        return document

    def node_id(self) -> str:
        """Its Flower node, "0" while there is none."""
        return str(self.status().get("flower_node_id", "0"))

    def joined(self) -> bool:
        """Whether its training process is a node now."""
        return self.node_id() != "0"


@dataclass
class ControlPlane:
    """Data directory, store and a base release."""

    context: ServerContext
    bundle: TrainableBundle

    @classmethod
    def create(cls, root: Path, bundle: TrainableBundle) -> ControlPlane:
        """Make a data directory with the task's champion."""
        layout = ServerLayout(root)
        root.mkdir(parents=True)
        config = server_config()
        issue_identity(layout)
        layout.config.write_text(config.model_dump_json())
        layout.keys.mkdir(exist_ok=True)
        upgrade(layout.database_url(config))
        context = open_context(root)
        sha256 = context.artifacts.put_bytes(bundle.parameters)
        bundle_sha256 = context.artifacts.put_bundle(bundle.folder)
        with context.database.transaction() as session:
            session.add(
                Candidate(
                    id="candidate-base",
                    task=TASK,
                    origin="central",
                    state="released",
                    parameters_sha256=sha256,
                    created_ms=now_ms(),
                )
            )
            session.add(
                ReleaseRow(
                    id=RELEASE_ID,
                    task=TASK,
                    sequence=1,
                    candidate_id="candidate-base",
                    origin="central",
                    bundle_sha256=bundle_sha256,
                    train_step_sha256=bundle.train_step_sha256,
                    envelope=b"",
                    created_ms=now_ms(),
                )
            )
            session.add(ChampionEntry(task=TASK, release_id=RELEASE_ID, reason="test", at_ms=now_ms()))
            if session.get(Cohort, "all") is None:
                session.add(Cohort(id="all", name="all", selector={}, created_ms=now_ms()))
        return cls(context, bundle)

    def enrol(self, agents: list[Agent], *, labelled: int = 100) -> None:
        """Write devices as the control plane would know them once they report."""
        with self.context.database.transaction() as session:
            for agent in agents:
                session.merge(
                    Device(
                        id=agent.device_id,
                        enrolled_ms=now_ms(),
                        node_public_key=agent.public_key().decode(),
                        online=True,
                        active_release=RELEASE_ID,
                        flower_node_id=agent.node_id(),
                        labelled_samples=labelled,
                    )
                )


class Courier:
    """Carries invitations to devices and writes their answers, as broker, control process and ingestion do."""

    def __init__(self, context: ServerContext, agents: list[Agent], *, declines: frozenset[str] = frozenset()) -> None:
        self._context = context
        self._agents = {agent.device_id: agent for agent in agents}
        self._declines = declines
        self.invitations: list[tuple[str, Command]] = []

    def publish(self, topic: str, payload: bytes, *, retain: bool = False, expiry_s: int | None = None) -> Future[None]:
        """Deliver a command at once."""
        device_id = parse_topic(topic).device_id or ""
        command = Command.FromString(payload)
        self.invitations.append((device_id, command))
        with self._context.database.transaction() as session:
            row = session.get_one(CampaignParticipant, (command.invitation.campaign_id, device_id))
            if device_id in self._declines:
                row.state, row.reason = "declined", "on battery"
            else:
                row.state, row.flower_node_id = "accepted", self._agents[device_id].node_id()
        future: Future[None] = Future()
        future.set_result(None)
        return future
