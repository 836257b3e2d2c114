"""Every rule of a setting, and what a broken agent.json is told."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from skerry_agent.config import AgentConfig, AgentLayout, load_config, parse_settings
from skerry_agent.errors import DeviceError, InputError

REQUIRED: dict[str, object] = {
    "device_id": "press-07",
    "broker_host": "127.0.0.1",
    "broker_port": 1883,
    "broker_data_port": 1884,
    "device_api": "https://10.0.0.2:8443",
    "superlink_address": "127.0.0.1:9092",
    "release_keys": ["00" * 32],
}


def test_what_is_written_is_read(tmp_path: Path) -> None:
    layout = AgentLayout(tmp_path)
    config = AgentConfig.from_document({**REQUIRED, "labels": {"site": "north"}, "health_seconds": 5, "http_port": 80})
    layout.config.write_text(config.to_json())
    assert load_config(layout) == config
    assert (config.health_seconds, config.window_requests, config.labels) == (5, 1000, {"site": "north"})


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"device_id": "Press 07"}, r"device_id: expected text that matches .*, got 'Press 07'"),
        ({"device_id": "a" * 64}, "device_id"),
        ({"device_id": "press\n"}, "device_id"),
        ({"broker_port": 0}, "broker_port: expected an integer, at least 1, got 0"),
        ({"broker_port": 65536}, "broker_port: expected an integer, at most 65535, got 65536"),
        ({"broker_port": "1883"}, "broker_port: expected an integer, got str"),
        ({"broker_port": True}, "broker_port: expected an integer, got bool"),
        ({"broker_port": 1.0}, "broker_port: expected an integer"),
        ({"broker_data_port": 0}, "broker_data_port: expected an integer, at least 1, got 0"),
        ({"device_api": 12345}, "device_api: expected text, got int"),
        ({"device_api": "http://10.0.0.2:8443"}, "device_api: expected text that matches https"),
        ({"device_api": "https://10.0.0.2:8443/v1"}, "device_api: expected text that matches https"),
        ({"release_keys": []}, "release_keys: expected a list of texts, at least 1"),
        ({"release_keys": [1]}, "release_keys: expected a list of texts"),
        ({"labels": {"line": 2}}, "labels: expected an object of texts"),
        ({"labels": None}, "labels"),
        ({"window_seconds": 0}, "window_seconds: expected a number, more than 0, got 0"),
        ({"window_seconds": float("nan")}, "window_seconds: expected a number, got nan"),
        ({"window_seconds": float("inf")}, "window_seconds: expected a number, got inf"),
        ({"training_battery_percent": 101}, "training_battery_percent"),
        ({"outbox_bytes": 65535}, "outbox_bytes: expected an integer, at least 65536"),
        ({"colour": "red"}, "colour: expected a setting that there is"),
    ],
)
def test_a_setting_that_breaks_its_rule_is_named(tmp_path: Path, changes: dict[str, object], says: str) -> None:
    layout = AgentLayout(tmp_path)
    with pytest.raises(InputError, match=says):
        AgentConfig.from_document(REQUIRED | changes)
    layout.config.write_text(json.dumps(REQUIRED | changes))
    with pytest.raises(DeviceError, match=next(iter(changes))):
        load_config(layout)


@pytest.mark.parametrize("name", sorted(REQUIRED))
def test_a_setting_that_is_missing_is_named(name: str) -> None:
    with pytest.raises(InputError, match=f"{name}: expected a value, got none"):
        AgentConfig.from_document({key: value for key, value in REQUIRED.items() if key != name})


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '"device_id"'])
def test_a_file_that_is_no_document_is_an_error_of_the_device(tmp_path: Path, text: str) -> None:
    layout = AgentLayout(tmp_path)
    layout.config.write_text(text)
    with pytest.raises(DeviceError, match=r"agent\.json: .*correct the file"):
        load_config(layout)


def test_settings_given_as_text_take_their_own_types() -> None:
    texts = {"health_seconds": "5", "http_port": "8080", "host": "0.0.0.0"}
    assert parse_settings(texts, field="--set") == {"health_seconds": 5.0, "http_port": 8080, "host": "0.0.0.0"}
    with pytest.raises(InputError, match=r"--set: http_port: expected an integer, got 8080\.5"):
        parse_settings({"http_port": "8080.5"}, field="--set")
