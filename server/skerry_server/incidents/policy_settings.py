"""Settings of a policy: the numbers behind the guard rails, and what the cure is made of."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from skerry_server.errors import InvalidRequestError
from skerry_server.federation.strategies import check_strategy

_HOUR_MS = 3_600_000


class PolicySettings(BaseModel):
    """How an incident of the task is cured. Unknown fields are refused; None leaves the campaign its default."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    cohort_id: str = Field(default="all", description="Cohort that trains and receives the cure (identifier or name).")
    strategy: str = Field(default="fedprox", description="Aggregation: a name of federation.strategies.")
    campaign: dict[str, Any] = Field(
        default_factory=dict,
        max_length=64,
        description="More settings of the campaign, as when one is started by hand.",
    )
    rounds: int | None = Field(default=None, ge=1, le=1000, description="Federated rounds.")
    local_epochs: int | None = Field(default=None, ge=1, le=100, description="Epochs on a device per round.")
    batch_size: int | None = Field(default=None, ge=1, le=1024, description="Rows of a training step.")
    learning_rate: float | None = Field(default=None, gt=0, le=10, description="Step size.")
    proximal_mu: float | None = Field(default=None, ge=0, le=10, description="FedProx's pull to the global model.")
    participants: int | None = Field(default=None, ge=1, description="Devices that the campaign needs at least.")
    samples: int | None = Field(default=None, ge=2, description="Labelled samples that a participant needs.")
    recruiting_deadline_ms: int | None = Field(default=None, ge=1000, description="How long devices may answer.")
    quorum: float | None = Field(default=None, gt=0, le=1, description="Share of updates that closes a round.")
    round_deadline_ms: int | None = Field(default=None, ge=1000, description="Deadline of a round (milliseconds).")
    minimum_severity: Literal["info", "warn", "act", "critical"] = Field(
        default="act", description="Weakest severity that is acted on."
    )
    minimum_devices: int = Field(default=2, ge=1, description="Affected devices: one alone is not believed.")
    minimum_labels: int = Field(default=50, ge=0, description="Labels of an affected device since it changed.")
    minimum_labelled_devices: int = Field(default=2, ge=0, description="Affected devices with that many labels.")
    cooldown_ms: int = Field(default=600_000, ge=0, description="Least time between two campaigns of the task.")
    maximum_attempts: int = Field(default=3, ge=1, le=10, description="Failed attempts that open the breaker.")
    canary_percent: int = Field(default=10, ge=1, le=100, description="Canary share of the rollout.")
    probation_ms: int = Field(default=10_000, ge=0, le=86_400_000, description="Probation on a device.")
    stage_deadline_ms: int = Field(default=600_000, ge=1, description="Deadline of a rollout stage.")
    approval_deadline_ms: int = Field(default=7 * 24 * _HOUR_MS, ge=1, description="How long a proposal stands.")
    labels_deadline_ms: int = Field(default=24 * _HOUR_MS, ge=1, description="How long labels are waited for.")
    campaign_deadline_ms: int = Field(default=6 * _HOUR_MS, ge=1, description="Deadline of the campaign.")
    gates_deadline_ms: int = Field(default=_HOUR_MS, ge=1, description="Deadline of gates and publication.")

    @field_validator("strategy")
    @classmethod
    def _known(cls, name: str) -> str:
        try:
            check_strategy(name)
        except InvalidRequestError as error:
            raise ValueError(error.expected) from error
        return name

    def campaign_settings(self) -> dict[str, Any]:
        """Settings for ``federation.service.start_campaign``: those that are given."""
        names = {
            "rounds": self.rounds,
            "local_epochs": self.local_epochs,
            "batch_size": self.batch_size,
            "learning_rate": self.learning_rate,
            "proximal_mu": self.proximal_mu,
            "minimum_devices": self.participants,
            "minimum_samples": self.samples,
            "recruiting_deadline_ms": self.recruiting_deadline_ms,
            "quorum": self.quorum,
            "round_deadline_ms": self.round_deadline_ms,
        }
        return {**self.campaign, **{name: value for name, value in names.items() if value is not None}}


def parse_settings(settings: dict[str, Any]) -> PolicySettings:
    """Check a document.

    Raises:
        InvalidRequestError: A field is unknown or out of range.
    """
    try:
        return PolicySettings.model_validate(settings)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"]) or "settings"
        raise InvalidRequestError(f"settings.{field}", expected=first["msg"], got=first.get("input")) from error
