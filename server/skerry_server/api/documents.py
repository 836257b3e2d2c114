"""What the API answers: one pydantic model per resource. Moments are milliseconds since 1970 UTC (``*_ms``)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any, Generic, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

Item = TypeVar("Item")


def _finite(value: Any) -> Any:
    """JSON has no NaN and no infinity: they become null, at any depth."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value


#: Name to number; a number that is not finite is null.
Numbers = Annotated[dict[str, float | None], BeforeValidator(_finite)]
#: A document as it lies in the store.
Document = Annotated[dict[str, Any], BeforeValidator(_finite)]
#: A number, or null where there is none or it is not finite.
Number = Annotated[float | None, BeforeValidator(_finite)]


class FromRow(BaseModel):
    """A document that can be read off a row whose columns have the same names."""

    model_config = ConfigDict(from_attributes=True)


class PageOf(BaseModel, Generic[Item]):
    """One page of a list."""

    items: list[Item] = Field(description="Rows of this page, in the order of the list.")
    next_page_token: str = Field(description="Send it as page_token for the next page; empty at the end.")


class Failure(BaseModel):
    """What is wrong with a call."""

    kind: str = Field(
        description="malformed, unauthenticated, forbidden, not-found, method-not-allowed, conflict, too-large, "
        "invalid, unavailable or internal."
    )
    message: str = Field(description="One sentence for a person.")
    field: str = Field(description="Which field of the request, or what was looked for; may be empty.")
    expected: str = Field(description="What would have been right; may be empty.")
    got: str = Field(description="What came, shortened; may be empty.")


class Problem(BaseModel):
    """The body of every answer that is not a success."""

    error: Failure


class EnrollmentTokenDocument(BaseModel):
    """A new enrolment token."""

    token: str = Field(description="The secret; shown once. One device can enrol with it.")
    expires_ms: int
    labels: dict[str, str] = Field(description="Labels that the device gets.")
    server: str = Field(description="URL of the device API, for `skerry-agent enroll --server`.")


class ApiTokenDocument(FromRow):
    """An operator's token, without its secret."""

    name: str
    role: str = Field(description="viewer, operator, approver or admin.")
    created_ms: int
    revoked: bool


class NewApiTokenDocument(BaseModel):
    """A new API token."""

    name: str
    role: str
    token: str = Field(description="The secret; shown once.")


class AccuracyDocument(FromRow):
    """How often a device was right where the truth is known, about the release that it runs now."""

    labelled: int = Field(description="Answered requests with a label.")
    correct: int = Field(description="Those that were answered rightly.")
    value: float | None = Field(description="correct / labelled, 0 to 1; null without a label.")


class DesiredDocument(BaseModel):
    """What the control plane wants of a device."""

    release: str = Field(description="Release that it should run; empty means: keep what it has.")
    rollout: str = Field(description="Rollout that asks for it.")
    sequence: int = Field(description="Counts up with every change.")
    published: bool = Field(description="Whether the broker has acknowledged the newest change.")


class SiteDocument(BaseModel):
    """What a gateway told last of its site."""

    site: str
    address: str = Field(description="host:port at which the devices of the site reach it.")
    devices: int = Field(description="Devices of the site.")
    connected: int = Field(description="Those that were connected to it.")
    campaign_id: str = Field(description="Of the newest round that it answered; empty before the first.")
    round: int = Field(description="Its number.")
    asked: int = Field(description="Devices that it asked in that round.")
    counted: int = Field(description="Devices whose updates are in its answer.")


class DeviceDocument(BaseModel):
    """A device: what it is, what it reported last, what is wanted of it."""

    id: str
    kind: str = Field(description="device, or gateway: it sums for the devices of its site and serves no model.")
    site: SiteDocument | None = Field(description="Of a gateway; null for a device.")
    device_class: str = Field(description="x86_64, aarch64, jetson, ...")
    agent_version: str
    labels: dict[str, str]
    enrolled_ms: int
    revoked: bool
    certificate_not_after_ms: int = Field(description="When its certificate ends; it renews it before.")
    online: bool
    last_seen_ms: int = Field(description="0 when it was never seen.")
    active_release: str = Field(description="Release that it serves; empty before the first one.")
    active_variant: str = Field(description="fp32, int8-qdq or int8-x86.")
    target_release: str = Field(description="Release that its running update installs.")
    update_status: str = Field(
        description="idle, downloading, verifying, staging, proving, activating, probation, committed, rolled_back "
        "or quarantined."
    )
    update_detail: str = Field(description="What the update waits for, or its error.")
    chunks_done: int
    chunks_total: int
    reported_rollout: str
    labelled_samples: int = Field(description="Labelled examples that the device holds for training.")
    flower_node_id: str = Field(description="Its Flower node, a decimal number; empty while there is none.")
    ineligible_reason: str = Field(description="Why it would stay out of a campaign now; empty means eligible.")
    health: Document = Field(description="Last health report: requests, errors, latency_p50_us, latency_p99_us, ...")
    accuracy: AccuracyDocument | None = Field(description="Null while no label is known for the running release.")
    desired: DesiredDocument


class CohortDocument(BaseModel):
    """A named set of devices."""

    id: str
    name: str
    selector: dict[str, str] = Field(description="A device belongs when its labels contain every pair.")
    device_count: int
    created_ms: int


class TaskDocument(BaseModel):
    """Something that can be learned."""

    name: str
    champion: str = Field(description="Release that is champion now; empty without one.")
    releases: int = Field(description="How many releases it has.")


