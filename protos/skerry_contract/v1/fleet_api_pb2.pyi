from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class ListRequest(_message.Message):
    __slots__ = ("page_size", "page_token", "filter")
    class FilterEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    FILTER_FIELD_NUMBER: _ClassVar[int]
    page_size: int
    page_token: str
    filter: _containers.ScalarMap[str, str]
    def __init__(self, page_size: _Optional[int] = ..., page_token: _Optional[str] = ..., filter: _Optional[_Mapping[str, str]] = ...) -> None: ...

class GetRequest(_message.Message):
    __slots__ = ("id",)
    ID_FIELD_NUMBER: _ClassVar[int]
    id: str
    def __init__(self, id: _Optional[str] = ...) -> None: ...

class ActRequest(_message.Message):
    __slots__ = ("id", "reason")
    ID_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    id: str
    reason: str
    def __init__(self, id: _Optional[str] = ..., reason: _Optional[str] = ...) -> None: ...

class Device(_message.Message):
    __slots__ = ("id", "device_class", "online", "active_release", "target_release", "update_status", "update_detail", "labelled_samples", "agent_version", "last_seen_unix_ms", "labels", "ineligible_reason")
    class LabelsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    ID_FIELD_NUMBER: _ClassVar[int]
    DEVICE_CLASS_FIELD_NUMBER: _ClassVar[int]
    ONLINE_FIELD_NUMBER: _ClassVar[int]
    ACTIVE_RELEASE_FIELD_NUMBER: _ClassVar[int]
    TARGET_RELEASE_FIELD_NUMBER: _ClassVar[int]
    UPDATE_STATUS_FIELD_NUMBER: _ClassVar[int]
    UPDATE_DETAIL_FIELD_NUMBER: _ClassVar[int]
    LABELLED_SAMPLES_FIELD_NUMBER: _ClassVar[int]
    AGENT_VERSION_FIELD_NUMBER: _ClassVar[int]
    LAST_SEEN_UNIX_MS_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    INELIGIBLE_REASON_FIELD_NUMBER: _ClassVar[int]
    id: str
    device_class: str
    online: bool
    active_release: str
    target_release: str
    update_status: str
    update_detail: str
    labelled_samples: int
    agent_version: str
    last_seen_unix_ms: int
    labels: _containers.ScalarMap[str, str]
    ineligible_reason: str
    def __init__(self, id: _Optional[str] = ..., device_class: _Optional[str] = ..., online: _Optional[bool] = ..., active_release: _Optional[str] = ..., target_release: _Optional[str] = ..., update_status: _Optional[str] = ..., update_detail: _Optional[str] = ..., labelled_samples: _Optional[int] = ..., agent_version: _Optional[str] = ..., last_seen_unix_ms: _Optional[int] = ..., labels: _Optional[_Mapping[str, str]] = ..., ineligible_reason: _Optional[str] = ...) -> None: ...

