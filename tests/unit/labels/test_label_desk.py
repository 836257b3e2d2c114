"""Reports of labels when the process dies, or the disk fails, between any two steps of handing them over."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from skerry_agent.errors import DeviceError
from skerry_agent.link.outbox import Outbox
from skerry_agent.serving.labels import LabelDesk, LabelSink
from skerry_agent.serving.recent import RecentRequests
from skerry_agent.training.labelled_store import JoinedPrediction, LabelledSample, LabelledStore
from skerry_contract.v1.telemetry_pb2 import UplinkMessage


class Killed(BaseException):
    """The process is gone; no handler of the code under test may see it."""


class FailingSink:
    """The real outbox, with an end before or after it has kept a message."""

    def __init__(self, outbox: Outbox, *, before: BaseException | None = None, after: BaseException | None = None):
        self._outbox = outbox
        self._before = before
        self._after = after

    def enqueue_once(self, message: UplinkMessage, *, source: str, number: int) -> bool:
        if self._before is not None:
            raise self._before
        kept = self._outbox.enqueue_once(message, source=source, number=number)
        if self._after is not None:
            raise self._after
        return kept


def open_outbox(folder: Path) -> Outbox:
    return Outbox(folder / "outbox.sqlite", device_id="press-07", message_limit=1000, byte_limit=1 << 20)


def desk(folder: Path, sink: LabelSink) -> LabelDesk:
    return LabelDesk(
        RecentRequests(10, 1 << 20),
        open_store=lambda: LabelledStore(folder / "labelled.sqlite", 100),
        open_sink=lambda: sink,
    )


def label(folder: Path, *request_ids: str) -> None:
    store = LabelledStore(folder / "labelled.sqlite", 100)
    for request_id in request_ids:
        joined = JoinedPrediction("r1", 3, 1)
        store.add_many([LabelledSample(request_id, 0, np.zeros(2, dtype=np.float32), 1, joined)])
    store.close()


def reported(outbox: Outbox) -> list[int]:
    return [message.label.labelled for message in outbox.pending(100)]


@pytest.mark.parametrize(("when", "after_death"), [("before", []), ("after", [2])])
def test_a_death_while_handing_over_neither_loses_nor_repeats_a_label(
    tmp_path: Path, when: str, after_death: list[int]
) -> None:
    outbox = open_outbox(tmp_path)
    label(tmp_path, "a", "b")
    with pytest.raises(Killed):
        desk(tmp_path, FailingSink(outbox, **{when: Killed()})).report()
    assert reported(outbox) == after_death
    label(tmp_path, "c")
    desk(tmp_path, outbox).close()
    assert reported(outbox) == [2, 1]
    desk(tmp_path, outbox).close()
    assert reported(outbox) == [2, 1]


def test_an_acknowledged_report_is_not_sent_again_after_a_death(tmp_path: Path) -> None:
    outbox = open_outbox(tmp_path)
    label(tmp_path, "a")
    with pytest.raises(Killed):
        desk(tmp_path, FailingSink(outbox, after=Killed())).report()
    assert outbox.acknowledge(outbox.outbox_id, [1]) == 1
    desk(tmp_path, outbox).close()
    assert reported(outbox) == []


def test_a_full_disk_is_waited_out(tmp_path: Path) -> None:
    outbox = open_outbox(tmp_path)
    label(tmp_path, "a")
    full = desk(tmp_path, FailingSink(outbox, before=DeviceError("full", remedy="free space")))
    assert (full.report(), full.report()) == (0, 0)
    label(tmp_path, "b")
    desk(tmp_path, outbox).close()
    assert reported(outbox) == [1, 1]
