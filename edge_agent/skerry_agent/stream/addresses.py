"""Where a stream comes from and goes to, as it is written on the command line (pure).

``mqtt://[user@]host[:port]/topic`` and ``mqtts://`` (TLS), with percent-encoding where a topic needs it (``%23`` for
``#``); ``sensor:NAME[:ARGUMENT]``; ``replay:FILE``; ``-``.
"""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import unquote, urlsplit

from skerry_agent.errors import InputError

#: Default ports by scheme.
PORTS = {"mqtt": 1883, "mqtts": 8883}
#: Longest topic (bytes of UTF-8).
TOPIC_BYTES = 1024


@dataclass(frozen=True)
class MqttAddress:
    """A topic of a broker.

    Attributes:
        host: Of the broker.
        port: Of the broker.
        tls: Whether it is reached over TLS.
        username: Empty: nobody.
        topic: Topic, or filter of topics for a source.
    """

    host: str
    port: int
    tls: bool
    username: str
    topic: str


@dataclass(frozen=True)
class SensorAddress:
    """A sensor.

    Attributes:
        name: Of its kind.
        argument: What its kind makes of it, such as a path.
    """

    name: str
    argument: str


@dataclass(frozen=True)
class StandardOutput:
    """Lines of JSON on standard output."""


def parse_source(text: str) -> MqttAddress | SensorAddress:
    """What ``--from`` says.

    Raises:
        InputError: Not understood.
    """
    if text == "-":
        return SensorAddress("raw", "-")
    kind, _, rest = text.partition(":")
    if kind == "replay" and rest:
        return SensorAddress("replay", rest)
    if kind == "sensor" and rest:
        name, _, argument = rest.partition(":")
        return SensorAddress(name, argument)
    if kind in PORTS:
        return _parse_mqtt(text, "--from", wildcards=True)
    raise InputError("--from", expected="mqtt://host/topic, sensor:NAME, replay:FILE or -", got=text)


def parse_sink(text: str) -> MqttAddress | StandardOutput:
    """What ``--to`` says.

    Raises:
        InputError: Not understood.
    """
    if text == "-":
        return StandardOutput()
    if text.partition(":")[0] in PORTS:
        return _parse_mqtt(text, "--to", wildcards=False)
    raise InputError("--to", expected="mqtt://host/topic or -", got=text)


def error_topic(sink: MqttAddress) -> str:
    """Where errors are told: below the topic of the predictions."""
    return f"{sink.topic}/errors"


def check_no_loop(source: MqttAddress, sink: MqttAddress) -> None:
    """Refuse a stream that would be fed with its own answers.

    Raises:
        InputError: The same broker, and the filter of the source takes a topic of the sink.
    """
    if (source.host, source.port) != (sink.host, sink.port):
        return
    for topic in (sink.topic, error_topic(sink)):
        if matches(source.topic, topic):
            raise InputError("--to", expected=f"a topic that --from {source.topic} does not take", got=topic)


def matches(topic_filter: str, topic: str) -> bool:
    """Whether a filter takes a topic (MQTT 5.0, section 4.7)."""
    wanted, given = topic_filter.split("/"), topic.split("/")
    if topic.startswith("$") and wanted[0] in ("+", "#"):
        return False
    for place, part in enumerate(wanted):
        if part == "#":
            return True
        if place >= len(given) or part not in ("+", given[place]):
            return False
    return len(wanted) == len(given)


def _parse_mqtt(text: str, field: str, *, wildcards: bool) -> MqttAddress:
    try:
        parts = urlsplit(text, allow_fragments=False)
        host, port, username, password = parts.hostname, parts.port, parts.username, parts.password
        topic = unquote(parts.path[1:] + (f"?{parts.query}" if parts.query else ""), errors="strict")
    except ValueError as error:
        raise InputError(field, expected="mqtt://[user@]host[:port]/topic", got=error) from error
    if password is not None:
        raise InputError(
            field, expected="the password in --password-file: every user sees a command line", got="one in the address"
        )
    if not host or not topic:
        raise InputError(field, expected="mqtt://[user@]host[:port]/topic", got=text)
    if len(topic.encode()) > TOPIC_BYTES or any(ord(character) < 32 for character in topic):
        raise InputError(field, expected=f"a topic of at most {TOPIC_BYTES} bytes without control characters", got=text)
    if not (_is_filter(topic) if wildcards else not set("+#") & set(topic)):
        raise InputError(field, expected="a topic filter" if wildcards else "a topic without + and #", got=topic)
    return MqttAddress(host, port or PORTS[parts.scheme], parts.scheme == "mqtts", unquote(username or ""), topic)


def _is_filter(topic: str) -> bool:
    levels = topic.split("/")
    return all(
        level == "+" or (level == "#" and place == len(levels) - 1) or not set("+#") & set(level)
        for place, level in enumerate(levels)
    )
