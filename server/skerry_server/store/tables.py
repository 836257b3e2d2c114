"""Every table of the control plane.

Conventions: identifiers are text; moments are integer milliseconds since 1970 (``*_ms``); closed vocabularies are
text whose values are listed in the machine that owns them; ``JSON`` columns hold documents that no query looks into.
Changes of this file need an Alembic revision beside it.
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column


class Base(DeclarativeBase):
    """Root of the tables; names every constraint, so that migrations can find it."""

    metadata = sa.MetaData(
        naming_convention={
            "ix": "ix_%(column_0_label)s",
            "uq": "uq_%(table_name)s_%(column_0_name)s",
            "fk": "fk_%(table_name)s_%(column_0_name)s",
            "pk": "pk_%(table_name)s",
        }
    )
    type_annotation_map = {dict[str, Any]: sa.JSON, list[str]: sa.JSON, int: sa.BigInteger}


class Device(Base):
    """A device: what it is, what it reported last, what is wanted of it."""

    __tablename__ = "devices"

    id: Mapped[str] = mapped_column(primary_key=True)
    enrolled_ms: Mapped[int]
    revoked: Mapped[bool] = mapped_column(default=False)
    # Serial numbers (hexadecimal) of the newest certificate and of the one before, which holds until the newer one is
    # used; a certificate with another serial is not the device's.
    certificate_serial: Mapped[str] = mapped_column(default="")
    certificate_previous_serial: Mapped[str] = mapped_column(default="")
    certificate_not_after_ms: Mapped[int] = mapped_column(default=0)
    # Key of the device's Flower node (PEM, P-384); empty while it has none.
    node_public_key: Mapped[str] = mapped_column(default="")
    # "device", or "gateway": sums for the devices of its site and serves no model itself.
    kind: Mapped[str] = mapped_column(default="device")
    # What a gateway told last: "devices", "connected", "campaign_id", "round", "asked", "counted"; empty for a device.
    site_report: Mapped[dict[str, Any]] = mapped_column(default=dict)
    labels: Mapped[dict[str, Any]] = mapped_column(default=dict)
    device_class: Mapped[str] = mapped_column(default="")
    # Which devices are alike: skerry_contract.fitness.profile_digest, hexadecimal.
    profile_sha256: Mapped[str] = mapped_column(default="")
    agent_version: Mapped[str] = mapped_column(default="")
    # Presence.
    online: Mapped[bool] = mapped_column(default=False)
    boot_id: Mapped[str] = mapped_column(default="")
    last_seen_ms: Mapped[int] = mapped_column(default=0)
    # Reported state, newest only.
    reported_revision: Mapped[int] = mapped_column(default=0)
    reported_sequence: Mapped[int] = mapped_column(default=0)
    active_release: Mapped[str] = mapped_column(default="")
    active_variant: Mapped[str] = mapped_column(default="")
    target_release: Mapped[str] = mapped_column(default="")
    # Lower-case name of UpdateStatus without its prefix: "idle", "downloading", ...
    update_status: Mapped[str] = mapped_column(default="idle")
    update_detail: Mapped[str] = mapped_column(default="")
    reported_rollout: Mapped[str] = mapped_column(default="")
    chunks_done: Mapped[int] = mapped_column(default=0)
    chunks_total: Mapped[int] = mapped_column(default=0)
    # Unsigned 64-bit number as decimal text; empty while there is none.
    flower_node_id: Mapped[str] = mapped_column(default="")
    labelled_samples: Mapped[int] = mapped_column(default=0)
    ineligible_reason: Mapped[str] = mapped_column(default="")
    ineligible_code: Mapped[str] = mapped_column(default="")
    # What decides whether it may train, fields as in DeviceConditions, only those that were measured; and when.
    conditions: Mapped[dict[str, Any]] = mapped_column(default=dict)
    conditions_ms: Mapped[int] = mapped_column(default=0)
    # Updates of it that counted, in all campaigns; and when the newest one came.
    participations: Mapped[int] = mapped_column(default=0)
    last_participation_ms: Mapped[int] = mapped_column(default=0)
    # Last health report, fields as in HealthReport.
    health: Mapped[dict[str, Any]] = mapped_column(default=dict)
    # Desired state. Whoever changes a desired_* column adds one to desired_sequence;
    # the publisher sends it and sets published_sequence after the broker's acknowledgement.
    desired_release: Mapped[str] = mapped_column(default="")
    desired_rollout: Mapped[str] = mapped_column(default="")
    desired_probation_ms: Mapped[int] = mapped_column(default=0)
    desired_sequence: Mapped[int] = mapped_column(default=0)
    published_sequence: Mapped[int] = mapped_column(default=0)


class RevokedCertificate(Base):
    """A certificate that is refused until its end; the broker's revocation list is made from these."""

    __tablename__ = "revoked_certificates"

    serial: Mapped[str] = mapped_column(primary_key=True)
    device_id: Mapped[str]
    revoked_ms: Mapped[int]
    not_after_ms: Mapped[int]


