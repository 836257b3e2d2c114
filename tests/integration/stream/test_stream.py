"""``skerry-agent stream`` with a real broker, a real serving process and a real release."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from integration.engine.tiny_bundle import TinyRelease, enrol, install, some_input
from integration.serving.serving_process import ServingProcess
from integration.stream.rig import Application, Broker, StreamProcess
from skerry_agent import Engine, cli
from skerry_agent.config import AgentLayout

RELEASE = TinyRelease(variants={"fp32": 0.0})


@pytest.fixture
def device(tmp_path: Path) -> AgentLayout:
    layout = enrol(tmp_path / "device")
    install(layout, RELEASE)
    return layout


@pytest.fixture
def broker(tmp_path: Path, wait_until: Callable[..., None]) -> Iterator[Broker]:
    running = Broker(tmp_path / "broker", wait_until)
    running.start()
    yield running
    running.kill()


def as_json(x: Any, name: str) -> bytes:
    return json.dumps({"values": x.tolist(), "id": name, "at_ms": 1234.5}).encode()


def test_predictions_are_the_engines_through_garbage_and_restarts(
    device: AgentLayout, broker: Broker, wait_until: Callable[..., None]
) -> None:
    rows = some_input(40)
    with Engine.open(device.root, follow=False) as engine:
        expected = [engine.infer(row[None]) for row in rows]
    credentials = ["--password-file", str(broker.password_file), "--ca", str(broker.authority)]
    ends = ["--from", broker.url("in"), "--to", broker.url("out", tls=True)]
    stream = StreamProcess(device.root, *ends, *credentials)
    application = Application(broker, wait_until)
    try:
        wait_until(lambda: "waiting for a model" in stream.log(), what="the stream waits for a serving process")
        application.retain(b"what was before the stream is no part of it")
        with ServingProcess(device) as serving:
            wait_until(lambda: stream.log().count(": connected") == 2, what="both ends are connected")
            for number in range(10):
                application.publish(as_json(rows[number], f"row-{number}"))
            check(application.hear(10), rows, expected, range(10))

            for garbage in (b"{nonsense", b"12345", b"{}", as_json(rows[0][:, :2], "short")):
                application.publish(garbage)
            application.publish(as_json(np.where(rows[0] > 0, np.nan, rows[0]), "nan"))
            application.publish(as_json(np.full((2, 3), 1e9), "far"))
            application.publish(rows[10].astype("<f4").tobytes())
            heard = application.hear(7)
            errors = [document for topic, document in heard if topic == "out/errors"]
            assert sorted((error["id"], error["kind"]) for error in errors) == [
                ("", "payload"), ("", "payload"), ("", "payload"), ("far", "refused"), ("nan", "refused"),
                ("short", "payload"),
            ]  # fmt: skip
            (answer,) = [document for topic, document in heard if topic == "out"]
            assert answer["scores"] == expected[10].scores[0].tolist()
            assert answer["id"]

            serving.kill()
            for number in range(11, 21):
                application.publish(as_json(rows[number], f"row-{number}"))
            wait_until(lambda: "rows wait" in stream.log(), what="the stream has noticed")
            serving.start()
            check(application.hear(10), rows, expected, range(11, 21))

            subscriptions = application.subscriptions
            broker.kill()
            wait_until(lambda: stream.log().count("disconnected") == 2, what="both ends have noticed")
            broker.start()
            wait_until(lambda: stream.log().count(": connected") == 4, what="both ends are back")
            wait_until(lambda: application.subscriptions > subscriptions, what="the application is back")
            for number in range(21, 31):
                application.publish(as_json(rows[number], f"row-{number}"))
            check(application.hear(10), rows, expected, range(21, 31))

            # The id of a streamed row takes a label like that of any other request.
            labels = serving.post("/v2/models/tiny/labels", {"labels": [{"id": "row-30", "row": 0, "label": "low"}]})
            assert labels.status == 200, labels.body
            assert "skerry" in serving.request("GET", "/metrics").body.decode()
            summary = stream.stop()
    finally:
        application.close()
        stream.kill()
    counted = {name: summary[name] for name in ("messages", "unreadable", "rows", "answered", "refused", "failed")}
    assert counted == {"messages": 37, "unreadable": 4, "rows": 33, "answered": 31, "refused": 2, "failed": 0}
    assert (summary["dropped"], summary["undelivered"], summary["unanswered"], summary["late"]) == (0, 0, 0, 0)
    assert "Traceback" not in stream.log()


def check(heard: list[tuple[str, Any]], rows: Any, expected: list[Any], numbers: range) -> None:
    """What was heard are the engine's answers to these rows, in their order."""
    assert [(topic, document["id"]) for topic, document in heard] == [("out", f"row-{n}") for n in numbers]
    for number, (_, document) in zip(numbers, heard, strict=True):
        wanted = expected[number]
        assert document["scores"] == wanted.scores[0].tolist()
        assert document["label"] == wanted.class_name
        assert document["confidence"] == pytest.approx(wanted.confidence, abs=1e-6)
        assert (document["release"], document["variant"]) == ("release-one", "fp32")
        assert (document["at_ms"], document["latency_us"] > 0) == (1234.5, True)


