"""Where it is said that a device's own parameters answer: metrics, the status of the device, its command line."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from integration.personal.conftest import Training
from integration.personal.linear_release import LinearRelease, install
from skerry_agent import Engine, cli
from skerry_agent.config import AgentConfig, AgentLayout, load_config
from skerry_agent.errors import InputError
from skerry_agent.serving.labels import LabelDesk
from skerry_agent.serving.metrics import create_renderer
from skerry_agent.serving.recent import RecentRequests
from skerry_agent.status import read_status
from skerry_agent.training.labelled_store import LabelledStore


def metrics(engine: Engine, tmp_path: Path) -> dict[str, float]:
    """Samples of a scrape by name and labels."""
    desk = LabelDesk(
        RecentRequests(1, 1 << 20),
        open_store=lambda: LabelledStore(tmp_path / "labels.sqlite", 1),
        open_sink=lambda: pytest.fail("nothing is reported"),
    )
    text = create_renderer(engine.status, desk, lambda: 1)("")[0].decode()
    desk.close()
    lines = (line.rsplit(" ", 1) for line in text.splitlines() if "personal" in line and not line.startswith("#"))
    return {name: float(value) for name, value in lines}


def test_metrics_and_status_say_what_answers(
    layout: AgentLayout,
    make_training: Callable[..., Training],
    open_engine: Callable[..., Engine],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    install(layout, LinearRelease())
    layout.serving_file.write_text(json.dumps({"http_port": 1, "grpc_port": 2, "pid": os.getpid()}))
    with open_engine(follow=False) as engine:
        assert read_status(layout).personal == "none"
        assert metrics(engine, tmp_path) == {"skerry_personal_active": 0.0}
        training = make_training("*.bias")
        training.label(300)
        training.look()
        engine.activate("a")
        found = metrics(engine, tmp_path)
        status = engine.status().personal
    assert found["skerry_personal_active"] == 1.0
    assert found['skerry_personal_accuracy{parameters="own"}'] == pytest.approx(status.personal_accuracy)
    assert found['skerry_personal_accuracy{parameters="release"}'] == pytest.approx(status.global_accuracy)
    assert any('variant="personal"' in name for name in found)
    said = read_status(layout).personal
    assert said == (
        f"answers: {status.personal_accuracy:.3f} right against {status.global_accuracy:.3f} of the release, "
        f"on {status.examples} samples"
    )
    assert cli.run(["status", "--data-dir", str(layout.root)]) == 3
    assert f"personal   {said}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("content", "shown"),
    [
        (b"", ""),
        (b"[]", ""),
        (b'{"release_id": "linear-0", "state": "answers"}', ""),
        (b'{"release_id": "linear-1", "state": "refused", "detail": "why"}', "refused: why"),
        (b'{"release_id": "linear-1", "state": "answers", "personal_accuracy": []}', "answers"),
    ],
)
def test_a_file_that_says_nothing_of_the_release_is_nothing(layout: AgentLayout, content: bytes, shown: str) -> None:
    install(layout, LinearRelease())
    layout.serving_file.write_text(json.dumps({"pid": os.getpid()}))
    layout.personal_file.write_bytes(content)
    assert read_status(layout).personal == shown


def test_settings(layout: AgentLayout) -> None:
    config = load_config(layout)
    assert (config.serve_personal, config.personal_parameters) == (True, [])
    document = json.loads(config.to_json())
    for name, wrong in (
        ("serve_personal", "yes"),
        ("personal_parameters", "head.*"),
        ("personal_parameters", ["x"] * 65),
    ):
        with pytest.raises(InputError, match=name):
            AgentConfig.from_document({**document, name: wrong})