class EnrollmentToken(Base):
    """A single-use token; only its SHA-256 is stored."""

    __tablename__ = "enrollment_tokens"

    token_sha256: Mapped[str] = mapped_column(primary_key=True)
    created_ms: Mapped[int]
    expires_ms: Mapped[int]
    created_by: Mapped[str]
    labels: Mapped[dict[str, Any]] = mapped_column(default=dict)
    used_by: Mapped[str] = mapped_column(default="")
    used_ms: Mapped[int] = mapped_column(default=0)


class ApiToken(Base):
    """An operator's token; only its SHA-256 is stored. Roles: viewer, operator, approver, admin."""

    __tablename__ = "api_tokens"

    token_sha256: Mapped[str] = mapped_column(primary_key=True)
    name: Mapped[str]
    role: Mapped[str]
    created_ms: Mapped[int]
    revoked: Mapped[bool] = mapped_column(default=False)


class Cohort(Base):
    """A named set of devices: those whose labels contain every pair of the selector. "all" selects everything."""

    __tablename__ = "cohorts"

    id: Mapped[str] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(unique=True)
    selector: Mapped[dict[str, Any]] = mapped_column(default=dict)
    created_ms: Mapped[int]


class Candidate(Base):
    """Parameters that may become a release. States: built, passed, rejected, released."""

    __tablename__ = "candidates"

    id: Mapped[str] = mapped_column(primary_key=True)
    task: Mapped[str]
    # "central" or "federated".
    origin: Mapped[str]
    state: Mapped[str]
    # Digest of the parameters (wire tensors) in the artifact store.
    parameters_sha256: Mapped[str]
    parent_release: Mapped[str] = mapped_column(default="")
    campaign_id: Mapped[str] = mapped_column(default="")
    incident_id: Mapped[str] = mapped_column(default="")
    bundle_sha256: Mapped[str] = mapped_column(default="")
    # Flat name -> number: accuracy, macro_f1, accuracy_int8_x86, int8_minus_fp32, size_int8_bytes, ...
    metrics: Mapped[dict[str, Any]] = mapped_column(default=dict)
    # {"gates": [{"name", "passed", "value", "limit", "detail"}]}
    gates: Mapped[dict[str, Any]] = mapped_column(default=dict)
    mlflow_run_id: Mapped[str] = mapped_column(default="")
    mlflow_model_version: Mapped[str] = mapped_column(default="")
    # Deltas of the bundle's files from those of the parent release, as the release builder measured them.
    deltas: Mapped[dict[str, Any]] = mapped_column(default=dict)
    created_ms: Mapped[int]


class Release(Base):
    """A signed bundle. States: available, withdrawn."""

    __tablename__ = "releases"
    __table_args__ = (sa.UniqueConstraint("task", "sequence"),)

    id: Mapped[str] = mapped_column(primary_key=True)
    task: Mapped[str]
    sequence: Mapped[int]
    state: Mapped[str] = mapped_column(default="available")
    candidate_id: Mapped[str]
    origin: Mapped[str]
    parent_release: Mapped[str] = mapped_column(default="")
    bundle_sha256: Mapped[str]
    edges_sha256: Mapped[str] = mapped_column(default="")
    train_step_sha256: Mapped[str] = mapped_column(default="")
    # Serialized SignedEnvelope of kind "release".
    envelope: Mapped[bytes]
    # Number under which the signed metadata approve it; counts up per task, raised again to roll back to it.
    approved_version: Mapped[int] = mapped_column(default=0)
    metrics: Mapped[dict[str, Any]] = mapped_column(default=dict)
    created_ms: Mapped[int]


