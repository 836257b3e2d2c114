"""Inference while the device trains: the 99th percentile of its answers against that at rest.

``python benchmarks/inference_while_training.py [--json FILE] [--tasks NAME ...] [--turns N] [--seconds S]``

A real serving process answers single requests over its gRPC door, so many a second as ``--rate`` says, while a training
process works on a campaign without end. The training process has what :mod:`skerry_agent.training.process` gives to
campaigns: a thread of the class SCHED_IDLE, and the question before every step whether answers suffer. Beside it stands
the same trainer without either. Turns alternate: nobody trains, ours trains, the plain one trains; who has no turn is
stopped by a signal. Before anything is timed, the door's scores must equal those of the exported graph.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"
os.environ["OPENBLAS_NUM_THREADS"] = "1"

import grpc
import numpy as np
import numpy.typing as npt
import onnxruntime

from skerry_agent.config import AgentConfig, AgentLayout
from skerry_agent.training.labelled_store import LabelledStore
from skerry_contract.campaign import TrainInstruction
from skerry_contract.oip import open_inference_pb2 as oip

Floats = npt.NDArray[np.float32]
GOAL = 1.5
#: Samples that the device trains on; a round of one epoch.
SAMPLES = 256
BATCH = 32
#: Beginning of a turn that is not counted (seconds): the other trainer's step ends, caches fill.
SETTLE_S = 0.5
REST, OURS, PLAIN = "at rest", "training", "training without policy"


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
    few = data.take(np.arange(64))
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


def train_for_ever(root: Path, *, policy: bool) -> None:
    """The training process: a line on standard output for each round, until it is killed."""
    from skerry_agent.config import load_config
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
    reader = LatencyReader(layout.latency_file)
    guard = InferenceFirst(limit_ms=config.training_p99_ms, factor=config.training_p99_factor)

    def must_wait() -> bool:
        return policy and guard.must_wait(reader.read(), time.monotonic())

    if policy:
        os.nice(NICE)
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


class Trainer:
    """A training process that runs only in its turns."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process
        self.steps = 0
        self.seconds = 0.0

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Let it train; counts the steps of the rounds that ended."""
        started = time.monotonic()
        self._process.send_signal(signal.SIGCONT)
        try:
            yield
        finally:
            self._process.send_signal(signal.SIGSTOP)
            self.seconds += time.monotonic() - started
            self.steps += self.finished()

    def finished(self, wait_s: float = 0.0) -> int:
        """Steps of the rounds that ended since the last call."""
        steps = 0
        stream: Any = self._process.stdout
        while select.select([stream], [], [], 0.0 if steps else wait_s)[0]:
            line = stream.readline()
            if not line:
                raise SystemExit("the training process has ended")
            steps += int(line)
        return steps


@contextmanager
def child(command: list[str]) -> Iterator[subprocess.Popen[bytes]]:
    """A process that ends with the block."""
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, bufsize=0) as process:
        try:
            yield process
        finally:
            process.kill()


def open_door(layout: AgentLayout, task: str, x: Floats) -> Callable[[], Floats]:
    """One request over the gRPC door of the serving process, when it is open."""
    deadline = time.monotonic() + 60
    while not layout.serving_file.exists():
        if time.monotonic() > deadline:
            raise SystemExit("the serving process did not start")
        time.sleep(0.05)
    port = json.loads(layout.serving_file.read_text())["grpc_port"]
    request = oip.ModelInferRequest(model_name=task, raw_input_contents=[x.tobytes()])
    request.inputs.add(name="input", datatype="FP32", shape=x.shape)
    data = request.SerializeToString()
    stub = grpc.insecure_channel(f"127.0.0.1:{port}").unary_unary("/inference.GRPCInferenceService/ModelInfer")

    def call() -> Floats:
        reply = oip.ModelInferResponse.FromString(stub(data, timeout=20))
        return np.frombuffer(reply.raw_output_contents[0], dtype=np.float32)[None]

    return call


def one_turn(call: Callable[[], Floats], seconds: float, rate: float) -> list[float]:
    """Milliseconds of each request of a turn, the settling ones left out; sent at fixed times if the door keeps up."""
    times: list[float] = []
    began = due = time.perf_counter()
    while due < began + seconds:
        time.sleep(max(0.0, due - time.perf_counter()))
        started = time.perf_counter()
        call()
        if started - began > SETTLE_S:
            times.append((time.perf_counter() - started) * 1000)
        due = max(due + 1 / rate, time.perf_counter() - 1 / rate)
    return times


def measure(task: str, root: Path, turns: int, seconds: float, rate: float) -> dict[str, Any]:
    """The row of one task."""
    layout = install(task, root)
    me = [sys.executable, __file__, "--train", str(root)]
    with ExitStack() as stack:
        stack.enter_context(child([sys.executable, "-m", "skerry_agent.serving", str(root)]))
        with np.load(_some_input(layout)) as arrays:
            x: Floats = arrays["x"]
            wanted = arrays["scores"]
        call = open_door(layout, task, x)
        if not np.allclose(call(), wanted, atol=0.05 * float(np.abs(wanted).max())):  # INT8 may answer
            raise SystemExit(f"{task}: the door gives other scores than the exported graph")
        trainers = {
            name: Trainer(stack.enter_context(child(command)))
            for name, command in ((OURS, me), (PLAIN, [*me, "--plain"]))
        }
        for trainer in trainers.values():
            with trainer.turn():
                if not trainer.finished(wait_s=60.0):
                    raise SystemExit("the training process does not train")
            trainer.steps, trainer.seconds = 0, 0.0
        times: dict[str, list[float]] = {REST: [], OURS: [], PLAIN: []}
        for _ in range(turns):
            times[REST] += one_turn(call, seconds, rate)
            for name, trainer in trainers.items():
                with trainer.turn():
                    times[name] += one_turn(call, seconds, rate)
    p99 = {name: float(np.percentile(values, 99)) for name, values in times.items()}
    p50 = {name: float(np.percentile(values, 50)) for name, values in times.items()}
    factor = p99[OURS] / p99[REST]
    speed = {name: trainer.steps / trainer.seconds for name, trainer in trainers.items()}
    return {
        "what": f"{task}: p99 of answers while training",
        "unit": "ms",
        "ours": p99[OURS],
        "beside": {REST: p99[REST], PLAIN: p99[PLAIN]},
        "ratio": factor,
        "goal": f"<= {GOAL} x at rest",
        "holds": factor <= GOAL,
        "details": {
            **{f"p50 {name}": value for name, value in p50.items()},
            **{f"steps/s {name}": value for name, value in speed.items()},
            "requests": float(sum(map(len, times.values()))),
        },
    }


def _some_input(layout: AgentLayout) -> Path:
    """One labelled sample and the scores of the exported graph for it, in a file."""
    store = LabelledStore(layout.labelled, 10_000)
    x = store.load()[0][:1]
    store.close()
    session = onnxruntime.InferenceSession(layout.slots / "a" / "infer.onnx", providers=["CPUExecutionProvider"])
    scores = session.run(["scores"], {"input": x})[0]
    path = layout.root / "input.npz"
    np.savez(path, x=x, scores=scores)
    return path


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", type=Path, help="write the result here")
    parser.add_argument("--tasks", nargs="*", default=["har", "fashion"])
    parser.add_argument("--turns", type=int, default=4, help="turns of each kind")
    parser.add_argument("--seconds", type=float, default=3.0, help="of one turn")
    parser.add_argument("--rate", type=float, default=100.0, help="requests a second")
    parser.add_argument("--train", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--plain", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.train:
        train_for_ever(arguments.train, policy=not arguments.plain)
        return
    rows: list[dict[str, Any]] = []
    for task in arguments.tasks:
        with tempfile.TemporaryDirectory(prefix="skerry-bench-") as folder:
            rows.append(measure(task, Path(folder), arguments.turns, arguments.seconds, arguments.rate))
    for row in rows:
        extra = {**row["beside"], **row["details"]}
        beside = ", ".join(f"{name} {value:.2f}" for name, value in extra.items())
        verdict = "holds" if row["holds"] else "MISSED"
        print(f"{row['what']:<44} {row['ours']:8.2f} ms  {row['ratio']:.2f}x  {row['goal']}  {verdict}  ({beside})")
    report = {
        "name": "inference_while_training",
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {platform.platform()}",
        "versions": {name: version(name) for name in ("numpy", "onnxruntime", "grpcio")},
        "load": os.getloadavg()[0],
        "rows": rows,
        "skipped": [],
    }
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
