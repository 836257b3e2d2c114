"""Configuration of the agent and where its files lie.

``skerry-agent enroll`` writes ``<data>/agent.json``; every process of the agent reads it. The rules of the settings are
checked here by hand: a validation library would cost each process as much memory (9 MB) as the whole link does.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import MISSING, asdict, dataclass, fields
from pathlib import Path
from typing import Any

from skerry_agent.errors import DeviceError, InputError
from skerry_agent.policy.windows import parse_windows

#: What a setting may be, by its annotation; a float may be written as an integer.
_TYPES: dict[str, tuple[str, tuple[type, ...]]] = {
    "str": ("text", (str,)),
    "int": ("an integer", (int,)),
    "float": ("a number", (int, float)),
    "bool": ("true or false", (bool,)),
    "list[str]": ("a list of texts", (list,)),
    "dict[str, str]": ("an object of texts", (dict,)),
}
#: How a setting is written as text; a list has semicolons between its texts.
_FROM_TEXT: dict[str, Callable[[str], object]] = {
    "int": int,
    "float": float,
    "bool": lambda text: {"true": True, "false": False}[text.lower()],
    "list[str]": lambda text: [part.strip() for part in text.split(";") if part.strip()],
}
_NAME = r"[a-z0-9][a-z0-9-]{0,62}"


@dataclass(frozen=True)
class _Rule:
    """Bounds of a setting, both inclusive but for ``above``; ``matches`` is a regular expression for all of a text."""

    least: float | None = None
    most: float | None = None
    above: float | None = None
    matches: str | None = None


def _rule(**bounds: Any) -> dict[str, _Rule]:
    return {"rule": _Rule(**bounds)}


_PORT = _rule(least=1, most=65535)
_DOOR = _rule(least=0, most=65535)
_COUNT = _rule(least=1)
_SECONDS = _rule(above=0)


@dataclass(frozen=True, kw_only=True)
class AgentConfig:
    """Settings of one device; one that breaks its rule raises InputError.

    Attributes:
        device_id: Name of the device; also the subject of its certificate.
        broker_host: MQTT broker.
        broker_port: Its port for control connections (mutual TLS).
        broker_data_port: Its port for data connections (mutual TLS).
        device_api: URL of the control plane's device API (https): enrolment, renewal, files.
        superlink_address: host:port of the Flower SuperLink's fleet API.
        release_keys: Trusted raw Ed25519 public keys, hexadecimal; at least one.
        labels: Reported to the control plane, for cohorts.
        host: Address that the doors listen on.
        http_port: Open Inference Protocol over HTTP; 0 picks one.
        grpc_port: Open Inference Protocol over gRPC; 0 picks one.
        window_requests: Rows after which a drift window closes.
        window_seconds: Time after which a drift window closes.
        health_seconds: Time between health reports.
        labelled_capacity: Labelled samples kept for training.
        recent_requests: Rows of answered requests that a label can still join.
        recent_bytes: The bytes of their inputs, at most; they lie in memory, and the oldest go first.
        outbox_messages: Messages kept while there is no network.
        outbox_bytes: Their bytes.
        disk_reserve_bytes: Free space that an update leaves alone.
        maintenance_windows: When an update may begin and switch, such as "mon-fri 22:00-05:00", in local time; none:
            at any time.
        metered: Whether the network is paid by the byte: "yes", "no", or "auto": ask the kernel and NetworkManager.
        updates_on_metered: Whether updates may be downloaded over a metered network.
        metered_limit_bytes: Most bytes of one update over a metered network; 0: no limit.
        choosing_seconds: How long the device may measure which form of a release is fastest.
        deadline_us: How long an answer may take (us): the ladder holds the 99th percentile below it, and who would wait
            longer in a queue is turned away; 0: what the release says.
        inference_parallel: Requests that are computed at the same time; 0: one a core of serving.
        inference_queue: Requests that may wait beside them; more are turned away.
        ladder_temperature_c: Above it a smaller network answers, if the release has one.
        power_saving: Whether a smaller network answers to save energy: "yes", "no", or "auto": by the power mode.
        isolation: "auto" sets serving apart from other work as far as that is permitted: real-time class, core and
            memory of its own; "off" does nothing, for many agents on one machine.
        serving_cores: Cores of serving, such as "3" or "2,3"; "auto" picks a quarter of them, at least one, and with a
            single core none.
        download_over: How files come: "mqtt", or "https" by ranges from the device API.
        reconnect_seconds: Longest wait between two connection attempts.
        presence_delay_seconds: How long the broker waits before it says that a vanished device is offline.
        training_temperature_c: Above it the device stays out of campaigns.
        training_battery_percent: Below it, and not charging, the device stays out of campaigns.
        training_p99_ms: With slower answers (99th percentile) the device stays out of campaigns, and training pauses.
        training_p99_factor: Training pauses, too, while the 99th percentile is so many times what it is at rest.
        training_on_metered: Whether the device takes part over a metered network.
        training_only_idle: Whether the device stays out of campaigns while it answers requests.
        training_idle_seconds: Time without a request after which the device counts as idle.
        serve_personal: Whether a release may answer with this device's own parameters once they have proven better on
            its own labelled samples. There are none unless a campaign left some here or ``personal_parameters`` asks.
        personal_parameters: Shell patterns of parameters, such as "head.*", that the device fits to its own labelled
            samples by itself while no campaign asks; none: it only keeps what campaigns leave here.
    """

    device_id: str = dataclasses.field(metadata=_rule(matches=_NAME))
    broker_host: str
    broker_port: int = dataclasses.field(metadata=_PORT)
    broker_data_port: int = dataclasses.field(metadata=_PORT)
    device_api: str = dataclasses.field(metadata=_rule(matches=r"https://[^\s/]+/?"))
    superlink_address: str
    release_keys: list[str] = dataclasses.field(metadata=_COUNT)
    labels: dict[str, str] = dataclasses.field(default_factory=dict)
    host: str = "127.0.0.1"
    http_port: int = dataclasses.field(default=0, metadata=_DOOR)
    grpc_port: int = dataclasses.field(default=0, metadata=_DOOR)
    window_requests: int = dataclasses.field(default=1000, metadata=_COUNT)
    window_seconds: float = dataclasses.field(default=3600.0, metadata=_SECONDS)
    health_seconds: float = dataclasses.field(default=30.0, metadata=_SECONDS)
    labelled_capacity: int = dataclasses.field(default=5000, metadata=_COUNT)
    recent_requests: int = dataclasses.field(default=4096, metadata=_COUNT)
    recent_bytes: int = dataclasses.field(default=8 << 20, metadata=_rule(least=1 << 16))
    outbox_messages: int = dataclasses.field(default=50_000, metadata=_COUNT)
    outbox_bytes: int = dataclasses.field(default=64 << 20, metadata=_rule(least=1 << 16))
    disk_reserve_bytes: int = dataclasses.field(default=64 << 20, metadata=_rule(least=0))
    maintenance_windows: list[str] = dataclasses.field(default_factory=list)
    metered: str = dataclasses.field(default="auto", metadata=_rule(matches="auto|yes|no"))
    updates_on_metered: bool = True
    metered_limit_bytes: int = dataclasses.field(default=32 << 20, metadata=_rule(least=0))
    choosing_seconds: float = dataclasses.field(default=8.0, metadata=_SECONDS)
    deadline_us: float = dataclasses.field(default=0.0, metadata=_rule(least=0))
    inference_parallel: int = dataclasses.field(default=0, metadata=_rule(least=0, most=64))
    inference_queue: int = dataclasses.field(default=64, metadata=_rule(least=0, most=4096))
    ladder_temperature_c: float = 80.0
    power_saving: str = dataclasses.field(default="auto", metadata=_rule(matches="auto|yes|no"))
    isolation: str = dataclasses.field(default="auto", metadata=_rule(matches="auto|off"))
    serving_cores: str = dataclasses.field(default="auto", metadata=_rule(matches=r"auto|\d{1,4}(,\d{1,4}){0,63}"))
    download_over: str = dataclasses.field(default="mqtt", metadata=_rule(matches="mqtt|https"))
    reconnect_seconds: float = dataclasses.field(default=300.0, metadata=_SECONDS)
    presence_delay_seconds: int = dataclasses.field(default=30, metadata=_rule(least=0))
    training_temperature_c: float = 85.0
    training_battery_percent: float = dataclasses.field(default=30.0, metadata=_rule(least=0, most=100))
    training_p99_ms: float = dataclasses.field(default=200.0, metadata=_SECONDS)
    training_p99_factor: float = dataclasses.field(default=1.5, metadata=_rule(above=1))
    training_on_metered: bool = False
    training_only_idle: bool = False
    training_idle_seconds: float = dataclasses.field(default=60.0, metadata=_rule(least=0))
    serve_personal: bool = True
    personal_parameters: list[str] = dataclasses.field(default_factory=list, metadata=_rule(most=64))

    def __post_init__(self) -> None:
        """Hold every setting to its rule."""
        for setting in fields(self):
            _check(setting.name, str(setting.type), getattr(self, setting.name), setting.metadata.get("rule", _Rule()))
        parse_windows(self.maintenance_windows, field="maintenance_windows")

    @classmethod
    def names(cls) -> tuple[str, ...]:
        """All settings, in their order."""
        return tuple(setting.name for setting in fields(cls))

    @classmethod
    def from_document(cls, document: object) -> AgentConfig:
        """The settings of a JSON document.

        Raises:
            InputError: No object; a setting that is missing, not known, or breaks its rule.
        """
        if not isinstance(document, dict):
            raise InputError("document", expected="an object", got=type(document).__name__)
        for name in document:
            if name not in cls.names():
                raise InputError(name[:80], expected="a setting that there is", got="that name")
        for setting in fields(cls):
            required = setting.default is MISSING and setting.default_factory is MISSING
            if required and setting.name not in document:
                raise InputError(setting.name, expected="a value", got="none")
        return cls(**document)

    def to_json(self) -> str:
        """The document that :meth:`from_document` reads."""
        return json.dumps(asdict(self), indent=2)


def parse_settings(texts: Mapping[str, str], *, field: str) -> dict[str, object]:
    """Settings that were given as text in their own types.

    Args:
        texts: By name.
        field: Where they were given, for errors.

    Raises:
        InputError: Not a number where one is needed.
    """
    types = {setting.name: str(setting.type) for setting in fields(AgentConfig)}
    parsed: dict[str, object] = {}
    for name, text in texts.items():
        convert = _FROM_TEXT.get(types.get(name, "str"), str)
        try:
            parsed[name] = convert(text)
        except (ValueError, KeyError) as error:
            raise InputError(f"{field}: {name}", expected=_TYPES[types[name]][0], got=text) from error
    return parsed


def _check(name: str, kind: str, value: object, rule: _Rule) -> None:
    expected, types = _TYPES[kind]
    whole = isinstance(value, types) and isinstance(value, bool) == (kind == "bool")
    if isinstance(value, list):
        whole = whole and all(isinstance(item, str) for item in value)
    elif isinstance(value, dict):
        whole = whole and all(isinstance(text, str) for pair in value.items() for text in pair)
    elif isinstance(value, float):
        whole = whole and math.isfinite(value)
    if not whole:
        raise InputError(name, expected=expected, got=value if isinstance(value, float) else type(value).__name__)
    size = len(value) if isinstance(value, list) else value
    if isinstance(size, int | float) and kind != "bool":
        for holds, bound in (
            (rule.least is None or size >= rule.least, f"at least {rule.least}"),
            (rule.most is None or size <= rule.most, f"at most {rule.most}"),
            (rule.above is None or size > rule.above, f"more than {rule.above}"),
        ):
            if not holds:
                raise InputError(name, expected=f"{expected}, {bound}", got=value)
    if rule.matches is not None and not re.fullmatch(rule.matches, str(value)):
        raise InputError(name, expected=f"{expected} that matches {rule.matches}", got=f"{value!r:.80}")


@dataclass(frozen=True)
class AgentLayout:
    """Paths below one data directory."""

    root: Path

    @property
    def config(self) -> Path:
        """The written :class:`AgentConfig`."""
        return self.root / "agent.json"

    @property
    def identity(self) -> Path:
        """Private keys, certificate and authority of this device; readable by its owner only."""
        return self.root / "identity"

    @property
    def trust(self) -> Path:
        """Signed metadata, the versions and moments seen, outside the slots: an update never takes them back."""
        return self.root / "trust"

    @property
    def slots(self) -> Path:
        """Folders ``a`` and ``b``."""
        return self.root / "slots"

    @property
    def pointer(self) -> Path:
        """Which slot answers; replaced by rename."""
        return self.root / "slots" / "active.json"

    @property
    def update(self) -> Path:
        """Journal and downloads of the update machine."""
        return self.root / "update"

    @property
    def outbox(self) -> Path:
        """SQLite file of messages that wait for the control plane."""
        return self.root / "outbox.sqlite"

    @property
    def labelled(self) -> Path:
        """SQLite file of labelled samples."""
        return self.root / "labelled.sqlite"

    @property
    def run(self) -> Path:
        """Sockets and small files between the processes of the agent."""
        return self.root / "run"

    @property
    def serving_socket(self) -> Path:
        """Unix socket on which serving answers control: :mod:`skerry_agent.serving.admin`."""
        return self.root / "run" / "serving.sock"

    @property
    def shared_memory_socket(self) -> Path:
        """Unix socket of the shared-memory door, in a folder that the agent's group may enter."""
        return self.root / "door" / "shared-memory.sock"

    @property
    def serving_file(self) -> Path:
        """JSON ``{"http_port", "grpc_port", "pid"}``, written when the doors are open."""
        return self.root / "run" / "serving.json"

    @property
    def training_file(self) -> Path:
        """JSON ``{"flower_node_id": "<decimal>", "training": bool, "detail": str, "pid": int}``."""
        return self.root / "run" / "training.json"

    @property
    def training_state(self) -> Path:
        """What training keeps between rounds: see :mod:`skerry_agent.training.device_state`."""
        return self.root / "training"

    @property
    def superlink_file(self) -> Path:
        """JSON: the gateway that the last accepted invitation led to; control writes, training reads."""
        return self.root / "superlink.json"

    @property
    def fresh_file(self) -> Path:
        """JSON: which labelled samples an accepted update has seen; training writes, control reads."""
        return self.root / "training" / "fresh.json"

    @property
    def personal_forms(self) -> Path:
        """Releases with this device's own parameters, and their proofs; training writes, serving reads."""
        return self.root / "training" / "forms"

    @property
    def personal_file(self) -> Path:
        """JSON: whether such a form answers, and why not; serving writes."""
        return self.root / "run" / "personal.json"

    @property
    def latency_file(self) -> Path:
        """Latencies of this moment, which serving writes in place: :mod:`skerry_agent.policy.live_latency`."""
        return self.root / "run" / "latency"

    @property
    def reporting_file(self) -> Path:
        """JSON ``{"window_requests", "window_ms"}``: drift windows that the control plane wants, written by control."""
        return self.root / "run" / "reporting.json"

    @property
    def logs(self) -> Path:
        """One log file per process."""
        return self.root / "logs"


def load_config(layout: AgentLayout) -> AgentConfig:
    """Read the configuration of a data directory.

    Raises:
        DeviceError: It is missing or broken.
    """
    try:
        text = layout.config.read_text()
    except OSError as error:
        raise DeviceError(
            f"{layout.config} cannot be read ({error.strerror})", remedy="enrol the device with `skerry-agent enroll`"
        ) from error
    try:
        return AgentConfig.from_document(json.loads(text))
    except (ValueError, InputError) as error:
        raise DeviceError(f"{layout.config}: {error}", remedy="correct the file") from error


def default_data_dir() -> Path:
    """``SKERRY_AGENT_DIR``, or ``/var/lib/skerry-agent``."""
    return Path(os.environ.get("SKERRY_AGENT_DIR", "/var/lib/skerry-agent"))
