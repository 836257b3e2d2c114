"""Labels: from an answered request to the training store and the control plane, through the real doors."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from integration.engine.tiny_bundle import CLASSES, TinyRelease, enrol, install, some_input
from integration.serving.serving_process import ServingProcess
from skerry_agent.config import AgentLayout
from skerry_agent.link.outbox import Outbox
from skerry_agent.training.labelled_store import LabelledStore

RELEASE = TinyRelease(variants={"fp32": 0.0})
LABELS = "/v2/models/tiny/labels"


@pytest.fixture
def layout(tmp_path: Path) -> AgentLayout:
    layout = enrol(tmp_path / "d", recent_requests=20)
    install(layout, RELEASE)
    return layout


def infer(serving: ServingProcess, x: Any, request_id: str = "") -> str:
    reply = serving.post(
        "/v2/models/tiny/infer",
        {
            "id": request_id,
            "inputs": [{"name": "input", "datatype": "FP32", "shape": list(x.shape), "data": x.ravel().tolist()}],
        },
    )
    assert reply.status == 200
    return str(reply.document["id"])


def label_reports(layout: AgentLayout) -> list[Any]:
    outbox = Outbox(layout.outbox, device_id="device-1", message_limit=1000, byte_limit=1 << 20)
    return [message.label for message in outbox.pending(1000) if message.WhichOneof("body") == "label"]


def test_labels_join_to_their_rows_and_are_counted_once(layout: AgentLayout) -> None:
    x = some_input(4)
    predicted = RELEASE.compute(x)[0].argmax(axis=1)
    truth = [int(predicted[0]), int((predicted[1] + 1) % 3), int(predicted[2])]
    labels: list[dict[str, Any]] = [
        {"id": "r1", "row": 0, "label": CLASSES[truth[0]]},
        {"id": "r1", "row": 1, "label": truth[1]},
        {"id": "r1", "row": 2, "label": truth[2]},
        {"id": "r1", "row": 4, "label": 0},
        {"id": "r1", "row": -1, "label": 0},
        {"id": "r1", "row": 3, "label": "unheard-of"},
        {"id": "r1", "row": 3, "label": 3},
        {"id": "never-asked", "label": 0},
    ]
    with ServingProcess(layout) as serving:
        assert infer(serving, x, "r1") == "r1"
        reply = serving.post(LABELS, {"labels": labels})
        assert reply.status == 200
        assert (reply.document["accepted"], reply.document["duplicates"]) == (3, 0)
        errors = reply.document["errors"]
        assert [error["index"] for error in errors] == [3, 4, 5, 6, 7]
        assert errors[0]["error"].startswith("row: expected 0 to 3")
        assert "unheard-of" in errors[2]["error"]
        assert errors[4]["error"] == "request not found or too old"

        again = serving.post(LABELS, {"labels": labels[:3]}).document
        assert (again["accepted"], again["duplicates"], again["errors"]) == (0, 3, [])
        other = serving.post(LABELS, {"labels": [{"id": "r1", "row": 0, "label": (truth[0] + 1) % 3}]}).document
        assert "labelled before" in other["errors"][0]["error"]
        status = serving.status()
        assert (status["labelled"], status["labelled_correct"]) == (3, 2)
        serving.stop()

    store = LabelledStore(layout.labelled, 100)
    stored_x, stored_y = store.load()
    np.testing.assert_array_equal(stored_x, x[:3])
    assert stored_y.tolist() == truth
    (report,) = label_reports(layout)
    confusion = np.zeros((3, 3), dtype=int)
    for index in range(3):
        confusion[truth[index], predicted[index]] += 1
    assert report.confusion == confusion.ravel().tolist()
    assert (report.release_id, report.labelled, report.correct, report.classes) == ("release-one", 3, 2, 3)
    assert store.pending() == []


def test_reports_go_out_while_serving(layout: AgentLayout, wait_until: Callable[..., None]) -> None:
    with ServingProcess(layout) as serving:
        for index in range(3):
            request_id = infer(serving, some_input(1, seed=index))
            assert request_id
            serving.post(LABELS, {"labels": [{"id": request_id, "label": 0}]})
        wait_until(lambda: sum(r.labelled for r in label_reports(layout)) == 3, what="three labels reported")


def test_requests_older_than_the_ring_are_too_old(layout: AgentLayout) -> None:
    with ServingProcess(layout) as serving:
        infer(serving, some_input(10), "old")
        infer(serving, some_input(11), "new")
        reply = serving.post(LABELS, {"labels": [{"id": "old", "label": 0}, {"id": "new", "label": 0}]})
        assert reply.document["accepted"] == 1
        assert reply.document["errors"][0]["error"] == "request not found or too old"


def test_acknowledged_labels_survive_a_kill(layout: AgentLayout) -> None:
    serving = ServingProcess(layout)
    serving.start()
    infer(serving, some_input(5), "r1")
    reply = serving.post(LABELS, {"labels": [{"id": "r1", "row": row, "label": 1} for row in range(5)]})
    assert reply.document["accepted"] == 5
    serving.kill()
    assert LabelledStore(layout.labelled, 100).count() == 5
    with serving:  # the next run reports what the killed one may not have
        serving.stop()
    assert sum(report.labelled for report in label_reports(layout)) == 5


@pytest.mark.parametrize(
    ("document", "says"),
    [
        ([], "request"),
        ({}, "labels"),
        ({"labels": {}}, "labels"),
        ({"labels": [3]}, "labels[0]"),
        ({"labels": [{"label": 0}]}, "labels[0].id"),
        ({"labels": [{"id": "r1"}]}, "labels[0].label"),
        ({"labels": [{"id": "r1", "label": 1.5}]}, "labels[0].label"),
        ({"labels": [{"id": "r1", "label": True}]}, "labels[0].label"),
        ({"labels": [{"id": "r1", "label": 0, "row": "0"}]}, "labels[0].row"),
        ({"labels": [{"id": "r1", "label": 0}] * 10_001}, "labels"),
    ],
)
def test_nonsense_takes_no_label(labelled_serving: ServingProcess, document: Any, says: str) -> None:
    reply = labelled_serving.post(LABELS, document)
    assert reply.status == 400
    assert reply.document["error"].startswith(says)
    assert labelled_serving.status()["labelled"] == 0


@pytest.fixture(scope="module")
def labelled_serving(tmp_path_factory: pytest.TempPathFactory) -> Any:
    layout = enrol(tmp_path_factory.mktemp("labels"))
    install(layout, RELEASE)
    with ServingProcess(layout) as process:
        infer(process, some_input(), "r1")
        yield process


def test_a_process_that_is_killed_while_it_adds_leaves_a_sound_store(tmp_path: Path) -> None:
    path = tmp_path / "labelled.sqlite"
    script = """
