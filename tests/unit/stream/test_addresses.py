"""What may be written behind --from and --to."""

from __future__ import annotations

import pytest

from skerry_agent.errors import InputError
from skerry_agent.stream.addresses import (
    MqttAddress,
    SensorAddress,
    StandardOutput,
    check_no_loop,
    matches,
    parse_sink,
    parse_source,
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("-", SensorAddress("raw", "-")),
        ("sensor:imu", SensorAddress("imu", "")),
        ("sensor:raw:/dev/imu0", SensorAddress("raw", "/dev/imu0")),
        ("replay:a:b.npz", SensorAddress("replay", "a:b.npz")),
        ("mqtt://box/a/b", MqttAddress("box", 1883, False, "", "a/b")),
        ("mqtts://me%40x@box:99/a", MqttAddress("box", 99, True, "me@x", "a")),
        ("mqtts://[::1]/a/+/%23", MqttAddress("::1", 8883, True, "", "a/+/#")),
        ("mqtt://box/a?b", MqttAddress("box", 1883, False, "", "a?b")),
        ("mqtt://box//a", MqttAddress("box", 1883, False, "", "/a")),
    ],
)
def test_sources(text: str, expected: object) -> None:
    assert parse_source(text) == expected


def test_sinks() -> None:
    assert parse_sink("-") == StandardOutput()
    assert parse_sink("mqtt://box/out") == MqttAddress("box", 1883, False, "", "out")


@pytest.mark.parametrize(
    "text",
    ["", "x", "http://a/b", "sensor:", "replay:", "mqtt://box", "mqtt://box/", "mqtt:///a", "mqtt://box:0x/a",
     "mqtt://box:70000/a", "mqtt://box/a%00", "mqtt://box/%ff", "mqtt://box/a%23/b", "mqtt://box/a+",
     "mqtt://[box/a", "mqtt://box/" + "a" * 1025],
)  # fmt: skip
def test_bad_sources_name_the_option(text: str) -> None:
    with pytest.raises(InputError, match="--from"):
        parse_source(text)


@pytest.mark.parametrize("text", ["sensor:raw", "mqtt://box/+", "mqtt://box/a/%23", "file.txt"])
def test_bad_sinks_name_the_option(text: str) -> None:
    with pytest.raises(InputError, match="--to"):
        parse_sink(text)


def test_a_password_does_not_belong_on_a_command_line() -> None:
    with pytest.raises(InputError, match="--password-file") as caught:
        parse_source("mqtt://me:secret@box/a")
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("topic_filter", "topic", "expected"),
    [
        ("a/b", "a/b", True),
        ("a/b", "a/b/c", False),
        ("a/b/c", "a/b", False),
        ("a/+", "a/b", True),
        ("a/+", "a", False),
        ("+/+", "/a", True),
        ("#", "a/b", True),
        ("a/#", "a", True),
        ("a/#", "b/a", False),
        ("#", "$SYS/x", False),
        ("+/x", "$SYS/x", False),
    ],
)
def test_filters_as_the_standard_has_them(topic_filter: str, topic: str, expected: bool) -> None:
    assert matches(topic_filter, topic) is expected


def test_a_stream_is_not_fed_with_its_own_answers() -> None:
    check_no_loop(MqttAddress("a", 1, False, "", "in"), MqttAddress("a", 1, False, "", "out"))
    check_no_loop(MqttAddress("a", 1, False, "", "#"), MqttAddress("a", 2, False, "", "out"))
    for topic_filter in ("out", "#", "+", "+/errors", "out/errors"):
        with pytest.raises(InputError, match="does not take"):
            check_no_loop(MqttAddress("a", 1, False, "", topic_filter), MqttAddress("a", 1, False, "", "out"))
