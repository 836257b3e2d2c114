"""A control plane's data directory with a fleet in it: rows as the other parts write them, without their processes."""

from __future__ import annotations

import hashlib
import random
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy.orm import Session

from skerry_contract.manifest import bundle_digest, describe_folder
from skerry_contract.signing import RELEASE
from skerry_contract.v1.release_pb2 import ReleaseManifest, Variant
from skerry_server import server_identity
from skerry_server.audit import ledger
from skerry_server.clock import now_ms
from skerry_server.config import ServerConfig, ServerLayout
from skerry_server.context import ServerContext, open_context
from skerry_server.store.tables import (
    ApiToken,
    Base,
    Campaign,
    CampaignParticipant,
    CampaignRound,
    Candidate,
    ChampionEntry,
    Cohort,
    Device,
    DriftWindow,
    Fitness,
    Incident,
    Job,
    LabelRow,
    Policy,
    Release,
    Rollout,
    RolloutDevice,
)
from skerry_server.trust import service as trust

#: Role to the token that has it.
TOKENS = {role: f"token-of-{role}" for role in ("viewer", "operator", "approver", "admin")}
FEATURES = ("ink", "rows", "columns", "mean", "contrast", "edges", "symmetry", "centre-x", "centre-y", "stroke")


@dataclass(frozen=True)
class Seeded:
    """A data directory and the context that is open on it."""

    folder: Path
    context: ServerContext
    url: str


def make_context(folder: Path) -> Seeded:
    """An empty control plane with one token per role and the cohort "all"; close its context."""
    layout = ServerLayout(folder)
    for path in (folder, layout.keys, layout.broker, layout.run):
        path.mkdir(parents=True, exist_ok=True)
    config = write_config(layout)
    layout.admin_token.write_text(TOKENS["admin"] + "\n")
    for password in (layout.server_password, layout.operator_password):
        password.write_text("a-password-of-mqtt")
    server_identity.ensure(config, layout)
    trust.ensure(layout, config.trust)
    context = open_context(folder)
    Base.metadata.create_all(context.database.engine)
    with context.database.transaction() as session:
        session.add(Cohort(id="all", name="all", selector={}, created_ms=now_ms()))
        for role, token in TOKENS.items():
            digest = hashlib.sha256(token.encode()).hexdigest()
            session.add(ApiToken(token_sha256=digest, name=f"the-{role}", role=role, created_ms=now_ms()))
    return Seeded(folder, context, f"http://127.0.0.1:{config.api_port}")


def write_config(layout: ServerLayout) -> ServerConfig:
    """Write a configuration with ports that are free now."""
    names = [name for name, field in ServerConfig.model_fields.items() if field.is_required()]
    config = ServerConfig.model_validate(dict(zip(names, free_ports(len(names)), strict=True)))
    layout.config.write_text(config.model_dump_json())
    return config