import sys
from pathlib import Path
import numpy as np
from skerry_agent.training.labelled_store import LabelledStore
store = LabelledStore(Path(sys.argv[1]), 50)
index = 0
while True:
    store.add(f"r{index}", np.full((2, 3), index, dtype=np.float32), index % 3)
    print(index, flush=True)
    index += 1
"""
    with subprocess.Popen([sys.executable, "-c", script, str(path)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        acknowledged = [int(process.stdout.readline()) for _ in range(80)]
        process.kill()
        acknowledged += [int(line) for line in process.stdout.read().splitlines()]
    store = LabelledStore(path, 50)
    x, y = store.load()
    newest = int(x[-1, 0, 0])
    assert newest in (acknowledged[-1], acknowledged[-1] + 1)  # one may be committed and not yet printed
    assert x[:, 0, 0].tolist() == list(range(newest - 49, newest + 1))
    assert y.tolist() == [index % 3 for index in range(newest - 49, newest + 1)]


def test_one_process_writes_while_another_reads(tmp_path: Path) -> None:
    path = tmp_path / "labelled.sqlite"
    script = """
import sys
from pathlib import Path
import numpy as np
from skerry_agent.training.labelled_store import LabelledStore
store = LabelledStore(Path(sys.argv[1]), 1000)
for index in range(100):
    store.add(f"r{index}", np.full(4, index, dtype=np.float32), 0)
"""
    LabelledStore(path, 1000).close()
    with subprocess.Popen([sys.executable, "-c", script, str(path)]) as process:
        reader = LabelledStore(path, 1000)
        sizes = [0]
        while process.poll() is None:
            x, y = reader.load()
            assert len(x) == len(y)
            assert x.ravel()[::4].tolist() == list(range(len(y)))
            sizes.append(len(y))
        assert process.returncode == 0
    assert sizes == sorted(sizes)
    assert reader.count() == 100