class ChampionEntry(Base):
    """Append-only: which release was champion of a task, from when, why."""

    __tablename__ = "champion_ledger"

    id: Mapped[int] = mapped_column(sa.Integer, primary_key=True, autoincrement=True)
    task: Mapped[str] = mapped_column(index=True)
    release_id: Mapped[str]
    previous_release: Mapped[str] = mapped_column(default="")
    reason: Mapped[str]
    at_ms: Mapped[int]


class Rollout(Base):
    """A release on its way to a cohort; states in rollouts/rollout_machine.py."""

    __tablename__ = "rollouts"

    id: Mapped[str] = mapped_column(primary_key=True)
    release_id: Mapped[str]
    task: Mapped[str]
    cohort_id: Mapped[str]
    state: Mapped[str]
    detail: Mapped[str] = mapped_column(default="")
    canary_percent: Mapped[int]
    probation_ms: Mapped[int]
    # Deadline of a stage after its devices were instructed.
    stage_deadline_ms: Mapped[int] = mapped_column(default=600_000)
    stage_started_ms: Mapped[int] = mapped_column(default=0)
    incident_id: Mapped[str] = mapped_column(default="")
    created_by: Mapped[str]
    created_ms: Mapped[int]
    updated_ms: Mapped[int]


class RolloutDevice(Base):
    """One device of a rollout. Stages: canary, fleet. States: pending, instructed, healthy, failed, restored."""

    __tablename__ = "rollout_devices"

    rollout_id: Mapped[str] = mapped_column(sa.ForeignKey("rollouts.id"), primary_key=True)
    device_id: Mapped[str] = mapped_column(sa.ForeignKey("devices.id"), primary_key=True)
    stage: Mapped[str]
    state: Mapped[str] = mapped_column(default="pending")
    detail: Mapped[str] = mapped_column(default="")
    # What the device ran before, to be restored on rollback.
    previous_release: Mapped[str] = mapped_column(default="")
    instructed_ms: Mapped[int] = mapped_column(default=0)


class Campaign(Base):
    """A federated training run; states in federation/campaign_machine.py."""

    __tablename__ = "campaigns"

    id: Mapped[str] = mapped_column(primary_key=True)
    task: Mapped[str]
    base_release: Mapped[str]
    cohort_id: Mapped[str]
    # A key of federation.strategies.STRATEGIES.
    strategy: Mapped[str]
    # Fields of federation.settings.CampaignSettings.
    settings: Mapped[dict[str, Any]]
    state: Mapped[str]
    detail: Mapped[str] = mapped_column(default="")
    # Who let it begin, and when; empty and 0 for a draft.
    approved_by: Mapped[str] = mapped_column(default="")
    approved_ms: Mapped[int] = mapped_column(default=0)
    # The state that a paused campaign goes on in; empty while it is not paused.
    paused_from: Mapped[str] = mapped_column(default="")
    incident_id: Mapped[str] = mapped_column(default="")
    flower_run_id: Mapped[str] = mapped_column(default="")
    mlflow_run_id: Mapped[str] = mapped_column(default="")
    candidate_id: Mapped[str] = mapped_column(default="")
    created_by: Mapped[str]
    created_ms: Mapped[int]
    updated_ms: Mapped[int]


class CampaignParticipant(Base):
    """A device of the cohort of a campaign. States: excluded, invited, accepted, declined."""

    __tablename__ = "campaign_participants"

    campaign_id: Mapped[str] = mapped_column(sa.ForeignKey("campaigns.id"), primary_key=True)
    device_id: Mapped[str] = mapped_column(primary_key=True)
    state: Mapped[str]
    # Why it stays out, for people; and its code, a key of federation.eligibility.EXCLUSIONS.
    reason: Mapped[str] = mapped_column(default="")
    reason_code: Mapped[str] = mapped_column(default="")
    flower_node_id: Mapped[str] = mapped_column(default="")
    # Gateway that it takes part through, as long as the campaign lasts; empty: it is asked directly.
    gateway_id: Mapped[str] = mapped_column(default="")
    # With its answer, fields as in DeviceConditions.
    conditions: Mapped[dict[str, Any]] = mapped_column(default=dict)
    # Rounds that its update counted in; the newest of them, and the newest that it was selected for; 0 for none.
    rounds: Mapped[int] = mapped_column(default=0)
    last_round: Mapped[int] = mapped_column(default=0)
    last_selected: Mapped[int] = mapped_column(default=0)
    # Of its newest update: statistical utility (Oort) and seconds; -1 before the first.
    utility: Mapped[float] = mapped_column(default=-1.0)
    seconds: Mapped[float] = mapped_column(default=-1.0)