def free_ports(count: int) -> list[int]:
    """Ports that are free now."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [int(each.getsockname()[1]) for each in sockets]
    finally:
        for each in sockets:
            each.close()


def add_device(session: Session, device_id: str, **columns: Any) -> Device:
    """A device that was seen just now."""
    defaults: dict[str, Any] = {
        "enrolled_ms": now_ms() - 3_600_000,
        "online": True,
        "last_seen_ms": now_ms(),
        "device_class": "x86_64",
        "agent_version": "0.1.0",
    }
    device = Device(id=device_id, **(defaults | columns))
    session.add(device)
    return device


def add_release(session: Session, context: ServerContext, number: int, **columns: Any) -> Release:
    """Release ``digits-<number>`` with a signed manifest of one small file, and the candidate that it was."""
    folder = context.layout.root / f"bundle-{number}"
    folder.mkdir(exist_ok=True)
    (folder / "infer.onnx").write_bytes(f"graph {number}".encode())
    entries = list(describe_folder(folder))
    at_ms = int(columns.pop("created_ms", now_ms()))
    manifest = ReleaseManifest(
        release_id=f"digits-{number}",
        sequence=number,
        task="digits",
        bundle_sha256=bundle_digest(entries),
        files=entries,
        variants=[Variant(name="fp32", path="infer.onnx", golden_tolerance=0.001)],
        created_unix_ms=at_ms,
    )
    defaults: dict[str, Any] = {
        "task": "digits",
        "origin": "central" if number == 1 else "federated",
        "parent_release": f"digits-{number - 1}" if number > 1 else "",
        "metrics": {"accuracy": 0.88 + 0.02 * number, "accuracy_int8_x86": 0.875 + 0.02 * number},
    }
    values = defaults | columns
    session.add(
        Candidate(
            id=f"candidate-{number}",
            task="digits",
            origin=values["origin"],
            state="released",
            parameters_sha256="0" * 64,
            metrics=values["metrics"],
            gates={"gates": [{"name": "accuracy", "passed": True, "value": 0.9, "limit": 0.8, "detail": ""}]},
            created_ms=at_ms - 5_000,
        )
    )
    release = Release(
        id=f"digits-{number}",
        sequence=number,
        candidate_id=f"candidate-{number}",
        bundle_sha256=manifest.bundle_sha256.hex(),
        envelope=context.signer.sign(RELEASE, manifest.SerializeToString()).SerializeToString(),
        approved_version=number,
        created_ms=at_ms,
        **values,
    )
    session.add(release)
    return release


def add_champion(session: Session, release_id: str, *, at_ms: int, previous: str = "") -> None:
    """An entry of the ledger of champions."""
    session.add(
        ChampionEntry(
            task="digits", release_id=release_id, previous_release=previous, reason="rollout finished", at_ms=at_ms
        )
    )


def add_fitness(session: Session, device_id: str, release_id: str, *, p50_us: float = 31.0) -> None:
    """A fitness certificate: int8-x86 is chosen, float32 takes 70 us."""
    form = {"backend": "onnxruntime", "rung": 0, "tried": True, "correct": True, "worst_difference": 0.0, "detail": ""}
    forms = [
        {**form, "variant": "fp32", "p50_us": 70.0, "p99_us": 90.0, "size": 150_000, "load_us": 2e3, "chosen": False},
        {
            **form,
            "variant": "int8-x86",
            "p50_us": p50_us,
            "p99_us": 44.0,
            "size": 50_000,
            "load_us": 9e2,
            "chosen": True,
        },
    ]
    profile = {
        "device_class": "x86_64",
        "cpu": "Some CPU",
        "isa": ["avx2"],
        "cores": 4,
        "memory_bytes": 8 << 30,
        "accelerators": [],
        "runtimes": {"onnxruntime": "1.31.1"},
        "power_mode": "",
    }
    session.add(
        Fitness(
            device_id=device_id,
            release_id=release_id,
            task="digits",
            profile_sha256="5a" * 32,
            profile=profile,
            forms=forms,
            measured_ms=now_ms() - 30_000,
            received_ms=now_ms() - 20_000,
            certificate=b"",
        )
    )


def add_rollout(session: Session, rollout_id: str, release_id: str, states: dict[str, str], **columns: Any) -> Rollout:
    """A rollout; ``states`` maps each device to its state, the first of them is the canary."""
    at_ms = int(columns.pop("created_ms", now_ms() - 40_000))
    defaults: dict[str, Any] = {"state": "fleet", "detail": "waits for the other devices to commit the release"}
    rollout = Rollout(
        id=rollout_id,
        release_id=release_id,
        task="digits",
        cohort_id="all",
        canary_percent=10,
        probation_ms=30_000,
        created_by="the-operator",
        created_ms=at_ms,
        updated_ms=int(columns.pop("updated_ms", at_ms + 20_000)),
        **(defaults | columns),
    )
    session.add(rollout)
    session.flush()
    for index, (device_id, state) in enumerate(states.items()):
        stage = "canary" if index == 0 else "fleet"
        session.add(RolloutDevice(rollout_id=rollout_id, device_id=device_id, stage=stage, state=state))
    return rollout


def add_campaign(session: Session, campaign_id: str, accuracies: list[float], **columns: Any) -> Campaign:
    """A campaign with one committed round per accuracy; round n has n times ``metrics`` and ``epsilon``."""
    figures, epsilon = columns.pop("metrics", {}), columns.pop("epsilon", None)
    at_ms = int(columns.pop("created_ms", now_ms() - 120_000))
    defaults: dict[str, Any] = {
        "base_release": "digits-1",
        "strategy": "fedavg",
        "state": "finished",
        "settings": {"rounds": len(accuracies), "local_epochs": 2},
    }
    campaign = Campaign(
        id=campaign_id,
        task="digits",
        cohort_id="all",
        created_by="the-operator",
        created_ms=at_ms,
        updated_ms=at_ms,
        **(defaults | columns),
    )
    session.add(campaign)
    session.flush()
    for number, accuracy in enumerate(accuracies, start=1):
        session.add(
            CampaignRound(
                campaign_id=campaign_id,
                number=number,
                invited=8,
                accepted=7,
                accuracy=accuracy,
                loss=1 - accuracy,
                seconds=1.5,
                parameters_sha256="0" * 64,
                metrics={name: value * number for name, value in figures.items()},
                privacy={} if epsilon is None else {"mode": "central", "epsilon": epsilon * number, "delta": 1e-5},
                committed_ms=at_ms + number * 2_000,
            )
        )
    session.add(CampaignParticipant(campaign_id=campaign_id, device_id="press-01", state="accepted"))
    return campaign


def add_incident(session: Session, incident_id: str, **columns: Any) -> Incident:
    """An incident that waits for a decision."""
    at_ms = int(columns.pop("opened_ms", now_ms() - 90_000))
    defaults: dict[str, Any] = {
        "kind": "drift",
        "task": "digits",
        "release_id": "digits-1",
        "state": "proposed",
        "severity": "act",
        "detail": "contrast, stroke and 2 more changed; 2 of the last 3 looks flagged, 2 needed",
        "device_ids": ["press-01"],
    }
    incident = Incident(id=incident_id, opened_ms=at_ms, updated_ms=at_ms, **(defaults | columns))
    session.add(incident)
    return incident


def add_drift(
    session: Session, device_id: str, release_id: str, values: dict[str, float], *, status: str, window: int = 1
) -> None:
    """A judged window; ``values`` maps features to their corrected PSI."""

    def severity(psi: float) -> str:
        limits = (("critical", 0.25), ("act", 0.1), ("warn", 0.05), ("info", 0.02))
        return next((name for name, limit in limits if psi >= limit), "none")

    features = {
        name: {
            "psi": psi + 0.01,
            "psi_corrected": psi,
            "p": 0.5,
            "q": 0.001 if psi > 0.05 else 0.6,
            "severity": severity(psi),
            "flagged": psi > 0.05 and status == "drift",
        }
        for name, psi in values.items()
    }
    session.add(
        DriftWindow(
            device_id=device_id,
            boot_id="boot",
            window=window,
            release_id=release_id,
            edges_sha256="e" * 64,
            started_ms=now_ms() - 60_000,
            ended_ms=now_ms() - 20_000,
            rows=400,
            body=b"",
            received_ms=now_ms(),
            verdict={"status": status, "features": features},
            judged=True,
        )
    )


def add_labels(session: Session, device_id: str, release_id: str, *, labelled: int, correct: int) -> None:
    """A label report."""
    session.add(
        LabelRow(device_id=device_id, release_id=release_id, at_ms=now_ms(), labelled=labelled, correct=correct)
    )


def add_job(session: Session, job_id: str, **columns: Any) -> Job:
    """A job that waits."""
    defaults: dict[str, Any] = {"kind": "train", "payload": {"task": "digits"}, "state": "queued", "attempts": 0}
    job = Job(id=job_id, created_ms=int(columns.pop("created_ms", now_ms())), **(defaults | columns))
    session.add(job)
    return job


def seed_fleet(seeded: Seeded) -> None:
    """A busy afternoon: two releases, a rollout half way, drift on three devices, an incident, a campaign."""
    chance = random.Random(7)
    minute = 60_000
    now = now_ms()
    names = [f"press-{index:02d}" for index in range(1, 9)]
    drifting = set(names[:3])
    with seeded.context.database.transaction() as session:
        session.add(Cohort(id="cohort-north", name="north", selector={"site": "north"}, created_ms=now))
        for index, name in enumerate(names):
            site = "north" if index % 2 else "south"
            done = index in (0, 4)
            status, chunks = ("committed", 0) if done or index == 7 else ("downloading", 20 + 9 * index)
            if index == 5:
                status, chunks = "probation", 0
            if index == 6:
                status, chunks = "rolled_back", 0
            add_device(
                session,
                name,
                online=index != 7,
                last_seen_ms=now - (47 * minute if index == 7 else 2_000),
                labels={"site": site, "line": str(index % 3 + 1)},
                active_release="digits-2" if done else "digits-1",
                active_variant="int8-x86",
                target_release="digits-2",
                update_status=status,
                update_detail="golden output differs: largest error 0.41" if index == 6 else "",
                chunks_done=chunks,
                chunks_total=120 if chunks else 0,
                labelled_samples=180 + 31 * index,
                health={"latency_p50_us": 210 + 11 * index, "latency_p99_us": 840 + 190 * index, "requests": 4000},
            )
        add_release(session, seeded.context, 1, created_ms=now - 70 * minute)
        add_release(
            session,
            seeded.context,
            2,
            created_ms=now - 3 * minute,
            metrics={"accuracy": 0.947, "accuracy_int8_x86": 0.943},
        )
        add_champion(session, "digits-1", at_ms=now - 62 * minute)
        for name in names[:3]:
            add_fitness(session, name, "digits-1")
        for index, name in enumerate(names):
            running = "digits-2" if index in (0, 4) else "digits-1"
            correct = 171 if name in drifting else 232
            add_labels(session, name, running, labelled=250, correct=correct + chance.randrange(8))
            values = {feature: chance.random() * 0.018 for feature in FEATURES}
            if name in drifting:
                values |= {"contrast": 0.31 + index * 0.04, "stroke": 0.18, "ink": 0.12, "mean": 0.07, "edges": 0.035}
            add_drift(session, name, running, values, status="drift" if name in drifting else "ok")
        add_rollout(
            session,
            "rollout-5b1c90d2a3f4",
            "digits-2",
            dict(
                zip(
                    names,
                    ("healthy", "instructed", "instructed", "instructed", "healthy", "instructed", "failed", "pending"),
                    strict=True,
                )
            ),
            created_ms=now - 95_000,
        )
        add_rollout(
            session,
            "rollout-11aa22bb33cc",
            "digits-1",
            dict.fromkeys(names, "healthy"),
            state="finished",
            detail="",
            created_ms=now - 66 * minute,
            updated_ms=now - 62 * minute,
        )
        add_campaign(
            session, "campaign-3f9c2a1b7d4e", [0.903, 0.916, 0.924, 0.931, 0.935], created_ms=now - 50 * minute
        )
        add_campaign(
            session,
            "campaign-8e21c0447aa1",
            [0.884, 0.915, 0.936, 0.947],
            strategy="fedprox",
            created_ms=now - 6 * minute,
            incident_id="incident-4c00d1e2f3a4",
            candidate_id="candidate-2",
        )
        add_campaign(
            session,
            "campaign-c4d5e6f70819",
            [0.941, 0.949],
            strategy="fedprox",
            state="running",
            base_release="digits-2",
            settings={
                "rounds": 5,
                "privacy": {"mode": "central", "noise_multiplier": 2.0},
                "round_deadline_ms": 120_000,
            },
            created_ms=now - 30_000,
            approved_by="the-approver",
            metrics={
                "bytes_down": 700_000.0,
                "bytes_up": 90_000.0,
                "energy_wh": 0.02,
                "personal_devices": 3.5,  # times the round's number: 7 in the second
                "personal_accuracy": 0.4375,
                "personal_accuracy_global": 0.375,
                "personal_gaining": 2.5,
                "personal_losing": 0.5,
            },
            epsilon=0.61,
        )
        for name, code, reason in (
            ("press-02", "", ""),
            ("press-03", "", ""),
            ("press-04", "hot", "71 °C, at most 65 °C wanted"),
            ("press-05", "hot", "68 °C, at most 65 °C wanted"),
            ("press-06", "outside-window", "14:05 there, 22:00 to 06:00 wanted"),
            ("press-07", "quarantined", "quarantined: an incident about the quality of its data is open"),
            ("press-08", "offline", "offline"),
        ):
            session.add(
                CampaignParticipant(
                    campaign_id="campaign-c4d5e6f70819",
                    device_id=name,
                    state="excluded" if code else "accepted",
                    reason_code=code,
                    reason=reason,
                    rounds=0 if code else 2,
                    last_round=0 if code else 2,
                )
            )
        add_incident(session, "incident-9d3e5a7c1b20", device_ids=sorted(drifting))
        add_incident(
            session,
            "incident-4c00d1e2f3a4",
            state="canary",
            severity="critical",
            policy="auto-digits",
            detail="press-02: contrast, stroke changed; the e-detector crossed its threshold",
            device_ids=["press-02", "press-03"],
            campaign_id="campaign-8e21c0447aa1",
            rollout_id="rollout-5b1c90d2a3f4",
            opened_ms=now - 9 * minute,
        )
        add_incident(
            session,
            "incident-77aa88bb99cc",
            kind="data-quality",
            state="resolved",
            severity="warn",
            detail="press-05: 3.1 % of rows with missing values, usual 0.0 %",
            device_ids=["press-05"],
            opened_ms=now - 40 * minute,
        )
        add_job(
            session,
            "job-campaign-c4d5e6f70819",
            state="running",
            attempts=1,
            kind="campaign",
            started_ms=now - 29_000,
            progress={"round": 2, "accuracy": 0.949, "phase": "collect"},
            created_ms=now - 30_000,
        )
        add_job(
            session,
            "job-2",
            state="done",
            attempts=1,
            kind="candidate",
            started_ms=now - 5 * minute,
            finished_ms=now - 5 * minute + 21_400,
            created_ms=now - 5 * minute,
        )
        add_job(
            session,
            "job-3",
            state="failed",
            attempts=5,
            kind="drift-report",
            error="attempt 5 of 5: killed by signal 9",
            started_ms=now - 11 * minute,
            finished_ms=now - 11 * minute + 3_000,
            created_ms=now - 12 * minute,
        )
        add_job(
            session,
            "job-4",
            state="done",
            attempts=1,
            started_ms=now - 72 * minute,
            finished_ms=now - 71 * minute,
            created_ms=now - 72 * minute,
        )
        session.add(Policy(name="auto-digits", task="digits", settings={"rounds": 4}, created_ms=now))
        for actor, action, subject, detail in (
            ("admin", "policy.set", "auto-digits", {"task": "digits", "enabled": True}),
            ("the-operator", "training.start", "job-4", {"task": "digits"}),
            ("the-approver", "release.publish", "digits-1", {"candidate_id": "candidate-1", "sequence": 1}),
            (
                "the-operator",
                "rollout.start",
                "rollout-11aa22bb33cc",
                {"release": "digits-1", "devices": 8, "canary_percent": 10},
            ),
            ("system", "champion.promote", "digits-1", {"task": "digits", "reason": "rollout finished"}),
            (
                "drift-detector",
                "incident.open",
                "incident-4c00d1e2f3a4",
                {"kind": "drift", "device": "press-02", "severity": "critical"},
            ),
            ("policy:auto-digits", "incident.approve", "incident-4c00d1e2f3a4", {"from": "proposed", "to": "approved"}),
            (
                "policy:auto-digits",
                "campaign.start",
                "campaign-8e21c0447aa1",
                {"task": "digits", "strategy": "fedprox"},
            ),
            ("policy:auto-digits", "rollout.start", "rollout-5b1c90d2a3f4", {"release": "digits-2", "devices": 8}),
            (
                "drift-detector",
                "incident.open",
                "incident-9d3e5a7c1b20",
                {"kind": "drift", "device": "press-01", "severity": "act"},
            ),
        ):
            ledger.append(session, actor=actor, action=action, subject=subject, detail=detail)
