"""What a device says before a secure round counts on it, with a code that can be counted."""

from __future__ import annotations

from pathlib import Path

import pytest

from skerry_agent.training.pause_gate import PauseGate
from skerry_agent.training.process import check_ready
from skerry_agent.training.secure_aggregation import SecureAggregationWorker
from skerry_agent.training.worker import RefusedError
from skerry_contract.campaign import STAY_OUT
from skerry_contract.secure_aggregation import KEYS, KeysInstruction
from unit.federation.fakes import Clock
from unit.federation.secure_rig import SecureDevice, identity

TERMS = KeysInstruction(
    campaign_id="campaign-a",
    round=1,
    session="0" * 32,
    bits=32,
    bound=8.0,
    weight_bound=64,
    minimum=3,
    lifetime_ms=60_000,
)


@pytest.mark.parametrize(
    ("broken", "held", "samples", "reason", "final"),
    [
        ("no release is installed yet", "", 40, "no-release: no release is installed yet", True),
        ("", "hot: too hot: 91 °C, limit 80 °C", 40, "hot: too hot: 91 °C, limit 80 °C", False),
        ("", "", 1, "few-samples: 1 labelled samples are fewer than 2", True),
    ],
)
def test_who_could_not_train_refuses_with_a_code(
    broken: str, held: str, samples: int, reason: str, final: bool
) -> None:
    with pytest.raises(RefusedError) as caught:
        check_ready(broken, held, samples)
    assert (caught.value.reason, caught.value.final) == (reason, final)
    assert reason.partition(": ")[0] in STAY_OUT


def test_who_could_train_does_not_refuse() -> None:
    check_ready("", "", 2)


def test_the_gate_tells_the_reason_that_the_policy_gives(tmp_path: Path) -> None:
    gate = PauseGate(tmp_path / "pause", lambda: False)
    assert gate.held() == ""
    (tmp_path / "pause").touch()
    assert gate.held() == ""  # training waits, and nobody says that the device stays out
    (tmp_path / "pause").write_text("battery: battery low: 10 %, limit 30 %\n")
    assert gate.held() == "battery: battery low: 10 %, limit 30 %"


def test_a_device_that_is_not_ready_opens_no_session_and_one_that_is_forgets_it_in_time() -> None:
    clock = Clock()
    device = SecureDevice("device-000", 1, clock)
    hindrance = ["hot: too hot: 91 °C"]

    def ready() -> None:
        check_ready("", hindrance[0], 40)

    worker = SecureAggregationWorker(device.name, lambda: identity(device.name), device.train, ready=ready, clock=clock)
    with pytest.raises(RefusedError, match=r"^hot: too hot"):
        worker.handle(KEYS, TERMS.to_fields())
    assert worker.open_sessions == 0
    hindrance[0] = ""
    worker.handle(KEYS, TERMS.to_fields())
    assert worker.open_sessions == 1
    clock.sleep(59.0)
    worker.expire()
    assert worker.open_sessions == 1
    clock.sleep(2.0)
    worker.expire()  # nobody asks any more: the process calls it while it rests
    assert worker.open_sessions == 0
