from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from skerry_agent.errors import ArtifactError
from skerry_agent.training.backoff import Backoff
from skerry_agent.training.process import Readiness
from skerry_agent.training.status import TrainingStatus


def test_backoff_grows_to_its_bound_and_starts_over() -> None:
    backoff = Backoff(first_s=0.5, last_s=3.0, factor=2.0)
    assert not backoff.reset()
    assert [backoff.next_s() for _ in range(5)] == [0.5, 1.0, 2.0, 3.0, 3.0]
    assert backoff.reset()
    assert backoff.next_s() == 0.5


@pytest.mark.parametrize(("first", "last", "factor"), [(0.0, 1.0, 2.0), (2.0, 1.0, 2.0), (1.0, 2.0, 1.0)])
def test_backoff_refuses_delays_that_do_not_grow(first: float, last: float, factor: float) -> None:
    with pytest.raises(ValueError, match="first_s"):
        Backoff(first_s=first, last_s=last, factor=factor)


def test_status_is_written_when_it_changes(tmp_path: Path) -> None:
    path = tmp_path / "run" / "training.json"
    status = TrainingStatus(path)
    status.link(2**63 + 5, "")
    first = path.stat().st_mtime_ns
    document = json.loads(path.read_bytes())
    assert document == {"flower_node_id": str(2**63 + 5), "training": False, "detail": "", "pid": os.getpid()}
    status.link(2**63 + 5, "")
    assert path.stat().st_mtime_ns == first
    status.busy("campaign c round 3")
    assert json.loads(path.read_bytes())["training"] is True
    status.link(0, "away")
    assert json.loads(path.read_bytes()) == document | {
        "flower_node_id": "0",
        "training": True,
        "detail": "campaign c round 3",
    }
    status.busy("")
    assert json.loads(path.read_bytes())["detail"] == "away"


def test_a_status_that_cannot_be_written_hurts_nobody(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("a file where the folder should be")
    TrainingStatus(tmp_path / "run" / "training.json").link(1, "")
    assert (tmp_path / "run").read_text() == "a file where the folder should be"


def test_readiness_asks_at_most_once_per_period() -> None:
    calls: list[int] = []

    def check() -> None:
        calls.append(1)
        if len(calls) == 1:
            raise ArtifactError("r1", "the golden step is off")

    slow = Readiness(check, period_s=3600)
    assert "golden step" in slow.reason()
    assert "golden step" in slow.reason()
    assert len(calls) == 1
    always = Readiness(check, period_s=0.0)
    assert always.reason() == ""


def test_the_training_process_imports_no_heavy_library() -> None:
    # fastapi is not in the list: flwr's own error module imports it.
    script = (
        "import sys, skerry_agent.training.process, skerry_agent.training.flower_node\n"
        "print([name for name in ('torch', 'mlflow', 'evidently', 'onnx', 'sklearn', 'pandas',"
        " 'skerry_models', 'skerry_server') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.strip() == "[]"


def test_usage_and_a_device_that_is_not_enrolled(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "skerry_agent.training"]
    usage = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert (usage.returncode, usage.stderr) == (2, "usage: python -m skerry_agent.training DATA_DIR\n")
    done = subprocess.run([*command, str(tmp_path)], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].endswith("enrol the device with `skerry-agent enroll`")
    assert "Traceback" not in done.stderr
