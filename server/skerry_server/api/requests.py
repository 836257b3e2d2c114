"""What the API accepts: one pydantic model per request. Unknown fields are refused; every size has a bound.

Whether the values make sense together is for the domain services to decide; here stand only types and bounds.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from skerry_server.api import paging
from skerry_server.api.access import Role
from skerry_server.api.identity import NAME_CHARACTERS

#: An identifier: of a device, cohort, release, ...
Name = Annotated[str, StringConstraints(min_length=1, max_length=63)]
#: One side of a label.
LabelText = Annotated[str, StringConstraints(min_length=1, max_length=128)]
#: A reason that goes into the audit ledger.
Reason = Annotated[str, StringConstraints(max_length=500)]
#: Labels of a device or pairs of a selector.
Labels = Annotated[dict[LabelText, Annotated[str, StringConstraints(max_length=128)]], Field(max_length=32)]

#: Longest life of an enrolment token (seconds): 30 days.
MAXIMUM_TOKEN_LIFE_S = 30 * 86_400


class _Request(BaseModel):
    model_config = ConfigDict(extra="forbid", str_strip_whitespace=True)


class EnrollmentTokenRequest(_Request):
    """Make an enrolment token."""

    ttl_s: int = Field(default=3600, ge=60, le=MAXIMUM_TOKEN_LIFE_S, description="Seconds until it expires.")
    labels: Labels = Field(default_factory=dict, description="Labels that the device gets.")


class ApiTokenRequest(_Request):
    """Make an API token."""

    name: str = Field(min_length=1, max_length=NAME_CHARACTERS, description="Actor in the audit ledger.")
    role: Role = Field(description="viewer, operator, approver or admin; each includes the ones before.")


class LabelsRequest(_Request):
    """Replace the labels of a device."""

    labels: Labels = Field(description="All labels that it shall have.", examples=[{"site": "north"}])


class CohortRequest(_Request):
    """Make a cohort."""

    name: Name = Field(description="1 to 63 characters of a-z, 0-9 and -.", examples=["north"])
    selector: Labels = Field(
        description="A device belongs when its labels contain every pair.", examples=[{"site": "north"}]
    )


class TrainingRequest(_Request):
    """Train centrally."""

    task: Name = Field(examples=["digits"])
    settings: dict[Name, Any] = Field(
        default_factory=dict,
        max_length=32,
        description="What differs from the task's defaults: epochs, batch_size, learning_rate, momentum, seed, ...",
    )


class RolloutRequest(_Request):
    """Bring a release to a cohort."""

    release_id: Name
    cohort_id: Name = Field(default="all", description="Cohort; 'all' is every device.")
    canary_percent: int = Field(default=10, ge=1, le=100, description="Share in the canary stage; one device at least.")
    probation_ms: int = Field(
        default=30_000, ge=0, le=86_400_000, description="How long a device watches it before it commits."
    )


class CampaignRequest(_Request):
    """Train on the devices."""

    task: Name = Field(examples=["digits"])
    cohort_id: Name = Field(default="all", description="Cohort; 'all' is every device.")
    strategy: Name = Field(default="fedavg", description="fedavg, fedprox, scaffold, trimmedmean, fedbuff, ...")
    settings: dict[Name, Any] = Field(
        default_factory=dict,
        max_length=64,
        description="What differs from the task's defaults: rounds, local_epochs, batch_size, learning_rate, "
        "minimum_devices, quorum, per_round, wire, selection, eligibility, privacy, secure_aggregation, ...",
    )
    draft: bool = Field(default=False, description="Make it only; it begins when an approver approves it.")


class ReasonRequest(_Request):
    """Why something is done; it goes into the audit ledger."""

    reason: Reason = Field(default="", description="Free text, at most 500 characters.")


class PolicyRequest(_Request):
    """Create or replace a policy."""

    task: Name = Field(examples=["digits"])
    enabled: bool = Field(default=True)
    settings: dict[Name, Any] = Field(
        default_factory=dict, max_length=32, description="What differs from the defaults: cohort, strategy, rounds, ..."
    )


class ListQuery(BaseModel):
    """What every list accepts."""

    model_config = ConfigDict(extra="forbid")

    page_size: int = Field(
        default=paging.DEFAULT_PAGE_SIZE, ge=1, le=paging.MAXIMUM_PAGE_SIZE, description="Rows of a page."
    )
    page_token: str = Field(
        default="", max_length=paging.TOKEN_CHARACTERS, description="next_page_token of the page before."
    )

    def filters(self) -> dict[str, str]:
        """The filters that were given, as text."""
        given = self.model_dump(exclude={"page_size", "page_token"}, exclude_none=True)
        return {name: str(value).lower() if isinstance(value, bool) else str(value) for name, value in given.items()}


FilterText = Annotated[str | None, Field(max_length=paging.FILTER_CHARACTERS)]


class DeviceQuery(ListQuery):
    """Filters of the list of devices; every one must hold."""

    online: bool | None = Field(default=None, description="Only devices that are (not) connected.")
    revoked: bool | None = None
    kind: Annotated[str | None, Field(pattern="^(device|gateway)$", description="device or gateway.")] = None
    device_class: FilterText = None
    active_release: FilterText = None
    update_status: FilterText = None
    label: FilterText = Field(default=None, description="name=value", examples=["site=north"])
    cohort: FilterText = Field(default=None, description="Identifier of a cohort.")


class CohortQuery(ListQuery):
    """Filters of the list of cohorts."""

    name: FilterText = None


class JobQuery(ListQuery):
    """Filters of the list of jobs."""

    kind: FilterText = None
    state: FilterText = None


class CandidateQuery(ListQuery):
    """Filters of the list of candidates."""

    task: FilterText = None
    state: FilterText = None
    origin: FilterText = None
    campaign: FilterText = None


class ReleaseQuery(ListQuery):
    """Filters of the list of releases."""

    task: FilterText = None
    state: FilterText = None
    origin: FilterText = None


class RolloutQuery(ListQuery):
    """Filters of the list of rollouts."""

    task: FilterText = None
    state: FilterText = None
    release: FilterText = None
    cohort: FilterText = None


class CampaignQuery(ListQuery):
    """Filters of the list of campaigns."""

    task: FilterText = None
    state: FilterText = None
    strategy: FilterText = None
    incident: FilterText = None


class IncidentQuery(ListQuery):
    """Filters of the list of incidents."""

    task: FilterText = None
    state: FilterText = None
    kind: FilterText = None
    severity: FilterText = None
    release: FilterText = None


class PolicyQuery(ListQuery):
    """Filters of the list of policies."""

    task: FilterText = None
    enabled: bool | None = None


class ChampionQuery(ListQuery):
    """Filters of the ledger of champions."""

    task: FilterText = None
    release: FilterText = None


class FitnessQuery(ListQuery):
    """Filters of the list of fitness certificates."""

    task: FilterText = None
    release: FilterText = None
    device: FilterText = None
    profile: FilterText = None


class LessonQuery(BaseModel):
    """What the lessons are about."""

    model_config = ConfigDict(extra="forbid")

    task: FilterText = None
    release: FilterText = None


class AuditQuery(ListQuery):
    """Filters of the audit ledger."""

    actor: FilterText = None
    action: FilterText = None
    subject: FilterText = None


class DriftQuery(BaseModel):
    """Which drift verdicts."""

    model_config = ConfigDict(extra="forbid")

    task: Name = Field(description="Only devices that run a release of this task.", examples=["digits"])


class ApiTokenQuery(ListQuery):
    """Filters of the list of API tokens."""

    name: FilterText = None
    role: FilterText = None
    revoked: bool | None = None