class DeviceList(_message.Message):
    __slots__ = ("devices", "next_page_token")
    DEVICES_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    devices: _containers.RepeatedCompositeFieldContainer[Device]
    next_page_token: str
    def __init__(self, devices: _Optional[_Iterable[_Union[Device, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class Cohort(_message.Message):
    __slots__ = ("id", "name", "selector", "device_count")
    class SelectorEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    ID_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    SELECTOR_FIELD_NUMBER: _ClassVar[int]
    DEVICE_COUNT_FIELD_NUMBER: _ClassVar[int]
    id: str
    name: str
    selector: _containers.ScalarMap[str, str]
    device_count: int
    def __init__(self, id: _Optional[str] = ..., name: _Optional[str] = ..., selector: _Optional[_Mapping[str, str]] = ..., device_count: _Optional[int] = ...) -> None: ...

class CohortList(_message.Message):
    __slots__ = ("cohorts", "next_page_token")
    COHORTS_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    cohorts: _containers.RepeatedCompositeFieldContainer[Cohort]
    next_page_token: str
    def __init__(self, cohorts: _Optional[_Iterable[_Union[Cohort, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class CreateCohortRequest(_message.Message):
    __slots__ = ("name", "selector")
    class SelectorEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    NAME_FIELD_NUMBER: _ClassVar[int]
    SELECTOR_FIELD_NUMBER: _ClassVar[int]
    name: str
    selector: _containers.ScalarMap[str, str]
    def __init__(self, name: _Optional[str] = ..., selector: _Optional[_Mapping[str, str]] = ...) -> None: ...

class Release(_message.Message):
    __slots__ = ("id", "task", "sequence", "bundle_sha256", "origin", "parent_id", "state", "metrics", "created_unix_ms")
    class MetricsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    ID_FIELD_NUMBER: _ClassVar[int]
    TASK_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    BUNDLE_SHA256_FIELD_NUMBER: _ClassVar[int]
    ORIGIN_FIELD_NUMBER: _ClassVar[int]
    PARENT_ID_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    METRICS_FIELD_NUMBER: _ClassVar[int]
    CREATED_UNIX_MS_FIELD_NUMBER: _ClassVar[int]
    id: str
    task: str
    sequence: int
    bundle_sha256: str
    origin: str
    parent_id: str
    state: str
    metrics: _containers.ScalarMap[str, float]
    created_unix_ms: int
    def __init__(self, id: _Optional[str] = ..., task: _Optional[str] = ..., sequence: _Optional[int] = ..., bundle_sha256: _Optional[str] = ..., origin: _Optional[str] = ..., parent_id: _Optional[str] = ..., state: _Optional[str] = ..., metrics: _Optional[_Mapping[str, float]] = ..., created_unix_ms: _Optional[int] = ...) -> None: ...

class ReleaseList(_message.Message):
    __slots__ = ("releases", "next_page_token")
    RELEASES_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    releases: _containers.RepeatedCompositeFieldContainer[Release]
    next_page_token: str
    def __init__(self, releases: _Optional[_Iterable[_Union[Release, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class Rollout(_message.Message):
    __slots__ = ("id", "release_id", "cohort_id", "state", "detail", "devices", "created_unix_ms")
    ID_FIELD_NUMBER: _ClassVar[int]
    RELEASE_ID_FIELD_NUMBER: _ClassVar[int]
    COHORT_ID_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    DETAIL_FIELD_NUMBER: _ClassVar[int]
    DEVICES_FIELD_NUMBER: _ClassVar[int]
    CREATED_UNIX_MS_FIELD_NUMBER: _ClassVar[int]
    id: str
    release_id: str
    cohort_id: str
    state: str
    detail: str
    devices: _containers.RepeatedCompositeFieldContainer[RolloutDevice]
    created_unix_ms: int
    def __init__(self, id: _Optional[str] = ..., release_id: _Optional[str] = ..., cohort_id: _Optional[str] = ..., state: _Optional[str] = ..., detail: _Optional[str] = ..., devices: _Optional[_Iterable[_Union[RolloutDevice, _Mapping]]] = ..., created_unix_ms: _Optional[int] = ...) -> None: ...

class RolloutDevice(_message.Message):
    __slots__ = ("device_id", "stage", "state", "detail")
    DEVICE_ID_FIELD_NUMBER: _ClassVar[int]
    STAGE_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    DETAIL_FIELD_NUMBER: _ClassVar[int]
    device_id: str
    stage: str
    state: str
    detail: str
    def __init__(self, device_id: _Optional[str] = ..., stage: _Optional[str] = ..., state: _Optional[str] = ..., detail: _Optional[str] = ...) -> None: ...

class RolloutList(_message.Message):
    __slots__ = ("rollouts", "next_page_token")
    ROLLOUTS_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    rollouts: _containers.RepeatedCompositeFieldContainer[Rollout]
    next_page_token: str
    def __init__(self, rollouts: _Optional[_Iterable[_Union[Rollout, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class StartRolloutRequest(_message.Message):
    __slots__ = ("release_id", "cohort_id", "canary_percent", "probation_ms")
    RELEASE_ID_FIELD_NUMBER: _ClassVar[int]
    COHORT_ID_FIELD_NUMBER: _ClassVar[int]
    CANARY_PERCENT_FIELD_NUMBER: _ClassVar[int]
    PROBATION_MS_FIELD_NUMBER: _ClassVar[int]
    release_id: str
    cohort_id: str
    canary_percent: int
    probation_ms: int
    def __init__(self, release_id: _Optional[str] = ..., cohort_id: _Optional[str] = ..., canary_percent: _Optional[int] = ..., probation_ms: _Optional[int] = ...) -> None: ...

class Campaign(_message.Message):
    __slots__ = ("id", "task", "base_release", "strategy", "state", "detail", "rounds_planned", "rounds", "created_unix_ms", "candidate_id", "cohort_id", "phase", "waits_for", "deadline_unix_ms", "actions", "spent", "reasons", "settings_json", "approved_by")
    ID_FIELD_NUMBER: _ClassVar[int]
    TASK_FIELD_NUMBER: _ClassVar[int]
    BASE_RELEASE_FIELD_NUMBER: _ClassVar[int]
    STRATEGY_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    DETAIL_FIELD_NUMBER: _ClassVar[int]
    ROUNDS_PLANNED_FIELD_NUMBER: _ClassVar[int]
    ROUNDS_FIELD_NUMBER: _ClassVar[int]
    CREATED_UNIX_MS_FIELD_NUMBER: _ClassVar[int]
    CANDIDATE_ID_FIELD_NUMBER: _ClassVar[int]
    COHORT_ID_FIELD_NUMBER: _ClassVar[int]
    PHASE_FIELD_NUMBER: _ClassVar[int]
    WAITS_FOR_FIELD_NUMBER: _ClassVar[int]
    DEADLINE_UNIX_MS_FIELD_NUMBER: _ClassVar[int]
    ACTIONS_FIELD_NUMBER: _ClassVar[int]
    SPENT_FIELD_NUMBER: _ClassVar[int]
    REASONS_FIELD_NUMBER: _ClassVar[int]
    SETTINGS_JSON_FIELD_NUMBER: _ClassVar[int]
    APPROVED_BY_FIELD_NUMBER: _ClassVar[int]
    id: str
    task: str
    base_release: str
    strategy: str
    state: str
    detail: str
    rounds_planned: int
    rounds: _containers.RepeatedCompositeFieldContainer[CampaignRound]
    created_unix_ms: int
    candidate_id: str
    cohort_id: str
    phase: str
    waits_for: str
    deadline_unix_ms: int
    actions: _containers.RepeatedScalarFieldContainer[str]
    spent: CampaignSpending
    reasons: _containers.RepeatedCompositeFieldContainer[CampaignReason]
    settings_json: str
    approved_by: str
    def __init__(self, id: _Optional[str] = ..., task: _Optional[str] = ..., base_release: _Optional[str] = ..., strategy: _Optional[str] = ..., state: _Optional[str] = ..., detail: _Optional[str] = ..., rounds_planned: _Optional[int] = ..., rounds: _Optional[_Iterable[_Union[CampaignRound, _Mapping]]] = ..., created_unix_ms: _Optional[int] = ..., candidate_id: _Optional[str] = ..., cohort_id: _Optional[str] = ..., phase: _Optional[str] = ..., waits_for: _Optional[str] = ..., deadline_unix_ms: _Optional[int] = ..., actions: _Optional[_Iterable[str]] = ..., spent: _Optional[_Union[CampaignSpending, _Mapping]] = ..., reasons: _Optional[_Iterable[_Union[CampaignReason, _Mapping]]] = ..., settings_json: _Optional[str] = ..., approved_by: _Optional[str] = ...) -> None: ...

class CampaignSpending(_message.Message):
    __slots__ = ("bytes_down", "bytes_up", "minutes", "energy_wh", "epsilon", "delta")
    BYTES_DOWN_FIELD_NUMBER: _ClassVar[int]
    BYTES_UP_FIELD_NUMBER: _ClassVar[int]
    MINUTES_FIELD_NUMBER: _ClassVar[int]
    ENERGY_WH_FIELD_NUMBER: _ClassVar[int]
    EPSILON_FIELD_NUMBER: _ClassVar[int]
    DELTA_FIELD_NUMBER: _ClassVar[int]
    bytes_down: int
    bytes_up: int
    minutes: float
    energy_wh: float
    epsilon: float
    delta: float
    def __init__(self, bytes_down: _Optional[int] = ..., bytes_up: _Optional[int] = ..., minutes: _Optional[float] = ..., energy_wh: _Optional[float] = ..., epsilon: _Optional[float] = ..., delta: _Optional[float] = ...) -> None: ...

class CampaignReason(_message.Message):
    __slots__ = ("code", "meaning", "devices", "example")
    CODE_FIELD_NUMBER: _ClassVar[int]
    MEANING_FIELD_NUMBER: _ClassVar[int]
    DEVICES_FIELD_NUMBER: _ClassVar[int]
    EXAMPLE_FIELD_NUMBER: _ClassVar[int]
    code: str
    meaning: str
    devices: int
    example: str
    def __init__(self, code: _Optional[str] = ..., meaning: _Optional[str] = ..., devices: _Optional[int] = ..., example: _Optional[str] = ...) -> None: ...

class CampaignRound(_message.Message):
    __slots__ = ("number", "invited", "accepted", "accuracy", "loss", "seconds", "metrics")
    class MetricsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    INVITED_FIELD_NUMBER: _ClassVar[int]
    ACCEPTED_FIELD_NUMBER: _ClassVar[int]
    ACCURACY_FIELD_NUMBER: _ClassVar[int]
    LOSS_FIELD_NUMBER: _ClassVar[int]
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    METRICS_FIELD_NUMBER: _ClassVar[int]
    number: int
    invited: int
    accepted: int
    accuracy: float
    loss: float
    seconds: float
    metrics: _containers.ScalarMap[str, float]
    def __init__(self, number: _Optional[int] = ..., invited: _Optional[int] = ..., accepted: _Optional[int] = ..., accuracy: _Optional[float] = ..., loss: _Optional[float] = ..., seconds: _Optional[float] = ..., metrics: _Optional[_Mapping[str, float]] = ...) -> None: ...

class CampaignList(_message.Message):
    __slots__ = ("campaigns", "next_page_token")
    CAMPAIGNS_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    campaigns: _containers.RepeatedCompositeFieldContainer[Campaign]
    next_page_token: str
    def __init__(self, campaigns: _Optional[_Iterable[_Union[Campaign, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class StartCampaignRequest(_message.Message):
    __slots__ = ("task", "cohort_id", "strategy", "rounds", "local_epochs", "learning_rate", "proximal_mu", "minimum_devices", "round_deadline_ms", "settings_json", "draft")
    TASK_FIELD_NUMBER: _ClassVar[int]
    COHORT_ID_FIELD_NUMBER: _ClassVar[int]
    STRATEGY_FIELD_NUMBER: _ClassVar[int]
    ROUNDS_FIELD_NUMBER: _ClassVar[int]
    LOCAL_EPOCHS_FIELD_NUMBER: _ClassVar[int]
    LEARNING_RATE_FIELD_NUMBER: _ClassVar[int]
    PROXIMAL_MU_FIELD_NUMBER: _ClassVar[int]
    MINIMUM_DEVICES_FIELD_NUMBER: _ClassVar[int]
    ROUND_DEADLINE_MS_FIELD_NUMBER: _ClassVar[int]
    SETTINGS_JSON_FIELD_NUMBER: _ClassVar[int]
    DRAFT_FIELD_NUMBER: _ClassVar[int]
    task: str
    cohort_id: str
    strategy: str
    rounds: int
    local_epochs: int
    learning_rate: float
    proximal_mu: float
    minimum_devices: int
    round_deadline_ms: int
    settings_json: str
    draft: bool
    def __init__(self, task: _Optional[str] = ..., cohort_id: _Optional[str] = ..., strategy: _Optional[str] = ..., rounds: _Optional[int] = ..., local_epochs: _Optional[int] = ..., learning_rate: _Optional[float] = ..., proximal_mu: _Optional[float] = ..., minimum_devices: _Optional[int] = ..., round_deadline_ms: _Optional[int] = ..., settings_json: _Optional[str] = ..., draft: _Optional[bool] = ...) -> None: ...

class Incident(_message.Message):
    __slots__ = ("id", "kind", "task", "release_id", "state", "severity", "detail", "device_ids", "opened_unix_ms", "campaign_id", "rollout_id")
    ID_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    TASK_FIELD_NUMBER: _ClassVar[int]
    RELEASE_ID_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    SEVERITY_FIELD_NUMBER: _ClassVar[int]
    DETAIL_FIELD_NUMBER: _ClassVar[int]
    DEVICE_IDS_FIELD_NUMBER: _ClassVar[int]
    OPENED_UNIX_MS_FIELD_NUMBER: _ClassVar[int]
    CAMPAIGN_ID_FIELD_NUMBER: _ClassVar[int]
    ROLLOUT_ID_FIELD_NUMBER: _ClassVar[int]
    id: str
    kind: str
    task: str
    release_id: str
    state: str
    severity: str
    detail: str
    device_ids: _containers.RepeatedScalarFieldContainer[str]
    opened_unix_ms: int
    campaign_id: str
    rollout_id: str
    def __init__(self, id: _Optional[str] = ..., kind: _Optional[str] = ..., task: _Optional[str] = ..., release_id: _Optional[str] = ..., state: _Optional[str] = ..., severity: _Optional[str] = ..., detail: _Optional[str] = ..., device_ids: _Optional[_Iterable[str]] = ..., opened_unix_ms: _Optional[int] = ..., campaign_id: _Optional[str] = ..., rollout_id: _Optional[str] = ...) -> None: ...

class IncidentList(_message.Message):
    __slots__ = ("incidents", "next_page_token")
    INCIDENTS_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    incidents: _containers.RepeatedCompositeFieldContainer[Incident]
    next_page_token: str
    def __init__(self, incidents: _Optional[_Iterable[_Union[Incident, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class AuditEntry(_message.Message):
    __slots__ = ("sequence", "at_unix_ms", "actor", "action", "subject", "detail_json", "hash", "previous_hash")
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    AT_UNIX_MS_FIELD_NUMBER: _ClassVar[int]
    ACTOR_FIELD_NUMBER: _ClassVar[int]
    ACTION_FIELD_NUMBER: _ClassVar[int]
    SUBJECT_FIELD_NUMBER: _ClassVar[int]
    DETAIL_JSON_FIELD_NUMBER: _ClassVar[int]
    HASH_FIELD_NUMBER: _ClassVar[int]
    PREVIOUS_HASH_FIELD_NUMBER: _ClassVar[int]
    sequence: int
    at_unix_ms: int
    actor: str
    action: str
    subject: str
    detail_json: str
    hash: str
    previous_hash: str
    def __init__(self, sequence: _Optional[int] = ..., at_unix_ms: _Optional[int] = ..., actor: _Optional[str] = ..., action: _Optional[str] = ..., subject: _Optional[str] = ..., detail_json: _Optional[str] = ..., hash: _Optional[str] = ..., previous_hash: _Optional[str] = ...) -> None: ...

class AuditList(_message.Message):
    __slots__ = ("entries", "next_page_token")
    ENTRIES_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    entries: _containers.RepeatedCompositeFieldContainer[AuditEntry]
    next_page_token: str
    def __init__(self, entries: _Optional[_Iterable[_Union[AuditEntry, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...