class JobDocument(FromRow):
    """Work in a process of its own."""

    id: str
    kind: str = Field(description="train, candidate, campaign or drift-report.")
    state: str = Field(description="queued, running, done or failed.")
    attempts: int
    maximum_attempts: int
    payload: Document
    progress: Document
    result: Document
    error: str = Field(description="Why it failed; empty otherwise.")
    created_ms: int
    started_ms: int
    finished_ms: int


class GateDocument(BaseModel):
    """One condition that a candidate must meet."""

    name: str
    passed: bool
    value: Number = None
    limit: Number = None
    detail: str = ""


class CandidateDocument(BaseModel):
    """Parameters that may become a release."""

    id: str
    task: str
    origin: str = Field(description="central or federated.")
    state: str = Field(description="built (gates still to be judged), passed, rejected or released.")
    parent_release: str
    campaign_id: str
    incident_id: str
    bundle_sha256: str
    metrics: Numbers
    gates: list[GateDocument]
    mlflow_run_id: str
    mlflow_model_version: str
    created_ms: int


class ReleaseDocument(BaseModel):
    """A signed bundle."""

    id: str
    task: str
    sequence: int = Field(description="Counts up per task.")
    state: str = Field(description="available or withdrawn.")
    origin: str
    candidate_id: str
    parent_release: str
    bundle_sha256: str
    metrics: Numbers
    champion: bool = Field(description="Whether it is the champion of its task now.")
    created_ms: int


class VariantDocument(BaseModel):
    """One executable form of the model."""

    name: str
    path: str
    device_classes: list[str] = Field(description="Empty means every class.")
    golden_tolerance: float = Field(description="Largest absolute difference that counts as equal.")


class FileDocument(BaseModel):
    """One file of a bundle."""

    path: str
    size: int = Field(description="Bytes.")
    sha256: str
    chunks: int


class ManifestDocument(BaseModel):
    """What is signed when a release is signed off, and by which keys."""

    release_id: str
    task: str
    sequence: int
    bundle_sha256: str
    parent_release: str
    created_ms: int
    expires_ms: int
    files: list[FileDocument]
    variants: list[VariantDocument]
    signed_by: list[str] = Field(description="Key ids: first 16 hexadecimal digits of SHA-256 of the public key.")
    envelope_base64: str = Field(description="The serialized SignedEnvelope, as devices get it.")


class ChampionDocument(FromRow):
    """One entry of the append-only ledger of champions."""

    id: int
    task: str
    release_id: str
    previous_release: str
    reason: str
    at_ms: int


class FormDocument(FromRow):
    """What a device measured of one form of a release."""

    variant: str
    backend: str
    rung: int = Field(description="Place of its network on the ladder; 0 is the release's own.")
    tried: bool = Field(description="Whether the time budget reached it.")
    correct: bool = Field(description="Whether it reproduced its golden outputs.")
    p50_us: float = Field(description="Median latency of one row, microseconds; 0 when it was not measured.")
    p99_us: float
    worst_difference: float = Field(description="Largest difference from the golden outputs.")
    size: int = Field(description="Bytes of its file.")
    load_us: float = Field(description="Microseconds from the file to a model that can run.")
    chosen: bool
    detail: str = Field(description="Why it is not correct or was not measured.")


class ProfileDocument(FromRow):
    """What a device is, as far as it decides which form is fastest."""

    device_class: str
    cpu: str
    isa: list[str]
    cores: int
    memory_bytes: int
    accelerators: list[str]
    runtimes: dict[str, str]
    power_mode: str


class FitnessDocument(FromRow):
    """What one device measured of one release; its signature held when it came."""

    id: int
    device_id: str
    release_id: str
    task: str
    profile_sha256: str = Field(description="Devices with the same digest are alike.")
    profile: ProfileDocument
    forms: list[FormDocument]
    measured_ms: int
    received_ms: int


class LessonDocument(BaseModel):
    """What the certificates of like devices say together about one network of a release."""

    release_id: str
    task: str
    profile_sha256: str
    profile: ProfileDocument
    rung: int
    variant: str = Field(description="Form that most of the devices chose.")
    devices: int = Field(description="Devices that measured the network.")
    share: float = Field(description="Share of them that chose the form.")
    p50_us: float = Field(description="Median over devices of the form's median latency, microseconds.")
    reference_p50_us: float = Field(description="The same of float32; 0 when no device measured it.")
    spread: float = Field(description="90th over 10th percentile of the form's medians.")
    recommended: bool = Field(description="Whether the next device of this kind downloads this form only.")
    why: str = Field(description="Why not; empty if it does.")


class RolloutDeviceDocument(FromRow):
    """One device of a rollout."""

    device_id: str
    stage: str = Field(description="canary or fleet.")
    state: str = Field(description="pending, instructed, healthy, failed or restored.")
    detail: str
    previous_release: str
    instructed_ms: int


class RolloutDocument(BaseModel):
    """A release on its way to a cohort."""

    id: str
    release_id: str
    task: str
    cohort_id: str
    state: str
    detail: str
    finished: bool = Field(description="Whether its state is final.")
    succeeded: bool = Field(description="Whether every device of the cohort runs the release and is healthy.")
    canary_percent: int
    probation_ms: int
    stage_deadline_ms: int
    stage_started_ms: int
    incident_id: str
    created_by: str
    created_ms: int
    updated_ms: int
    devices: list[RolloutDeviceDocument]
