"""What the API answers about incidents, policies, the audit ledger, drift and the whole control plane."""

from __future__ import annotations

from pydantic import BaseModel, Field

from skerry_server.api.documents import Document, FromRow, Number


class IncidentDocument(BaseModel):
    """Drift or bad health that somebody or something must act on."""

    id: str
    kind: str = Field(description="drift, data-quality or health.")
    task: str
    release_id: str
    state: str
    severity: str = Field(description="info, warn, act or critical.")
    detail: str
    finished: bool = Field(description="Whether its state is final.")
    actions: list[str] = Field(description="What a person may do now: approve, dismiss.")
    device_ids: list[str]
    evidence: Document
    policy: str
    attempts: int
    campaign_id: str
    candidate_id: str
    release_made: str
    rollout_id: str
    opened_ms: int
    updated_ms: int


class TrustRoleDocument(BaseModel):
    """One role of the signed metadata (The Update Framework)."""

    role: str
    key_ids: list[str]
    threshold: int = Field(description="How many of the keys must sign.")
    version: int = Field(description="Version of its newest metadata; 0 for instructions, which has none.")
    expires_ms: int = Field(description="When they end; 0 for instructions.")
    private_keys_here: int = Field(description="How many of its private keys lie on the control plane's disk.")


class TrustDocument(BaseModel):
    """Who may say what devices install."""

    roles: list[TrustRoleDocument]
    warnings: list[str] = Field(description="What somebody should do something about.")
    broken: bool = Field(description="Whether something has expired, or a private key is gone.")


class PolicyDocument(FromRow):
    """A named rule that may act without a person."""

    name: str
    task: str
    enabled: bool
    settings: Document
    created_ms: int


class AuditDocument(FromRow):
    """One entry of the hash-chained audit ledger."""

    sequence: int
    at_ms: int
    actor: str
    action: str
    subject: str
    detail: Document
    previous_hash: str
    hash: str


class AuditVerificationDocument(BaseModel):
    """Whether the chain of hashes holds."""

    intact: bool
    entries: int
    first_broken: int | None = Field(description="Sequence of the first entry that does not fit; null when intact.")


class DriftCellDocument(BaseModel):
    """The verdict about one feature of one device."""

    psi: Number = Field(default=None, description="Population stability index, biased upwards.")
    psi_corrected: Number = Field(default=None, description="psi less its expectation without drift; may be negative.")
    p: Number = Field(default=None, description="p-value of the test against the device's baseline.")
    q: Number = Field(default=None, description="p corrected for the number of features (Benjamini-Hochberg).")
    severity: str = Field(default="none", description="none, info, warn, act or critical.")
    flagged: bool = Field(default=False, description="Whether a rule fired for it.")


class DeviceDriftDocument(BaseModel):
    """The newest judged window of one device about the release that it runs."""

    device_id: str
    release_id: str
    status: str = Field(description="ok, suspect, drift or data_quality.")
    rows: int
    ended_ms: int
    cells: dict[str, DriftCellDocument] = Field(description="By name of the feature.")


class DriftDocument(BaseModel):
    """Devices by features, for one task."""

    task: str
    features: list[str] = Field(description="Columns, in the order of the task.")
    devices: list[DeviceDriftDocument] = Field(description="Rows, by identifier.")


class StageDocument(FromRow):
    """One box of the loop, as it stands now."""

    key: str
    title: str
    mood: str = Field(description="idle, good, busy or attention.")
    value: str = Field(description="A few characters, for example 7/8.")
    detail: str


class FleetCountsDocument(BaseModel):
    """The fleet in numbers; revoked devices are not counted."""

    total: int
    online: int
    updating: int
    labelled_samples: int


class SummaryDocument(BaseModel):
    """The control plane at a glance."""

    version: str
    now_ms: int
    caller: str = Field(description="Name of the token that asked.")
    role: str
    fleet: FleetCountsDocument
    champions: dict[str, str] = Field(description="Task to release.")
    jobs: dict[str, int] = Field(description="State to count; the same for the next three.")
    rollouts: dict[str, int]
    campaigns: dict[str, int]
    incidents: dict[str, int]
    loop: list[StageDocument] = Field(description="The loop, in the order in which work goes round.")


class HealthDocument(BaseModel):
    """Whether this process can do its work."""

    status: str
    version: str
