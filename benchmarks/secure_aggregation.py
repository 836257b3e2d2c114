"""Secure aggregation: time and bytes of a device and of the control plane, beside updates in the clear.

``python benchmarks/secure_aggregation.py [--json FILE] [--devices N ...] [--parameters N ...]``

Every device and the control plane run in this process, one after the other, without a network; training is not done.
Times are CPU times of one core, a device's the median over the devices, its bytes those of all five questions and
answers. In each session 30 % of the devices are lost before they send their masked vector, so that the control plane
must recover their masks. Before anything is printed, the sum must be the one in the clear to the rounding of the ring.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from collections import defaultdict
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"
os.environ["OPENBLAS_NUM_THREADS"] = "1"

import numpy as np

from skerry_agent.identity.certificate import make_request, new_key, read_certificate, request_to_pem
from skerry_agent.identity.identity_files import Identity
from skerry_agent.training.secure_aggregation import SecureAggregationWorker
from skerry_contract.campaign import TrainInstruction, TrainReply
from skerry_contract.secagg_masks import apply_mask
from skerry_contract.secagg_ring import Ring, VectorLayout, decode_sum
from skerry_contract.secagg_roster import load_authority
from skerry_contract.secure_aggregation import (
    CONFIRM,
    KEYS,
    MASKED,
    SECAGG_KINDS,
    SHARES,
    UNMASK,
    KeysInstruction,
)
from skerry_contract.tensors import encode_bundle
from skerry_server.federation.secure_aggregation.session import SecureSession
from skerry_server.fleet.authority import CertificateAuthority

BOUND = 8.0
#: Goals: speed of masking; bytes sent by a device of a million parameters, relative to float32 in the clear.
MASK_GB_S, UP_FACTOR = 0.5, 1.05


class Fleet:
    """Devices that all move every parameter by the same amount."""

    def __init__(self, count: int, parameters: int) -> None:
        now = datetime(2030, 1, 1, tzinfo=UTC)
        self.authority = CertificateAuthority.create(now=now)
        self.model = {"w": np.zeros(parameters, np.float32)}
        self.wire = encode_bundle(self.model)
        self._trained = encode_bundle({"w": np.full(parameters, 0.125, np.float32)})
        self.workers: dict[str, SecureAggregationWorker] = {}
        for index in range(count):
            name, key = f"device-{index:04d}", new_key()
            request = request_to_pem(make_request(key, name)).encode()
            pem = self.authority.issue_device(request, device_id=name, now=now)
            own = Identity(key, Path("key.pem"), pem, self.authority.certificate_pem, read_certificate(pem))
            self.workers[name] = SecureAggregationWorker(name, lambda own=own: own, self._train)  # type: ignore[misc]

    def _train(self, instruction: TrainInstruction) -> TrainReply:
        return TrainReply(
            device_id="any",
            examples=1,
            steps=1,
            seconds=0.0,
            loss=0.0,
            validation_examples=0,
            validation_accuracy=0.0,
            validation_loss=0.0,
            parameters=self._trained,
        )


def session(count: int, parameters: int) -> dict[str, float]:
    """Figures of one session; times in ms, sizes in kB, without the model that is sent down."""
    fleet = Fleet(count, parameters)
    terms = KeysInstruction(
        campaign_id="benchmark",
        round=1,
        session="0" * 32,
        bits=32,
        bound=BOUND,
        weight_bound=1,
        minimum=3,
        lifetime_ms=86_400_000,
    )
    server = SecureSession(terms, VectorLayout.of(fleet.model), load_authority(fleet.authority.certificate_pem))
    instruction = TrainInstruction(
        campaign_id="benchmark",
        round=1,
        task="t",
        train_step_sha256="0" * 64,
        local_epochs=1,
        batch_size=1,
        learning_rate=0.1,
        proximal_mu=0.0,
        minimum_samples=0,
        deadline_ms=60_000,
        seed=0,
        parameters=fleet.wire,
    )
    takes = {
        KEYS: (server.take_keys, server.close_keys),
        SHARES: (server.take_shares, server.close_shares),
        MASKED: (server.take_masked, server.close_masked),
        CONFIRM: (server.take_confirm, server.close_confirm),
        UNMASK: (server.take_unmask, server.close_unmask),
    }
    device_ms: dict[str, list[float]] = defaultdict(list)
    server_ms: dict[str, float] = defaultdict(float)
    down = up = 0
    names = list(fleet.workers)
    for kind in SECAGG_KINDS:
        take, close = takes[kind]
        if kind == MASKED:
            del names[: count * 3 // 10]
        same = _same_question(server, kind, terms, instruction, fleet.model)
        for name in names:
            started = time.thread_time()
            question = server.confirm_fields(name) if kind == CONFIRM else same
            asked = time.thread_time()
            answer = fleet.workers[name].handle(kind, question)
            answered = time.thread_time()
            take(name, answer)
            server_ms[kind] += (time.thread_time() - answered + asked - started) * 1000
            device_ms[name].append((answered - asked) * 1000)
            if name == names[-1]:
                down += _size({key: value for key, value in question.items() if key != "parameters"})
                up += _size(answer)
        started = time.thread_time()
        close()
        server_ms[kind] += (time.thread_time() - started) * 1000
    values, counts = decode_sum(server.total, server.ring, bound=BOUND, devices=len(names))
    if counts["weight"] != len(names):
        raise AssertionError(f"a weight of {counts['weight']} for {len(names)} devices")
    np.testing.assert_allclose(values, 0.125 * len(names), atol=len(names) * BOUND / server.ring.levels)
    return {
        "device_ms": statistics.median(sum(device_ms[name]) for name in names),
        "server_ms": sum(server_ms.values()),
        "unmask_ms": server_ms[UNMASK],
        "up_kb": up / 1000,
        "down_kb": down / 1000,
        "plain_kb": len(fleet.wire) / 1000,
    }


def _same_question(
    server: SecureSession, kind: str, terms: KeysInstruction, instruction: TrainInstruction, model: Mapping[str, Any]
) -> dict[str, Any]:
    if kind == MASKED:
        return server.masked_fields(instruction, model)
    same: dict[str, Any] = {KEYS: terms.to_fields, SHARES: server.shares_fields, UNMASK: server.unmask_fields}
    return dict(same[kind]()) if kind in same else {}


def _size(fields: Mapping[str, Any]) -> int:
    return sum(len(value) if isinstance(value, bytes | str) else 8 for value in fields.values())


def mask_row() -> dict[str, Any]:
    """How fast a mask is made and added."""
    ring = Ring(32, 100)
    vector = ring.zeros(1_000_000)
    times: list[float] = []
    for _ in range(15):
        started = time.thread_time()
        apply_mask(vector, os.urandom(32), ring)
        times.append(time.thread_time() - started)
    speed = vector.nbytes / statistics.median(times) / 1e9
    return _row("a mask of 1M elements, made and added", "GB/s", speed, {}, None, f">= {MASK_GB_S}", speed >= MASK_GB_S)


def _row(
    what: str,
    unit: str,
    ours: float,
    beside: dict[str, float],
    ratio: float | None,
    goal: str = "",
    holds: bool | None = None,
) -> dict[str, Any]:
    return {"what": what, "unit": unit, "ours": ours, "beside": beside, "ratio": ratio, "goal": goal, "holds": holds}


def rows_of(count: int, parameters: int) -> list[dict[str, Any]]:
    """Rows for one size."""
    figures = session(count, parameters)
    size = f"{count} devices x {parameters / 1e6:g}M, 30 % lost"
    plain = {"float32 in the clear": figures["plain_kb"]}
    factor = figures["up_kb"] / figures["plain_kb"]
    large = {"goal": f"<= {UP_FACTOR} x", "holds": factor <= UP_FACTOR} if parameters >= 1_000_000 else {}
    return [
        _row(f"{size}: a device's computing", "ms", figures["device_ms"], {}, None),
        _row(f"{size}: the control plane's", "ms", figures["server_ms"], {"unmasking": figures["unmask_ms"]}, None),
        _row(f"{size}: sent by a device", "kB", figures["up_kb"], plain, factor, **large),  # type: ignore[arg-type]
        _row(f"{size}: received by a device beside the model", "kB", figures["down_kb"], plain, None),
    ]


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--devices", type=int, nargs="*", default=[10, 50, 100])
    parser.add_argument("--parameters", type=int, nargs="*", default=[25_000, 1_000_000])
    arguments = parser.parse_args()
    rows = [mask_row()]
    for parameters in arguments.parameters:
        for count in arguments.devices:
            rows += rows_of(count, parameters)
    for item in rows:
        beside = ", ".join(f"{name} {value:.0f}" for name, value in item["beside"].items())
        ratio = "" if item["ratio"] is None else f"{item['ratio']:.2f}x"
        verdict = {True: "holds", False: "MISSED", None: ""}[item["holds"]]
        print(f"{item['what']:<72} {item['ours']:9.2f} {item['unit']:<5} ({beside}) {ratio} {item['goal']} {verdict}")
    report = {
        "name": "secure_aggregation",
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {platform.platform()}",
        "versions": {name: version(name) for name in ("numpy", "cryptography")},
        "load": os.getloadavg()[0],
        "rows": rows,
        "skipped": [],
    }
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
