"""What the API answers about campaigns. Moments are milliseconds since 1970 UTC (``*_ms``)."""

from __future__ import annotations

from pydantic import BaseModel, Field

from skerry_server.api.documents import Document, FromRow, Number, Numbers


class CampaignRoundDocument(FromRow):
    """A committed round."""

    number: int
    invited: int
    accepted: int
    accuracy: Number = Field(description="Of the model after the round, on the server's holdout (0 to 1).")
    loss: Number = Field(description="Average training loss of the devices.")
    seconds: float
    metrics: Numbers = Field(description="More figures: bytes_down, bytes_up, energy_wh, macro_f1, ...")
    privacy: Document = Field(description="What the round spent; empty without privacy.")
    failures: dict[str, str] = Field(description="Device to why its answer did not count.")
    committed_ms: int


class ParticipantDocument(FromRow):
    """A device of a campaign's cohort: whether it takes part, and why not."""

    device_id: str
    state: str = Field(description="excluded, invited, accepted or declined.")
    reason_code: str = Field(description="Why it stays out, or stayed out of its newest round; empty for no reason.")
    reason: str = Field(description="The same for people, with the figures.")
    rounds: int = Field(description="Rounds that its update counted in.")
    last_round: int = Field(description="The newest of them; 0 for none.")
    last_selected: int = Field(description="The newest round that it was chosen for; 0 for none.")
    utility: Number = Field(description="Statistical utility of its newest update (Oort); -1 before the first.")
    seconds: float = Field(description="How long that took; -1 before the first.")
    gateway_id: str = Field(description="Gateway of its site that it takes part through; empty: it is asked directly.")


class ReasonDocument(BaseModel):
    """How many devices stay out of a campaign for one reason."""

    code: str = Field(description="Stable word for programs.")
    meaning: str
    devices: int
    example: str = Field(description="One of the devices, with its figures.")


class SpendingDocument(BaseModel):
    """What the committed rounds of a campaign cost."""

    bytes_down: int
    bytes_up: int
    minutes: float
    energy_wh: float = Field(description="Estimated energy of the devices.")
    epsilon: Number = Field(description="Differential privacy that is spent; null without privacy.")
    delta: Number = Field(description="Of (epsilon, delta); null without privacy.")


class PersonalDocument(BaseModel):
    """Everybody's model and the devices' own, on their validation splits, in the newest round that compared them."""

    round: int
    devices: int = Field(description="That measured both; each counts once.")
    global_accuracy: float
    personal_accuracy: float
    gaining: int = Field(description="Devices whose own model is right more often.")
    losing: int = Field(description="Devices whose own model is right less often.")


class CalibrationDocument(BaseModel):
    """Whose rows the INT8 ranges of a campaign's result come from."""

    source: str = Field(description="devices, or central where too few of them answered.")
    devices: int = Field(description="That told ranges; 0 with central.")
    rows: int = Field(description="Of those devices; none left them.")
    reason: str = Field(description="Why central; empty otherwise.")


class CampaignDocument(BaseModel):
    """A federated training run."""

    id: str
    task: str
    base_release: str
    cohort_id: str
    strategy: str
    settings: Document
    rounds_planned: int
    state: str = Field(description="draft, approved, recruiting, running, gating, paused, finished, aborted or failed.")
    phase: str = Field(
        description="Of the round in progress: configure, collect, aggregate, evaluate or commit; empty when none is."
    )
    detail: str
    waits_for: str = Field(description="What the state waits for; empty in a final one.")
    deadline_ms: int = Field(description="When the state has lasted too long; 0 in a final one.")
    actions: list[str] = Field(description="What a person may do: approve, pause, resume, abort.")
    finished: bool = Field(description="Whether its state is final.")
    succeeded: bool = Field(description="Whether it ended with a candidate that passed its gates.")
    incident_id: str
    flower_run_id: str
    mlflow_run_id: str
    candidate_id: str
    created_by: str
    created_ms: int
    approved_by: str = Field(description="Who let it begin; empty for a draft.")
    approved_ms: int
    updated_ms: int
    spent: SpendingDocument
    personal: PersonalDocument | None = Field(description="Null where nothing stays on the devices.")
    calibration: CalibrationDocument | None = Field(description="Null before, and where the devices are not asked.")
    rounds: list[CampaignRoundDocument]


class PrivacyTotalDocument(BaseModel):
    """What all private campaigns of the task together have spent of the device of the cohort that gave most.

    A campaign under way counts with all that it may yet spend.
    """

    epsilon: Number
    delta: Number = Field(description="Of (epsilon, delta): the smallest of those campaigns.")
    campaigns: int = Field(description="Private campaigns that the device took part in.")
    private: int = Field(description="Private campaigns of the task.")
    unprotected: int = Field(description="Campaigns of the task that ran without privacy, and have no epsilon.")
    limit: float = Field(description="Epsilon that is never passed, epsilon_limit of the server's settings; 0: none.")


class CampaignDetailDocument(CampaignDocument):
    """A campaign with the devices of its cohort and why some stay out."""

    privacy_total: PrivacyTotalDocument | None = Field(description="Null where no campaign of the task is private.")
    reasons: list[ReasonDocument] = Field(description="Why devices stay out, the most frequent reason first.")
    devices: dict[str, int] = Field(description="State of a participant to the number of devices in it.")
    participants: list[ParticipantDocument] = Field(
        description="At most 500 devices: those that take part first, then by name."
    )