class CampaignRound(Base):
    """A committed round: the model after it and how good it is. Written once."""

    __tablename__ = "campaign_rounds"

    campaign_id: Mapped[str] = mapped_column(sa.ForeignKey("campaigns.id"), primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True)
    invited: Mapped[int]
    accepted: Mapped[int]
    # On the server's holdout (fraction); and the average of the devices' training loss.
    accuracy: Mapped[float]
    loss: Mapped[float]
    seconds: Mapped[float]
    parameters_sha256: Mapped[str]
    # What the strategy carries on to the next round, in the artifact store; empty for nothing.
    strategy_sha256: Mapped[str] = mapped_column(default="")
    # State of the accountant after the round; empty without privacy.
    privacy: Mapped[dict[str, Any]] = mapped_column(default=dict)
    # Device to why its answer did not count.
    failures: Mapped[dict[str, Any]] = mapped_column(default=dict)
    metrics: Mapped[dict[str, Any]] = mapped_column(default=dict)
    committed_ms: Mapped[int]


class CampaignUpdate(Base):
    """Journal of accepted updates of the round that is being collected."""

    __tablename__ = "campaign_updates"

    campaign_id: Mapped[str] = mapped_column(sa.ForeignKey("campaigns.id"), primary_key=True)
    round: Mapped[int] = mapped_column(primary_key=True)
    device_id: Mapped[str] = mapped_column(primary_key=True)
    examples: Mapped[int]
    parameters_sha256: Mapped[str]
    metrics: Mapped[dict[str, Any]] = mapped_column(default=dict)
    received_ms: Mapped[int]


class Job(Base):
    """Work in a process of its own. States: queued, running, done, failed."""

    __tablename__ = "jobs"

    id: Mapped[str] = mapped_column(primary_key=True)
    kind: Mapped[str]
    payload: Mapped[dict[str, Any]]
    state: Mapped[str] = mapped_column(index=True)
    attempts: Mapped[int] = mapped_column(default=0)
    maximum_attempts: Mapped[int] = mapped_column(default=5)
    progress: Mapped[dict[str, Any]] = mapped_column(default=dict)
    result: Mapped[dict[str, Any]] = mapped_column(default=dict)
    error: Mapped[str] = mapped_column(default="")
    pid: Mapped[int] = mapped_column(default=0)
    created_ms: Mapped[int]
    started_ms: Mapped[int] = mapped_column(default=0)
    finished_ms: Mapped[int] = mapped_column(default=0)


class Uplink(Base):
    """One row per message from a device: its key makes ingestion exactly-once."""

    __tablename__ = "uplinks"

    device_id: Mapped[str] = mapped_column(primary_key=True)
    outbox_id: Mapped[str] = mapped_column(primary_key=True)
    sequence: Mapped[int] = mapped_column(primary_key=True)
    # "drift", "health", "label", "update", "campaign", "fitness"; "rejected" for one that can never be used.
    kind: Mapped[str]
    created_ms: Mapped[int]
    received_ms: Mapped[int]


class DriftWindow(Base):
    """One drift report. The body is the serialized DriftReport."""

    __tablename__ = "drift_windows"
    __table_args__ = (sa.UniqueConstraint("device_id", "boot_id", "window", "release_id", "edges_sha256"),)

    id: Mapped[int] = mapped_column(sa.Integer, primary_key=True, autoincrement=True)
    device_id: Mapped[str] = mapped_column(index=True)
    boot_id: Mapped[str]
    window: Mapped[int]
    release_id: Mapped[str]
    edges_sha256: Mapped[str]
    started_ms: Mapped[int]
    ended_ms: Mapped[int]
    rows: Mapped[int]
    body: Mapped[bytes]
    received_ms: Mapped[int]
    # Filled in by the detector: {"status", "features": {name: {"psi", "p", "severity"}}}; empty until judged.
    verdict: Mapped[dict[str, Any]] = mapped_column(default=dict)
    judged: Mapped[bool] = mapped_column(default=False, index=True)


