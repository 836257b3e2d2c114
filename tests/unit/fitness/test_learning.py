"""When certificates of like devices become a recommendation."""

from __future__ import annotations

import pytest

from skerry_server.fitness.learning import Form, Limits, learn


def device(
    chosen: str = "int8-x86", *, p50: float = 30.0, correct: bool = True, tried: bool = True, rung: int = 0
) -> list[Form]:
    """One device that measured float32 (70 us) and int8-x86, and chose one of them."""
    prefix = "small/" if rung else ""
    return [
        Form(f"{prefix}fp32", rung, True, True, 70.0, chosen == "fp32"),
        Form(f"{prefix}int8-x86", rung, tried, correct and tried, p50 if correct and tried else 0.0, chosen != "fp32"),
    ]


@pytest.mark.parametrize(
    ("what", "devices", "why"),
    [
        ("three agree", [device()] * 3, ""),
        ("latencies within the spread", [device(p50=v) for v in (30, 33, 36)], ""),
        ("four of five", [*[device()] * 4, device("fp32")], ""),
        ("too few", [device()] * 2, "2 of 3 devices"),
        ("too many choose another", [*[device()] * 3, *[device("fp32")] * 2], "60% of the devices"),
        ("latencies differ", [device(p50=v) for v in (30, 40, 90)], "differ by"),
        ("wrong on one", [*[device()] * 9, device("fp32", correct=False)], "not correct on 1 of 10"),
        ("not reached by the budget is not wrong", [*[device()] * 9, device("fp32", tried=False)], ""),
    ],
)
def test_recommendation(what: str, devices: list[list[Form]], why: str) -> None:
    (learned,) = learn(devices)
    assert learned.variant == "int8-x86"
    assert learned.devices == len(devices)
    assert learned.recommended is (why == "")
    assert why in learned.why
    assert learn(devices[::-1]) == [learned]


def test_figures() -> None:
    (learned,) = learn([device(p50=20), device(p50=30), device(p50=40)], Limits(spread=2.0))
    assert (learned.p50_us, learned.reference_p50_us, learned.share) == (30, 70, 1.0)
    # 10th and 90th percentile of 20, 30, 40 are 22 and 38.
    assert learned.spread == pytest.approx(38 / 22)
    assert learned.recommended


def test_each_network_is_learned_for_itself() -> None:
    learned = learn([[*device(), *device("fp32", rung=1)] for _ in range(3)])
    assert [(entry.rung, entry.variant) for entry in learned] == [(0, "int8-x86"), (1, "small/fp32")]


def test_devices_that_downloaded_one_form_only_agree_with_those_that_measured_all() -> None:
    alone = [Form("int8-x86", 0, True, True, 31.0, True)]
    (learned,) = learn([device(), device(), device(), alone, alone])
    assert learned.recommended
    assert learned.reference_p50_us == 70


def test_nothing_is_learned_of_nothing() -> None:
    assert learn([]) == []
    assert learn([[Form("fp32", 0, True, False, 0.0, False)]]) == []