def test_standard_input_and_a_recording_become_windows_on_standard_output(
    device: AgentLayout, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    samples = np.random.default_rng(5).normal(size=(90, 2)).astype(np.float32)
    scores, _ = RELEASE.compute(np.stack([samples[start : start + 3].T for start in range(0, 88, 2)]))
    np.savez(tmp_path / "r.npz", signal=samples, rate_hz=50.0)
    # All rows are answered, although only four may wait: a file waits for its reader.
    options = ["--data-dir", str(device.root), "--to", "-", "--hop", "2", "--speed", "0", "--queue", "4"]

    def check(out: str, err: str) -> None:
        found = [json.loads(line)["scores"] for line in out.splitlines()]
        np.testing.assert_allclose(found, scores, atol=1e-5)
        assert "answered 44, refused 0, late 0, failed 0, dropped 0" in err

    with ServingProcess(device):
        command = [sys.executable, "-m", "skerry_agent.cli", "stream", "--from", "-", *options]
        ran = subprocess.run(
            command, input=samples.astype("<f4").tobytes(), capture_output=True, timeout=60, check=True
        )
        check(ran.stdout.decode(), ran.stderr.decode())
        assert cli.run(["stream", "--from", f"replay:{tmp_path / 'r.npz'}", *options]) == 0
        check(*capfd.readouterr())


def test_refusals_name_the_option(device: AgentLayout, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def refused(*arguments: str) -> tuple[int, str]:
        status = cli.run(["stream", "--data-dir", str(device.root), *arguments])
        return status, capsys.readouterr().err

    for arguments, said in (
        (["--from", "nowhere", "--to", "-"], "--from"),
        (["--from", "-", "--to", "nowhere"], "--to"),
        (["--from", "sensor:imu", "--to", "-"], "raw, replay"),
        (["--from", "mqtt://a/x", "--to", "mqtt://a/x"], "does not take"),
        (["--from", "mqtt://a/x", "--to", "-", "--keep", "all"], "--keep"),
        (["--from", "-", "--to", "-", "--keep", "some"], "--keep"),
        (["--from", "-", "--to", "-", "--take", "frames"], "--take"),
        (["--from", "-", "--to", "-", "--rate", "0"], "--rate"),
        (["--from", "-", "--to", "-", "--queue", "0"], "--queue"),
        (["--from", "-", "--to", "mqtt://a/x", "--qos", "2"], "--qos"),
        (["--from", "-", "--to", "mqtts://a/x", "--cert", str(tmp_path / "c")], "--key"),
        (["--from", "-", "--to", "mqtts://a/x", "--ca", str(tmp_path / "gone")], "--ca"),
        (["--from", "-", "--to", "mqtt://me@a/x", "--password-file", str(tmp_path / "gone")], "--password-file"),
    ):
        status, text = refused(*arguments)
        assert (status, said in text) == (2, True), text
    status = cli.run(["stream", "--data-dir", str(tmp_path / "gone"), "--from", "-", "--to", "-"])
    assert (status, "--data-dir" in capsys.readouterr().err) == (3, True)