class HealthRow(Base):
    """One health report."""

    __tablename__ = "health"

    id: Mapped[int] = mapped_column(sa.Integer, primary_key=True, autoincrement=True)
    device_id: Mapped[str] = mapped_column(index=True)
    release_id: Mapped[str]
    at_ms: Mapped[int]
    period_ms: Mapped[int]
    requests: Mapped[int]
    errors: Mapped[int]
    latency_p50_us: Mapped[int]
    latency_p99_us: Mapped[int]
    labelled: Mapped[int]
    labelled_correct: Mapped[int]
    rss_bytes: Mapped[int]
    outbox_depth: Mapped[int] = mapped_column(default=0)


class LabelRow(Base):
    """Ground truth that a device joined to its answers, as a confusion matrix."""

    __tablename__ = "labels"

    id: Mapped[int] = mapped_column(sa.Integer, primary_key=True, autoincrement=True)
    device_id: Mapped[str] = mapped_column(index=True)
    release_id: Mapped[str]
    at_ms: Mapped[int]
    labelled: Mapped[int]
    correct: Mapped[int]
    confusion: Mapped[dict[str, Any]] = mapped_column(default=dict)


class UpdateEventRow(Base):
    """One transition of a device's update machine, as the device told it."""

    __tablename__ = "update_events"

    id: Mapped[int] = mapped_column(sa.Integer, primary_key=True, autoincrement=True)
    device_id: Mapped[str] = mapped_column(index=True)
    release_id: Mapped[str]
    rollout_id: Mapped[str]
    from_state: Mapped[str]
    event: Mapped[str]
    to_state: Mapped[str]
    detail: Mapped[str]
    at_ms: Mapped[int]


class Fitness(Base):
    """What one device measured of the forms of one release, newest only; its signature held when it came."""

    __tablename__ = "fitness"
    __table_args__ = (sa.UniqueConstraint("device_id", "release_id"),)

    id: Mapped[int] = mapped_column(sa.Integer, primary_key=True, autoincrement=True)
    device_id: Mapped[str]
    release_id: Mapped[str] = mapped_column(index=True)
    task: Mapped[str]
    profile_sha256: Mapped[str]
    # Fields of DeviceProfile.
    profile: Mapped[dict[str, Any]]
    # Fields of FormFitness, one document per form.
    forms: Mapped[list[dict[str, Any]]] = mapped_column(sa.JSON)
    measured_ms: Mapped[int]
    received_ms: Mapped[int]
    # The serialized FitnessCertificate, for whoever wants to verify it again.
    certificate: Mapped[bytes]


class Incident(Base):
    """Drift or bad health that somebody or something must act on; states in incidents/incident_machine.py."""

    __tablename__ = "incidents"

    id: Mapped[str] = mapped_column(primary_key=True)
    # "drift", "data-quality" or "health".
    kind: Mapped[str]
    task: Mapped[str]
    release_id: Mapped[str]
    state: Mapped[str]
    # "info", "warn", "act" or "critical".
    severity: Mapped[str]
    detail: Mapped[str] = mapped_column(default="")
    device_ids: Mapped[list[str]] = mapped_column(default=list)
    evidence: Mapped[dict[str, Any]] = mapped_column(default=dict)
    policy: Mapped[str] = mapped_column(default="")
    attempts: Mapped[int] = mapped_column(default=0)
    campaign_id: Mapped[str] = mapped_column(default="")
    candidate_id: Mapped[str] = mapped_column(default="")
    release_made: Mapped[str] = mapped_column(default="")
    rollout_id: Mapped[str] = mapped_column(default="")
    opened_ms: Mapped[int]
    updated_ms: Mapped[int]


class Policy(Base):
    """A named rule that may act without a person. settings: cohort, strategy, rounds, cool-down, canary, ..."""

    __tablename__ = "policies"

    name: Mapped[str] = mapped_column(primary_key=True)
    task: Mapped[str]
    enabled: Mapped[bool] = mapped_column(default=True)
    settings: Mapped[dict[str, Any]] = mapped_column(default=dict)
    created_ms: Mapped[int]


class AuditRow(Base):
    """The hash-chained ledger of every change; see audit/ledger.py."""

    __tablename__ = "audit"

    sequence: Mapped[int] = mapped_column(sa.Integer, primary_key=True, autoincrement=False)
    at_ms: Mapped[int]
    actor: Mapped[str]
    action: Mapped[str] = mapped_column(index=True)
    subject: Mapped[str] = mapped_column(index=True)
    detail: Mapped[dict[str, Any]] = mapped_column(default=dict)
    previous_hash: Mapped[str]
    hash: Mapped[str]
