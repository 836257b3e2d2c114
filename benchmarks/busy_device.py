"""A device that has much to do: its release, a process that trains without end, one that downloads without end.

Each worker is a child process that runs only in its turns: who has no turn is stopped by a signal. *Ours* works as the
agent does: training in the class SCHED_IDLE, asking before every step whether answers suffer, everything off the cores
of serving. *Plain* is the same work without any of that.
"""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from skerry_agent.config import AgentConfig, AgentLayout, load_config
from skerry_agent.training.labelled_store import LabelledStore
from skerry_contract.campaign import TrainInstruction

#: Samples that the device trains on; a round of one epoch.
SAMPLES = 256
BATCH = 32
#: What comes over the network (bytes a second): a third of a good Wi-Fi link; and the file that comes.
DOWNLOAD_RATE = 8 << 20
DOWNLOAD_BYTES = 16 << 20
CHUNK_BYTES = 64 << 10


def install(task_name: str, root: Path) -> AgentLayout:
    """An enrolled data directory with a release of a task, untrained, and labelled samples."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    from skerry_agent.update.slots import MANIFEST, Pointer, slot_folder, write_pointer
    from skerry_contract.signing import RELEASE, Ed25519Signer
    from skerry_models.bundle import build_bundle, describe_release
    from skerry_models.parameters import initial_parameters
    from skerry_models.task import load_task

    layout = AgentLayout(root)
    layout.run.mkdir(parents=True)
    signer = Ed25519Signer(Ed25519PrivateKey.generate())
    config = AgentConfig(
        device_id="device",
        broker_host="127.0.0.1",
        broker_port=1,
        broker_data_port=1,
        device_api="https://127.0.0.1:1",
        superlink_address="127.0.0.1:1",
        release_keys=[signer.public_key.hex()],
        window_requests=1_000_000,
    )
    layout.config.write_text(config.to_json())
    task = load_task(task_name)
    data = task.source(f"client/{task.client_names()[0]}")
    data = data.take(np.arange(min(SAMPLES, len(data))))
    folder = slot_folder(layout, "a")
    folder.parent.mkdir(parents=True)
    state = initial_parameters(task, 0)
    few = data.take(np.arange(min(64, len(data))))
    build_bundle(task, state, folder, reference=few, calibration=few, holdout=few, lineage={"origin": "benchmark"})
    manifest = describe_release(
        folder, release_id=f"{task_name}-r1", sequence=1, task=task, now_ms=time.time_ns() // 1_000_000
    )
    (folder / MANIFEST).write_bytes(signer.sign(RELEASE, manifest.SerializeToString()).SerializeToString())
    write_pointer(layout, Pointer("a", manifest.release_id, committed=True))
    store = LabelledStore(layout.labelled, config.labelled_capacity)
    for row, (x, y) in enumerate(zip(data.x, data.y, strict=True)):
        store.add("sample", np.ascontiguousarray(x, dtype=np.float32), int(y), row=row)
    store.close()
    return layout


def set_up(root: Path, **settings: object) -> None:
    """Change settings of a data directory."""
    path = AgentLayout(root).config
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))


def train_for_ever(root: Path, *, policy: bool, latency_of: Path) -> None:
    """The training process: a line on standard output for each round, until it is killed."""
    from skerry_agent.isolation import keep_off_serving
    from skerry_agent.policy.inference_first import InferenceFirst
    from skerry_agent.policy.live_latency import LatencyReader
    from skerry_agent.training.bundle import TrainingBundles
    from skerry_agent.training.priority import IdleThread
    from skerry_agent.training.process import NICE
    from skerry_agent.training.worker import CampaignWorker, PauseGate
    from skerry_agent.trust.keyring import slot_keys
    from skerry_agent.update.slots import read_pointer, read_slot

    layout = AgentLayout(root)
    config = load_config(layout)
    verifier = slot_keys(layout, config)
    reader = LatencyReader(AgentLayout(latency_of).latency_file)
    guard = InferenceFirst(limit_ms=config.training_p99_ms, factor=config.training_p99_factor)

    def must_wait() -> bool:
        return policy and guard.must_wait(reader.read(), time.monotonic())

    if policy:
        os.nice(NICE)
        keep_off_serving(config)
    bundles = TrainingBundles(layout, verifier)
    worker = CampaignWorker(
        config.device_id,
        bundles,
        LabelledStore(layout.labelled, config.labelled_capacity),
        PauseGate(layout.run / "pause-training", lambda: False, inference_first=must_wait),
        run=IdleThread().run if policy else None,
    )
    pointer = read_pointer(layout)
    if pointer is None:
        raise SystemExit("no release")
    content = read_slot(layout, pointer.slot, verifier)
    parameters = (content.folder / "parameters.pb").read_bytes()
    number = 0
    while True:
        number += 1
        reply = worker.train(
            TrainInstruction(
                campaign_id="benchmark",
                round=number,
                task=content.manifest.task,
                train_step_sha256=content.manifest.train_step_sha256.hex(),
                local_epochs=1,
                batch_size=BATCH,
                learning_rate=1e-4,
                proximal_mu=0.0,
                minimum_samples=2,
                deadline_ms=600_000,
                seed=number,
                parameters=parameters,
            )
        )
        print(reply.steps, flush=True)


def download_for_ever(root: Path, *, policy: bool) -> None:
    """A download as control does it: chunks over a socket, each hashed and written; a line for each file."""
    import hashlib

    from skerry_agent.isolation import keep_off_serving
    from skerry_agent.update.download import FileDownload
    from skerry_contract.v1.release_pb2 import FileEntry

    if policy:
        keep_off_serving(load_config(AgentLayout(root)))
    data = np.random.default_rng(0).bytes(DOWNLOAD_BYTES)
    chunks = [data[at : at + CHUNK_BYTES] for at in range(0, len(data), CHUNK_BYTES)]
    entry = FileEntry(
        path="file",
        size=len(data),
        sha256=hashlib.sha256(data).digest(),
        chunk_bytes=CHUNK_BYTES,
        chunk_sha256=[hashlib.sha256(chunk).digest() for chunk in chunks],
    )
    listener = socket.create_server(("127.0.0.1", 0))

    def send() -> None:
        connection, _ = listener.accept()
        due = time.monotonic()
        while True:
            for chunk in chunks:
                time.sleep(max(0.0, due - time.monotonic()))
                due = max(due, time.monotonic() - 1.0) + CHUNK_BYTES / DOWNLOAD_RATE
                connection.sendall(chunk)

    threading.Thread(target=send, daemon=True).start()
    source = socket.create_connection(listener.getsockname()).makefile("rb")
    folder = root / ("download" if policy else "download-plain")
    folder.mkdir()
    while True:
        download = FileDownload(entry, folder)
        download.open()
        for index in range(len(chunks)):
            download.accept(index, source.read(CHUNK_BYTES))
        if not download.verify():
            raise SystemExit("the download is not what was sent")
        download.discard()
        print(1, flush=True)


class Worker:
    """A child process that works only in its turns.

    Attributes:
        done: What it has done in its turns: steps, files.
        seconds: Time of its turns.
    """

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process
        self.done = 0
        self.seconds = 0.0

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Let it work; counts what it finished."""
        started = time.monotonic()
        self._process.send_signal(signal.SIGCONT)
        try:
            yield
        finally:
            self._process.send_signal(signal.SIGSTOP)
            self.seconds += time.monotonic() - started
            self.done += self.finished()

    def finished(self, wait_s: float = 0.0) -> int:
        """What it finished since the last call."""
        done = 0
        stream: Any = self._process.stdout
        while select.select([stream], [], [], 0.0 if done else wait_s)[0]:
            line = stream.readline()
            if not line:
                raise SystemExit("a worker has ended")
            done += int(line)
        return done

    def warm_up(self) -> None:
        """Wait for its first result, then forget it."""
        with self.turn():
            if not self.finished(wait_s=120.0):
                raise SystemExit("a worker does not work")
        self.done, self.seconds = 0, 0.0


@contextmanager
def child(command: list[str]) -> Iterator[subprocess.Popen[bytes]]:
    """A process that ends with the block."""
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, bufsize=0) as process:
        try:
            yield process
        finally:
            process.kill()


def main() -> None:
    """``busy_device.py train|download DATA_DIR LATENCY_OF policy|plain``: one worker."""
    kind, root, latency_of, policy = sys.argv[1:]
    if kind == "train":
        train_for_ever(Path(root), policy=policy == "policy", latency_of=Path(latency_of))
    download_for_ever(Path(root), policy=policy == "policy")


if __name__ == "__main__":
    main()
